"""CompactifAI: weights of attention and MLPs as matrix product operators, whose bonds set how much is kept.

Both sides of a matrix are cut into factors, the axes interleaved, and successive truncated SVDs make a core of each
pair (Tomut et al., 2024, arXiv 2401.14109). How hard each layer may be compressed is measured one layer at a time
(``allocation.profile_layers``), and a short retraining heals the whole (``training.heal``). The authors published no
code. Without healing a plain SVD of as many numbers loses less on most weights of language models, and
``MatrixInfo.rounding_error`` says how much less; ``site_dims.search_dims`` compares cuts, the plain SVD among them.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.factorization.factors import DTYPES
from compressjax.factorization.quantized_cores import check_core_method, compressed_core
from compressjax.factorization.site_dims import bonds_for, dims_for
from compressjax.leaf.tensor_train import TensorTrain, tensor_train
from compressjax.numerics.tensor_train import balance, count_numbers, decompose
from compressjax.numerics.whitened_svd import scaled_fit
from compressjax.ops import dense
from compressjax.quantization.rtn import dense_weight, output_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompactifAI:
    """A weight as a matrix product operator.

    Attributes:
      sites: number of cores; with two, the decomposition is the best there is.
      max_bond: of every bond, or one each; None for what ``param_ratio`` says.
      param_ratio: numbers in the cores over numbers in the weight, an upper bound.
      in_dims, out_dims: factors of in and out, one per site; None for the most equal ones.
      pad: allow factors that multiply to more than the weight has, which is then filled up with zeros.
      gauge: "balanced": every bond's singular values split evenly between its cores, for sixteen bits, shared grids and
        healing; "left": left-canonical, all but the last core orthonormal.
      dtype: of the cores.
      cores: a method without statistics that compresses every core, such as RTN, or None.
    """

    sites: int = 2
    max_bond: int | tuple[int, ...] | None = None
    param_ratio: float = 0.5
    in_dims: tuple[int, ...] | None = None
    out_dims: tuple[int, ...] | None = None
    pad: bool = False
    gauge: Literal["balanced", "left"] = "balanced"
    dtype: str = "float16"
    cores: Any = None

    def __post_init__(self):
        if isinstance(self.sites, bool) or not isinstance(self.sites, int) or self.sites < 1:
            raise ValueError(f"CompactifAI.sites must be an integer >= 1, got {self.sites!r}")
        for field in ("max_bond", "in_dims", "out_dims"):
            given = getattr(self, field)
            numbers = given if isinstance(given, tuple) else () if given is None else (given,)
            if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
                raise ValueError(f"CompactifAI.{field} must hold integers >= 1, got {given!r}")
        if not self.param_ratio > 0:
            raise ValueError(f"CompactifAI.param_ratio must be > 0, got {self.param_ratio}")
        dims = self.in_dims, self.out_dims
        if dims != (None, None) and (None in dims or len(dims[0] or ()) != len(dims[1] or ())):
            raise ValueError(f"CompactifAI.in_dims and out_dims must be as many factors, got {dims[0]} and {dims[1]}")
        if self.gauge not in ("balanced", "left"):
            raise ValueError(f"CompactifAI.gauge must be 'balanced' or 'left', got {self.gauge!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"CompactifAI.dtype must be one of {DTYPES}, got {self.dtype!r}")
        if self.cores is not None:
            check_core_method(self.cores, "CompactifAI.cores")


def compactifai(w: jax.Array, cfg: CompactifAI) -> TensorTrain:
    """One weight as a matrix product operator.

    ``|W - Ŵ|²`` is at most the sum over bonds of the squared singular values that were cut, and equal to it with two
    sites.

    Args:
      w: ``[in, out]``, floating point.
      cfg: the options.

    Raises:
      ValueError: factors or bonds that do not fit the shape.
      TypeError: for a compressed weight.

    >>> from compressjax.leaf.tensor_train import bonds_of
    >>> kron = jnp.kron(jnp.arange(6.0).reshape(2, 3), jnp.ones((4, 5)))
    >>> leaf = compactifai(kron, CompactifAI(in_dims=(2, 4), out_dims=(3, 5), max_bond=1))
    >>> bonds_of(leaf), bool(jnp.allclose(dense(leaf), kron, atol=1e-2))
    ((1,), True)
    """
    w = dense_weight(w, cfg)
    (rows, cols), (in_dims, out_dims) = w.shape, dims_for(cfg, *w.shape)
    fill = math.prod(in_dims) - rows, math.prod(out_dims) - cols
    full = jnp.pad(w, ((0, fill[0]), (0, fill[1]))) if any(fill) else w
    train = decompose(full, in_dims, out_dims, bonds_for(cfg, rows, cols))
    cores = balance(train, in_dims, out_dims) if cfg.gauge == "balanced" else train.cores
    return tensor_train([_stored(core, cfg) for core in cores], in_dims, out_dims, (rows, cols))


def _stored(core, cfg):
    return core.astype(cfg.dtype) if cfg.cores is None else compressed_core(core, cfg.cores)


@leaf_rule.register(CompactifAI)
def _(w, cfg, stats, key):
    leaf = compactifai(w, cfg)
    w, h = dense_weight(w, cfg), None if stats is None else stats.xtx
    # Beside it the plain SVD of the largest rank with no more numbers, but for rank 1.
    numbers = count_numbers(leaf.in_dims, leaf.out_dims, bonds_for(cfg, *w.shape))
    rank = min(*w.shape, max(1, numbers // sum(w.shape)))
    if h is None:
        plain_error = jnp.sum(jnp.linalg.svd(w, compute_uv=False)[rank:] ** 2)
        error, _, energy = output_errors(w, dense(leaf), w, None)
    else:
        plain = scaled_fit(w, None, rank)
        product = jnp.matmul(plain.left, plain.right, precision="highest")
        error, plain_error, energy = output_errors(w, dense(leaf), product, h)
    return leaf, MatrixInfo(
        error=error,
        rounding_error=plain_error,
        energy=energy,
        damp=jnp.float32(0),
        dead=jnp.int32(0) if h is None else jnp.sum(jnp.diagonal(h) == 0, dtype=jnp.int32),
        fallback=jnp.bool_(False),
    )


@statistic_for.register(CompactifAI)
def _(cfg):
    return None
