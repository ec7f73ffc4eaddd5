"""The factors of a kernel: their shapes, how training starts, the kernel they make, and their scales."""

import math

import jax
import jax.numpy as jnp

from compressjax.factorization.tensor_conv.config import TensorConv

_AXES = "xyz"
_DELTA_NOISE = 0.1  # standard deviation of the noise on filters that start as the identity

Factors = dict[str, jax.Array]


def factor_shapes(cfg: TensorConv, in_features: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, bias last.

    >>> factor_shapes(TensorConv(features=8, kernel_size=(3, 5), rank=2), 4)
    {'channel': (4, 8, 2), 'axis0': (3, 8, 2), 'axis1': (5, 8, 2), 'bias': (8,)}

    Raises:
      ValueError: ``in_features`` below 1.
    """
    if in_features < 1:
        raise ValueError(f"in_features must be >= 1, got {in_features}")
    cin, out, rank = in_features, cfg.features, cfg.rank
    shared = {"dense": (), "filterwise": (out, rank), "channelwise": (cin, out, rank), "cp": (rank,), "tucker2": ()}
    shapes: dict[str, tuple[int, ...]] = {}
    if cfg.format == "dense":
        shapes["kernel"] = (*cfg.kernel_size, cin, out)
    elif cfg.format == "filterwise":
        shapes["channel"] = (cin, out, rank)
    elif cfg.format in ("cp", "tucker2"):
        shapes["channel"] = (cin, rank)
    if cfg.format == "tucker2":
        shapes["core"] = (*cfg.kernel_size, rank, rank)
    elif cfg.format != "dense":
        shapes.update({f"axis{i}": (k, *shared[cfg.format]) for i, k in enumerate(cfg.kernel_size)})
    if cfg.format in ("cp", "tucker2"):
        shapes["out"] = (rank, out)
    if cfg.use_bias:
        shapes["bias"] = (out,)
    return shapes


def kernel_equation(cfg: TensorConv) -> str:
    """How the factors, in the order of :func:`factor_shapes`, make up the kernel; an einsum.

    >>> kernel_equation(TensorConv(kernel_size=(3, 3)))
    'cor,xor,yor->xyco'
    """
    axes = _AXES[: len(cfg.kernel_size)]
    terms = {
        "dense": [f"{axes}co"],
        "filterwise": ["cor", *(f"{a}or" for a in axes)],
        "channelwise": [f"{a}cor" for a in axes],
        "cp": ["cr", *(f"{a}r" for a in axes), "ro"],
        "tucker2": ["cr", f"{axes}rs", "so"],
    }[cfg.format]
    return f"{','.join(terms)}->{axes}co"


def conv_kernel(p: Factors, cfg: TensorConv) -> jax.Array:
    """The kernel ``[*k, in, out]`` that the factors stand for, in their dtype."""
    names = [name for name in factor_shapes(cfg, 1) if name != "bias"]
    if set(names) != set(p) - {"bias"}:
        raise ValueError(f"a {cfg.format} kernel has the factors {names}, got {sorted(p)}")
    return jnp.einsum(kernel_equation(cfg), *(p[name] for name in names), precision="highest")


def init_conv(key: jax.Array, in_features: int, cfg: TensorConv) -> Factors:
    """Factors whose kernel has the variance of He's start, ``2 / (in Πk)``, and a bias of zeros.

    n independent factors of standard deviation σ give ``Var K = R σ^{2n}`` (``R² σ⁶`` for "tucker2"), so
    ``σ = (2 / (R in Πk))^{1/(2n)}``. With "delta" all of a kernel's energy lies at its centre to begin with, where it
    is that of a 1x1 convolution. He et al., 2015, arXiv 1502.01852.

    Args:
      key: randomness.
      in_features: input channels.
      cfg: the layer.

    Returns:
      float32 arrays by name.
    """
    shapes = factor_shapes(cfg, in_features)
    names = [name for name in shapes if name != "bias"]
    sums = {"dense": 1, "tucker2": cfg.rank**2}.get(cfg.format, cfg.rank)
    spread = cfg.start == "gaussian"
    taps = math.prod(cfg.kernel_size) if spread else math.prod(1 + k * _DELTA_NOISE**2 for k in cfg.kernel_size)
    random = [name for name in names if spread or not name.startswith("axis")]
    sigma = (2.0 / (sums * in_features * taps)) ** (1 / (2 * len(random)))
    p: Factors = {}
    for name, part in zip(names, jax.random.split(key, len(names)), strict=True):
        noise = jax.random.normal(part, shapes[name], jnp.float32)
        if name in random:
            p[name] = sigma * noise
        else:
            p[name] = (_DELTA_NOISE * noise).at[(shapes[name][0] - 1) // 2].add(1.0)
    if cfg.use_bias:
        p["bias"] = jnp.zeros(shapes["bias"], jnp.float32)
    return p


def balance_conv(p: Factors, cfg: TensorConv) -> Factors:
    """The same kernel from factors of equal norm: each product's scale is shared out evenly between its factors.

    Training lets one factor grow while another shrinks, which a common step size then serves badly. Products with a
    zero factor stay as they are, and so do "dense" and "tucker2" kernels.
    """
    if cfg.format in ("dense", "tucker2"):
        return p
    rank_last = {name: jnp.moveaxis(p[name], 0, -1) if name == "out" else p[name] for name in p if name != "bias"}
    axes = {name: (0,) if value.ndim > 1 else () for name, value in rank_last.items()}
    norms = {name: jnp.sqrt(jnp.sum(value**2, axis=axes[name], keepdims=True)) for name, value in rank_last.items()}
    product = math.prod(norms.values(), start=jnp.float32(1).astype(p[next(iter(norms))].dtype))
    level = jnp.where(product > 0, product, 1) ** (1 / len(norms))
    balanced = {}
    for name, value in rank_last.items():
        scale = jnp.where(product > 0, level / jnp.where(norms[name] > 0, norms[name], 1), 1)
        balanced[name] = jnp.moveaxis(value * scale, -1, 0) if name == "out" else value * scale
    return {name: balanced.get(name, value) for name, value in p.items()}
