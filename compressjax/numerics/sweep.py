"""The column sweep that GPTQ and its relatives share: round one input at a time, push its error onto the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Swept(NamedTuple):
    """Result of :func:`sweep`, inputs in sweeping order.

    Attributes:
      codes: what ``round_row`` called codes, ``[in, out]``.
      weight: rounded weight ``Q [in, out]``.
      errors: ``E [in, out]`` with ``W - Q = Uᵀ E`` (without ``drift``) and ``sum E² = tr((W-Q)ᵀ H (W-Q))``.
      state: last state.
    """

    codes: jax.Array
    weight: jax.Array
    errors: jax.Array
    state: Any


def sweep(
    w: jax.Array,
    u: jax.Array,
    round_row: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array, Any]],
    state: Any = None,
    *,
    block: int = 128,
    start_block: Callable[[jax.Array, jax.Array, Any], Any] | None = None,
    drift: jax.Array | None = None,
    nudge: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> Swept:
    """Rounds the rows of ``w`` in order, compensating each row's error on the rows after it (OPTQ, Alg. 1).

    Row ``i`` gives ``e = (w_i - q_i) / U_ii``, and every later row ``j`` loses ``U_ij e`` and gains ``P_ij w_i``. The
    updates inside a block are applied at once, those beyond it in one product per block; the result does not depend on
    ``block``, save through ``start_block``.

    Args:
      w: float32 ``[in, out]``, inputs already in sweeping order; outputs are independent of each other.
      u: upper triangular ``[in, in]`` with ``H⁻¹ = Uᵀ U``.
      round_row: ``(w_row [out], i, state) -> (q_row, code_row, state)``; ``i`` is traced.
      state: any pytree that ``round_row`` and ``start_block`` carry along.
      block: rows per block.
      start_block: ``(w_block [block, out], b, state) -> state``, called before a block is swept, with its rows
        brought up to date; grids that belong to groups of ``block`` rows are fitted here. Padding rows are zero.
      drift: strictly upper ``P [in, in]`` of asymmetric calibration (GPTAQ), or None.
      nudge: ``(e_row, w_row, i) -> e_row``, changes the error that is pushed on.

    Returns:
      :class:`Swept`.
    """
    rows, cols = w.shape
    count = -(-rows // block)
    pad = count * block - rows
    if pad:
        w = jnp.pad(w, ((0, pad), (0, 0)))
        corner = jnp.arange(rows + pad)
        u = jnp.pad(u, ((0, pad), (0, pad))) + jnp.diag((corner >= rows).astype(u.dtype))
        drift = None if drift is None else jnp.pad(drift, ((0, pad), (0, pad)))

    def one_block(carry, b):
        w, state = carry
        at = b * block
        w1 = jax.lax.dynamic_slice_in_dim(w, at, block, 0)
        u_rows = jax.lax.dynamic_slice_in_dim(u, at, block, 0)
        u1 = jax.lax.dynamic_slice_in_dim(u_rows, at, block, 1)
        p_rows = None if drift is None else jax.lax.dynamic_slice_in_dim(drift, at, block, 0)
        p1 = None if p_rows is None else jax.lax.dynamic_slice_in_dim(p_rows, at, block, 1)
        if start_block is not None:
            state = start_block(w1, b, state)

        def one_row(inner, i):
            w1, state = inner
            row = w1[i]
            q, code, state = round_row(row, at + i, state)
            e = (row - q) / u1[i, i]
            if nudge is not None:
                e = nudge(e, row, at + i)
            w1 = w1 - u1[i][:, None] * e[None, :]
            if p1 is not None:
                w1 = w1 + p1[i][:, None] * row[None, :]
            return (w1, state), (q, code, e, row)

        (_, state), (q, code, e, before) = jax.lax.scan(one_row, (w1, state), jnp.arange(block))
        # Rows above the block meet zeros of U; the block's own rows have been read and may change.
        w = w - jnp.matmul(u_rows.T, e, precision="highest")
        if p_rows is not None:
            w = w + jnp.matmul(p_rows.T, before, precision="highest")
        return (w, state), (q, code, e)

    (_, state), (q, codes, errors) = jax.lax.scan(one_block, (w, state), jnp.arange(count))
    flat = [a.reshape(count * block, cols)[:rows] for a in (codes, q, errors)]
    return Swept(codes=flat[0], weight=flat[1], errors=flat[2], state=state)
