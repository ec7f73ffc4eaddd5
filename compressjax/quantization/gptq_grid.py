"""The two kinds of levels that GPTQ rounds to: uniform grids and tables, each with how to fit, round and pack."""

import jax
import jax.numpy as jnp

from compressjax.numerics import grids, kmeans
from compressjax.numerics.linalg import cholesky_many, cholesky_solve_many
from compressjax.quantization.rtn import fit_grid


def fit_uniform(blocks: jax.Array, weight: jax.Array | None, cfg) -> grids.Grid:
    """Uniform grids of ``blocks [..., n, out]``; ``weight`` is the importance that grid="hessian" uses."""
    if cfg.grid != "hessian":
        return fit_grid(blocks, cfg)
    return grids.mse_grid(
        blocks,
        cfg.bits,
        sym=cfg.sym,
        dtype=cfg.scale_dtype,
        norm=2,
        steps=cfg.mse_steps,
        max_shrink=cfg.mse_max_shrink,
        weight=weight,
    )


def fit_table(blocks: jax.Array, weight: jax.Array, cfg) -> jax.Array:
    """Tables ``[..., K, out]`` of ``blocks [..., n, out]``: {low, 0, high}, or weighted k-means of ``2**bits``."""
    if cfg.levels == "kmeans":
        return kmeans.kmeans_1d(blocks, weight, 2**cfg.bits)
    low, high = jnp.minimum(jnp.min(blocks, axis=-2), 0), jnp.maximum(jnp.max(blocks, axis=-2), 0)
    if cfg.grid == "minmax":
        return jnp.stack([low, jnp.zeros_like(low), high], axis=-2)
    weight = jnp.ones_like(blocks) if cfg.grid == "mse" else jnp.broadcast_to(weight, blocks.shape)
    norm = cfg.mse_norm if cfg.grid == "mse" else 2.0

    def candidate(i, best):
        shrink = 1 - i.astype(jnp.float32) / cfg.mse_steps
        table = jnp.stack([low * shrink, jnp.zeros_like(low), high * shrink], axis=-2)
        miss = jnp.abs(kmeans.pick(table, kmeans.assign(blocks, table)) - blocks) ** norm
        loss = jnp.sum(miss * weight, axis=-2)
        better = loss < best[1]
        return jnp.where(better[..., None, :], table, best[0]), jnp.where(better, loss, best[1])

    start = jnp.stack([low, jnp.zeros_like(low), high], axis=-2), jnp.full(low.shape, jnp.inf, jnp.float32)
    return jax.lax.fori_loop(0, max(1, int(cfg.mse_max_shrink * cfg.mse_steps)), candidate, start)[0]


def stored_table(table: jax.Array, dtype: str) -> jax.Array:
    """``table`` rounded to its storage dtype and back, ascending."""
    return jnp.sort(table.astype(dtype).astype(jnp.float32), axis=-2)


def round_to_grid(row: jax.Array, grid: grids.Grid, bits: int) -> tuple[jax.Array, jax.Array]:
    """Rounded row and its codes for one input ``[out]``."""
    codes = grids.encode(row, grid, bits)
    return grids.decode(codes, grid), codes


def round_to_table(row: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounded row and its codes for one input ``[out]`` and a table ``[K, out]``."""
    codes = kmeans.assign(row[None], table)
    return kmeans.pick(table, codes)[0], codes[0].astype(jnp.float32)


def refit_table(codes: jax.Array, w: jax.Array, h: jax.Array, table: jax.Array, group: int, ridge: float) -> jax.Array:
    """Tables that minimise ``tr((W - Q)ᵀ H (W - Q))`` at fixed codes, solved per output over all its groups at once.

    With ``P`` the one-hot of (group, code), the table of one output solves ``(Pᵀ H P) l = Pᵀ H w``. A small ridge
    towards the old table keeps levels that no code uses where they were.

    Args:
      codes: integer ``[in, out]``.
      w: ``[in, out]``.
      h: damped Hessian ``[in, in]``.
      table: ``[groups, K, out]``.
      group: inputs per table.
      ridge: weight of the old table, relative to the mean diagonal of ``Pᵀ H P``.

    Returns:
      float32 ``[groups, K, out]``.
    """
    groups, count, cols = table.shape
    rows = w.shape[0]
    slot = codes.astype(jnp.int32) + (jnp.arange(rows, dtype=jnp.int32) // group * count)[:, None]
    residual = w - kmeans.pick(table.reshape(groups * count, cols), slot)
    total = groups * count

    def onehot(k):
        return (slot == k).astype(jnp.float32)

    pull = jnp.matmul(h, residual, precision="highest")

    def normal_row(k):
        hp = jnp.matmul(h, onehot(k), precision="highest")
        sums = jax.vmap(lambda c_hp, c_slot: jax.ops.segment_sum(c_hp, c_slot, total), in_axes=1, out_axes=1)
        return sums(hp, slot), jnp.sum(onehot(k) * pull, axis=0)

    matrix, right = jax.lax.map(normal_row, jnp.arange(total))  # [total, total, out], [total, out]
    matrix = jnp.moveaxis(matrix, -1, 0)
    strength = ridge * jnp.trace(matrix, axis1=1, axis2=2) / total + jnp.finfo(jnp.float32).tiny
    matrix = matrix + strength[:, None, None] * jnp.eye(total)[None]
    step = cholesky_solve_many(cholesky_many(matrix), right.T).T
    step = jnp.where(jnp.isfinite(step), step, 0)
    return (table.reshape(total, cols) + step).reshape(groups, count, cols)
