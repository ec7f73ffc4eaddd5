"""The floating part of decoupleQ in closed form: all scales and zeros of an output at once, at fixed codes.

For one output, with ``u_g`` the codes of group ``g`` (zero elsewhere) and ``1_g`` its indicator, the minimiser of
``(A y - w)ᵀ H (A y - w)`` over ``y = [scales; offsets]`` solves ``(Aᵀ H A) y = Aᵀ H w``, ``A = [u_1..u_G, 1_1..1_G]``
(Guo et al., 2024, arXiv 2404.12759, section 3.3). All groups are solved together: H couples them.
"""

import jax
import jax.numpy as jnp

from compressjax.numerics.grids import Grid
from compressjax.numerics.linalg import cholesky_many, cholesky_solve_many
from compressjax.quantization.decoupleq_grid import by_group

# Added to the matrix, relative to its mean diagonal, where it has no Cholesky factor; the reference's value.
_RIDGE = 0.01


def solve_scale_offset(
    w: jax.Array, codes: jax.Array, grid: Grid, h: jax.Array, *, group: int, sym: bool, out_chunk: int = 256
) -> tuple[jax.Array, jax.Array]:
    """Scales and offsets with the least output error for given codes.

    Solved for the step from ``grid``, in float32 with one refinement by the true residual, where the reference solves
    for the values in float64. Codes are centred in every group, and a group with one code only keeps its scale and
    moves its offset, so that neither makes the system singular.

    Args:
      w: ``[in, out]``, float32.
      codes: unsigned codes, float32 ``[in, out]``.
      grid: where to start from, ``[groups, out]``.
      h: damped Hessian ``[in, in]``.
      group: inputs per group, dividing ``in``.
      sym: keep ``grid.zero``; only the scales are solved for.
      out_chunk: outputs solved for at once; the matrices take ``out_chunk * (2 groups)²`` numbers.

    Returns:
      ``scale, offset``, float32 ``[groups, out]``: the weight is ``scale * code + offset``.
    """
    outputs = w.shape[1]
    size = min(out_chunk, outputs)
    fill = -outputs % size

    def cut(a):
        a = jnp.pad(a, ((0, 0), (0, fill)), mode="edge")
        return jnp.moveaxis(a.reshape(a.shape[0], -1, size), 1, 0)

    parts = jax.lax.map(
        lambda args: _solve_chunk(args[0], args[1], Grid(*args[2]), h, group, sym),
        (cut(w), cut(codes), (cut(grid.scale), cut(grid.zero))),
    )
    scale, offset = (jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)[:, :outputs] for a in parts)
    return scale, offset


def _solve_chunk(w, codes, grid, h, group, sym):
    width, outputs = w.shape
    groups = width // group
    blocks = by_group(codes, group)
    one_code = jnp.max(blocks, axis=1) == jnp.min(blocks, axis=1)
    # Under sym nothing but the scale may absorb the mean, so codes count from the fixed zero.
    centre = grid.zero if sym else jnp.mean(blocks, axis=1)
    fixed = jnp.all(blocks == grid.zero[:, None], axis=1) if sym else one_code
    a = jnp.where(fixed[:, None], 0, blocks - centre[:, None])

    def sums(x):
        return jnp.sum(by_group(x, group), axis=1)

    def column(k):
        rows = jax.lax.dynamic_slice_in_dim(h, k * group, group, 0)
        spread = jnp.matmul(rows.T, a[k], precision="highest")  # H a_k, [in, out]
        return jnp.sum(a * by_group(spread, group), axis=1), sums(spread)

    aha, oha = jax.lax.map(column, jnp.arange(groups))  # [k, g, out]: a_gᵀ H a_k and 1_gᵀ H a_k
    aha, oha = jnp.moveaxis(aha, -1, 0), jnp.moveaxis(oha, -1, 0)
    aha = aha + jax.vmap(jnp.diag)(fixed.T.astype(jnp.float32))
    matrix = aha
    if not sym:
        oho = jnp.broadcast_to(sums(sums(h).T)[None], (outputs, groups, groups))
        matrix = jnp.concatenate(
            [jnp.concatenate([aha, oha], axis=2), jnp.concatenate([jnp.swapaxes(oha, 1, 2), oho], axis=2)], axis=1
        )
    solve = _solver((matrix + jnp.swapaxes(matrix, 1, 2)) / 2)

    def improved(_, state):
        scale, offset = state
        rounded = (by_group(codes, group) * scale[:, None] + offset[:, None]).reshape(w.shape)
        pull = jnp.matmul(h, w - rounded, precision="highest")
        right = [jnp.sum(a * by_group(pull, group), axis=1)] + ([] if sym else [sums(pull)])
        step = solve(jnp.concatenate(right, axis=0).T).T
        scale_step = jnp.where(fixed, 0, step[:groups])
        shift = -scale_step * centre
        return scale + scale_step, offset + (shift if sym else shift + step[groups:])

    return jax.lax.fori_loop(0, 2, improved, (grid.scale, -grid.scale * grid.zero))


def _solver(matrix):
    """``right [out, n] -> matrix⁻¹ right``, by a Cholesky factor of the matrices scaled to a unit diagonal."""
    diagonal = jnp.diagonal(matrix, axis1=1, axis2=2)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    unit = matrix * scale[:, :, None] * scale[:, None, :]
    factor = cholesky_many(unit)
    ok = jnp.all(jnp.isfinite(factor), axis=(1, 2), keepdims=True)
    ridged = cholesky_many(unit + _RIDGE * jnp.eye(unit.shape[-1])[None])
    factor = jnp.where(ok, factor, ridged)

    def solve(right):
        x = cholesky_solve_many(factor, right * scale) * scale
        return jnp.where(jnp.isfinite(x), x, 0)

    return solve
