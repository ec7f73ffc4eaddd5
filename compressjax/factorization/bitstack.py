"""BitStack: a weight as a stack of residual blocks, each a sign matrix times a magnitude of low rank.

``R_0 = diag(s) W``; for every level ``S_i = sign(R_i)``, ``u_i v_i`` the best rank-``k`` fit of ``|R_i|``, and
``R_{i+1} = R_i - S_i * (u_i v_i)`` (Wang et al., 2024, arXiv 2410.23918). Any number of leading blocks is a model, so
one decomposition serves every size. ``|R|`` has no negative entry, so its leading pair has none either (Perron) and
holds most of its energy: this is what makes one sign bit and a thin product go far.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.calibration.statistics import Hessian, Moments
from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.factorization.bitstack_scaling import activation_scale
from compressjax.leaf.sign_lowrank import SignLowRank, sign_lowrank, signed
from compressjax.ops import dense, nbits
from compressjax.quantization.rtn import RTN, dense_weight, output_errors, round_groups

_OVERSAMPLING = 8  # more vectors than asked for: the usual margin of subspace iteration


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitStack:
    """Decomposition into residual blocks that can be loaded in any number (arXiv 2410.23918).

    A block costs ``1 + 16 k (in + out) / (in out)`` bits per weight: 1.13 at 4096 x 4096 and the paper's ``rank`` 16,
    but 1.89 at 576 x 576, where a rank of 4 (1.22 bits) does better at equal size.

    Attributes:
      levels: blocks per weight.
      rank: ``k``, at most the smaller side of the weight.
      scale: how inputs are weighted: "rownorm", root of the summed squares of each input over the calibration data
        (plus ``eps``); "rms", the same per token; "mean_abs", mean absolute value; "none". The first two read a
        Hessian's diagonal, the third needs moments only.
      eps: added to the scale, > 0, so that an input that never fires stays divisible.
      svd: "subspace" iteration, started from the level before, or "exact".
      power_steps: rounds of subspace iteration per level.
      factor_dtype: storage dtype of ``u`` and ``v``; residuals are taken against the stored values.
      scale_dtype: storage dtype of the input scale; weights are scaled by the stored values.
    """

    levels: int = 16
    rank: int = 16
    scale: Literal["rownorm", "rms", "mean_abs", "none"] = "rownorm"
    eps: float = 1e-3
    svd: Literal["subspace", "exact"] = "subspace"
    power_steps: int = 4
    factor_dtype: str = "float16"
    scale_dtype: str = "float16"

    def __post_init__(self):
        for field in ("levels", "rank", "power_steps"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"BitStack.{field} must be an integer >= 1, got {value!r}")
        if self.scale not in ("rownorm", "rms", "mean_abs", "none"):
            raise ValueError(f"BitStack.scale must be 'rownorm', 'rms', 'mean_abs' or 'none', got {self.scale!r}")
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"BitStack.eps must be finite and > 0, got {self.eps}")
        if self.svd not in ("subspace", "exact"):
            raise ValueError(f"BitStack.svd must be 'subspace' or 'exact', got {self.svd!r}")
        for field in ("factor_dtype", "scale_dtype"):
            if getattr(self, field) not in ("float16", "bfloat16", "float32"):
                raise ValueError(f"BitStack.{field} must be float16, bfloat16 or float32, got {getattr(self, field)!r}")


def thin_rank(shape: tuple[int, ...]) -> int:
    """A rank that keeps blocks near one bit per weight: a 128th of the smaller side, the paper's 16 from 2048 on."""
    return min(16, max(1, min(shape[-2:]) // 128))


class Factors(NamedTuple):
    """Rank-``k`` fit of a magnitude.

    Attributes:
      u: ``[in, k]``, left vectors times the root of their singular values; the leading column is not negative.
      v: ``[k, out]``, likewise.
      basis: ``[out, k + 8]`` orthonormal, where the next level's iteration starts.
    """

    u: jax.Array
    v: jax.Array
    basis: jax.Array


def first_basis(rank: int, rows: int, cols: int) -> jax.Array:
    """Where subspace iteration starts: the constant vector, which is near every magnitude's leading one, and noise."""
    width = min(rank + _OVERSAMPLING, rows, cols)
    return jax.random.normal(jax.random.key(0), (cols, width)).at[:, 0].set(1.0)


def magnitude_factors(magnitude: jax.Array, rank: int, basis: jax.Array, power_steps: int) -> Factors:
    """Best rank-``k`` fit of a nonnegative matrix, nearly, by subspace iteration: ``O(in out k)``.

    Args:
      magnitude: ``[in, out]``.
      rank: ``k``.
      basis: ``[out, >= k]`` to start from.
      power_steps: rounds of multiplying and orthonormalising.
    """

    def step(_, basis):
        left, _ = jnp.linalg.qr(magnitude @ basis)
        return jnp.linalg.qr(magnitude.T @ left)[0]

    left, _ = jnp.linalg.qr(magnitude @ jax.lax.fori_loop(0, power_steps, step, basis))
    inner, values, right = jnp.linalg.svd(left.T @ magnitude, full_matrices=False)
    return _halved(left @ inner, values, right, rank)._replace(basis=right.T)


def exact_factors(magnitude: jax.Array, rank: int) -> Factors:
    """The best rank-``k`` fit by a full singular value decomposition."""
    left, values, right = jnp.linalg.svd(magnitude, full_matrices=False)
    return _halved(left, values, right, rank)


def _halved(left, values, right, rank):
    """Each side gets the root of the singular values, and pairs the sign that makes the left one mostly positive."""
    left, right = left[:, :rank], right[:rank]
    root = jnp.sqrt(values[:rank])
    flip = jnp.where(jnp.sum(left, axis=0) < 0, -root, root)
    return Factors(left * flip[None], flip[:, None] * right, right.T)


def bitstack(w: jax.Array, cfg: BitStack, scale: jax.Array | None = None) -> tuple[SignLowRank, jax.Array]:
    """Decomposes one weight.

    Args:
      w: ``[in, out]``, floating point.
      cfg: the options; ``cfg.scale`` is not read here.
      scale: positive ``[in]``, how much each input weighs, or None for all alike. It is stored with the weight; a
        scale that has been folded into neighbouring weights (``fold_scales``) is not given here.

    Returns:
      The leaf, and the residual ``diag(s) W - sum of its blocks``, float32 ``[in, out]``. The stored, rounded factors
      are what is subtracted, so later levels repair the rounding of earlier ones; the reference implementation
      subtracts the unrounded product.

    Raises:
      ValueError: a rank above the weight's smaller side, or a scale of another shape.
    """
    rows, cols = w.shape
    if cfg.rank > min(rows, cols):
        raise ValueError(f"BitStack.rank must be at most {min(rows, cols)} for a weight {w.shape}, got {cfg.rank}")
    if scale is not None and scale.shape != (rows,):
        raise ValueError(f"scale must have shape {(rows,)}, got {scale.shape}")
    w = w.astype(jnp.float32)
    stored = None if scale is None else scale.astype(cfg.scale_dtype)
    start = w if stored is None else w * stored.astype(jnp.float32)[:, None]

    def level(carry, _):
        residual, basis = carry
        plus = residual >= 0
        magnitude = jnp.abs(residual)
        if cfg.svd == "exact":
            found = exact_factors(magnitude, cfg.rank)._replace(basis=basis)
        else:
            found = magnitude_factors(magnitude, cfg.rank, basis, cfg.power_steps)
        u, v = found.u.astype(cfg.factor_dtype), found.v.astype(cfg.factor_dtype)
        return (residual - signed(plus, u, v), found.basis), (plus, u, v)

    carry = (start, first_basis(cfg.rank, rows, cols))
    (residual, _), (plus, u, v) = jax.lax.scan(level, carry, length=cfg.levels)
    return sign_lowrank(plus, u, v, stored), residual


@leaf_rule.register(BitStack)
def _(w, cfg, stats, key):
    w = dense_weight(w, cfg)
    scale = None if cfg.scale == "none" else activation_scale(stats, cfg.scale, cfg.eps)
    leaf, _ = bitstack(w, cfg, scale)
    bits = min(8, max(2, nbits(leaf) // w.size))
    group = min(64, w.shape[0])
    plain = round_groups(w, group, RTN(bits=bits, group=group))[1]
    error, rounding_error, energy = output_errors(w, dense(leaf), plain, None if stats is None else stats.xtx)
    dead = jnp.int32(0)
    if stats is not None and stats.xtx is not None:
        dead = jnp.sum(jnp.diagonal(stats.xtx) == 0, dtype=jnp.int32)
    info = MatrixInfo(
        error=error,
        rounding_error=rounding_error,
        energy=energy,
        damp=jnp.float32(0),
        dead=dead,
        fallback=jnp.bool_(False),
    )
    return leaf, info


@statistic_for.register(BitStack)
def _(cfg):
    if cfg.scale == "none":
        return None
    return Moments() if cfg.scale == "mean_abs" else Hessian()
