"""Products that make layer Hessians, and their factors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Factor(NamedTuple):
    """Inverse factor of a damped Hessian, and how it was reached.

    Attributes:
      u: upper triangular ``[in, in]`` with ``H⁻¹ = Uᵀ U``; the identity when ``ok`` is False.
      damping: what was added to the diagonal, ``[in]``.
      damp: the relative damping of the attempt that succeeded.
      ok: whether any attempt succeeded.
    """

    u: jax.Array
    damping: jax.Array
    damp: jax.Array
    ok: jax.Array


def inverse_factor(h: jax.Array) -> jax.Array:
    """Upper triangular ``U`` with ``H⁻¹ = Uᵀ U``, by one Cholesky and one triangular inverse.

    ``H = R Rᵀ`` with ``R`` upper comes from the Cholesky of ``H`` with both axes flipped, and ``U = R⁻¹``; the inverse
    of ``H`` is never formed. Entries are NaN when ``H`` is not positive definite.

    Args:
      h: symmetric positive definite ``[n, n]``.
    """
    lower = jnp.linalg.cholesky(jnp.flip(h, (0, 1)), symmetrize_input=False)
    identity = jnp.eye(h.shape[0], dtype=h.dtype)
    # R⁻¹ is L⁻¹ with both axes flipped, so L is inverted as it comes: one matrix less in memory.
    return jnp.triu(jnp.flip(jax.scipy.linalg.solve_triangular(lower, identity, lower=True), (0, 1)))


def hessian_factor(h: jax.Array, damp: float, damp_step: float, floor: float = 1e-6) -> Factor:
    """Factor of ``H + damping``, raising the damping until the Cholesky succeeds.

    The first attempt adds ``damp * mean(diag H)``; each later one ``damp_step`` more while the relative damping stays
    below 1. Then a floor ``floor * 10^k * max|diag H|`` is tried, k = 0..5. Damping is always taken from the given
    diagonal, so attempts do not add up.

    Args:
      h: symmetric ``[n, n]``, float32; float64 is used where JAX has it enabled.
      damp, damp_step: relative damping and its step, > 0.
      floor: first diagonal floor, relative to the largest diagonal entry.
    """
    wide = h.astype(jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)  # pyright: ignore[reportAttributeAccessIssue]
    diagonal = jnp.diagonal(wide)
    mean, peak = jnp.mean(diagonal), jnp.max(jnp.abs(diagonal))
    steps = max(0, int((1.0 - damp) / damp_step)) if damp_step > 0 else 0

    def damping_of(attempt):
        relative = damp + damp_step * jnp.minimum(attempt, steps).astype(wide.dtype)
        power = jnp.maximum(attempt - steps - 1, 0).astype(wide.dtype)
        extra = jnp.where(attempt > steps, floor * 10.0**power * peak, 0.0)
        return relative, relative * mean + extra

    def try_once(state):
        attempt, *_ = state
        relative, added = damping_of(attempt)
        u = inverse_factor(wide + added * jnp.eye(wide.shape[0], dtype=wide.dtype))
        ok = jnp.all(jnp.isfinite(u)) & jnp.all(jnp.diagonal(u) > 0)
        return attempt + 1, u, relative, added, ok

    # The first attempt is a turn of the loop like any other, so that the factorisation is compiled once.
    zero = jnp.zeros((), wide.dtype)
    start = (jnp.int32(0), wide, zero, zero, jnp.bool_(False))
    _, u, relative, added, ok = jax.lax.while_loop(lambda s: ~s[4] & (s[0] <= steps + 6), try_once, start)
    u = jnp.where(ok, u, jnp.eye(wide.shape[0], dtype=wide.dtype))
    return Factor(
        u=u.astype(jnp.float32),
        damping=jnp.full((wide.shape[0],), added, jnp.float32),
        damp=relative.astype(jnp.float32),
        ok=ok,
    )


def gram(x: jax.Array, y: jax.Array | None = None) -> jax.Array:
    """``xᵀ y`` in float32 at full precision; for ``y`` None the symmetric ``xᵀ x``, at about half the work.

    The symmetric product is built from blocks of columns: only those on and above the diagonal are multiplied.
    """
    if y is not None or x.shape[1] < 256:
        other = x if y is None else y
        return jnp.matmul(x.T, other, precision="highest")
    width = x.shape[1]
    edges = [round(width * i / 4) for i in range(5)]
    blocks: list[list[jax.Array]] = [[jnp.zeros((0, 0), jnp.float32)] * 4 for _ in range(4)]
    for i in range(4):
        for j in range(i, 4):
            rows, cols = x[:, edges[i] : edges[i + 1]], x[:, edges[j] : edges[j + 1]]
            blocks[i][j] = jnp.matmul(rows.T, cols, precision="highest")
            blocks[j][i] = blocks[i][j].T
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in blocks], axis=0)


def quadratic(error: jax.Array, h: jax.Array) -> jax.Array:
    """``tr(Eᵀ H E)`` for ``E [in, out]``: squared output error of a weight error over the data behind ``H``.

    Args:
      error: ``[in, out]``, float32.
      h: symmetric ``[in, in]``, float32.
    """
    return jnp.sum(error * jnp.matmul(h, error, precision="highest"))


def cholesky_many(matrices: jax.Array) -> jax.Array:
    """Lower Cholesky factors of many small matrices, column by column, all matrices at once.

    Not ``jnp.linalg.cholesky``: on CPUs its kernel for a batch waits for tasks that it has put into the thread pool it
    is running on, so two of them at a time can wait for each other for ever (seen with jaxlib 0.10.2 on two cores).

    Args:
      matrices: symmetric ``[..., n, n]``, float32.

    Returns:
      ``[..., n, n]``; NaN from the first pivot that is not positive on.
    """
    size = matrices.shape[-1]
    rows = jnp.arange(size)

    def column(k, lower):
        known = jnp.einsum("...ij,...j->...i", lower, lower[..., k, :], precision="highest")
        rest = matrices[..., :, k] - known
        pivot = jnp.sqrt(rest[..., k])[..., None]
        return lower.at[..., :, k].set(jnp.where(rows >= k, rest / pivot, 0))

    return jax.lax.fori_loop(0, size, column, jnp.zeros_like(matrices))


def cholesky_solve_many(lower: jax.Array, right: jax.Array) -> jax.Array:
    """``(L Lᵀ)⁻¹ right`` for the factors of :func:`cholesky_many`.

    Args:
      lower: ``[..., n, n]``.
      right: ``[..., n]``.
    """
    size = lower.shape[-1]

    def substituted(triangle, right, order):
        def entry(i, x):
            k = order(i)
            known = jnp.sum(triangle[..., k, :] * x, axis=-1)
            return x.at[..., k].set((right[..., k] - known) / triangle[..., k, k])

        return jax.lax.fori_loop(0, size, entry, jnp.zeros_like(right))

    forward = substituted(lower, right, lambda i: i)
    return substituted(jnp.swapaxes(lower, -1, -2), forward, lambda i: size - 1 - i)
