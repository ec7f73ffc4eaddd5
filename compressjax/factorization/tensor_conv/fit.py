"""A trained dense kernel put into a tensor format afterwards: the baseline of training in the format."""

import functools
import math

import jax
import jax.numpy as jnp

from compressjax.factorization.tensor_conv.config import TensorConv
from compressjax.factorization.tensor_conv.factors import Factors, balance_conv
from compressjax.numerics.linalg import cholesky_many, cholesky_solve_many

_RIDGE = 1e-6  # of the mean of a Gram matrix's diagonal: products may be nearly alike


def fit_conv(
    kernel: jax.Array, cfg: TensorConv, *, bias: jax.Array | None = None, sweeps: int = 60, starts: int = 3
) -> Factors:
    """Factors of a format whose kernel is near a given one.

    Kernels that are matrices per filter are cut by their singular values, which is best. Others go through alternating
    least squares from random starts, the best start of each filter being kept (Carroll and Chang, 1970; Harshman,
    1970), or are written out exactly where the rank allows it. "tucker2" has the leading directions of inputs and
    outputs in turn (higher-order orthogonal iteration; De Lathauwer et al., 2000).

    Args:
      kernel: ``[*k, in, out]``, float32 or wider.
      cfg: the format; ``format="dense"`` gives the kernel back.
      bias: ``[out]``, passed through.
      sweeps: rounds of least squares.
      starts: random starts.

    Returns:
      Parameters by name, scales balanced; the same on every call.

    Raises:
      ValueError: a kernel of another geometry, a bias that is missing or not asked for, no sweep or no start.
    """
    if kernel.ndim != len(cfg.kernel_size) + 2 or (*kernel.shape[:-2], kernel.shape[-1]) != (
        *cfg.kernel_size,
        cfg.features,
    ):
        raise ValueError(f"kernel must be {(*cfg.kernel_size, 'in', cfg.features)}, got {kernel.shape}")
    if (bias is not None) != cfg.use_bias:
        raise ValueError(f"bias must be given exactly when use_bias is set, got use_bias={cfg.use_bias}")
    if sweeps < 1 or starts < 1:
        raise ValueError(f"sweeps and starts must be >= 1, got {sweeps} and {starts}")
    p = _fit(kernel, cfg, sweeps, starts)
    return p if bias is None else {**p, "bias": bias}


@functools.partial(jax.jit, static_argnames=("cfg", "sweeps", "starts"))
def _fit(kernel, cfg, sweeps, starts):
    axes = len(cfg.kernel_size)
    names = [f"axis{i}" for i in range(axes)]
    cin, out = kernel.shape[-2:]
    if cfg.format == "dense":
        return {"kernel": kernel}
    if cfg.format == "tucker2":
        return _tucker2(kernel, cfg.rank, sweeps)
    if cfg.format == "filterwise":
        tensors = jnp.moveaxis(kernel, (-1, -2), (0, 1))  # [out, in, *k]
        found = _products(tensors, cfg.rank, sweeps, starts)
        shaped = [jnp.moveaxis(f, 1, 0) for f in found]
        return balance_conv(dict(zip(["channel", *names], shaped, strict=True)), cfg)
    if cfg.format == "channelwise":
        tensors = jnp.moveaxis(kernel, (-2, -1), (0, 1)).reshape(cin * out, *cfg.kernel_size)
        found = _products(tensors, cfg.rank, sweeps, starts)
        shaped = [jnp.moveaxis(f, 1, 0).reshape(f.shape[1], cin, out, cfg.rank) for f in found]
        return balance_conv(dict(zip(names, shaped, strict=True)), cfg)
    tensors = jnp.moveaxis(kernel, -2, 0)[None]  # [1, in, *k, out]
    *shaped, last = (f[0] for f in _products(tensors, cfg.rank, sweeps, starts))
    return balance_conv({**dict(zip(["channel", *names], shaped, strict=True)), "out": last.T}, cfg)


def _products(tensors, rank, sweeps, starts):
    """Factors ``[G, d_i, R]`` of many tensors ``[G, d_1, ..., d_n]``."""
    dims = tensors.shape[1:]
    if len(dims) == 1:
        return (_widened(tensors[..., None], rank),)
    if len(dims) == 2:
        return _matrices(tensors, rank)
    widest = max(range(len(dims)), key=dims.__getitem__)
    others = [i for i in range(len(dims)) if i != widest]
    if rank >= math.prod(dims[i] for i in others):
        return _written_out(tensors, rank, widest, others)
    return _alternating(tensors, rank, sweeps, starts)


def _widened(factor, rank):
    return jnp.pad(factor, [(0, 0)] * (factor.ndim - 1) + [(0, rank - factor.shape[-1])])


def _matrices(tensors, rank):
    def one(matrix):
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        kept = min(rank, len(values))
        root = jnp.sqrt(values[None, :kept])
        return _widened(left[:, :kept] * root, rank), _widened(right[:kept].T * root, rank)

    # One at a time: batched LAPACK calls can wait for each other on virtual devices.
    return jax.lax.map(one, tensors)


def _written_out(tensors, rank, widest, others):
    """Every fibre along the widest axis as a product of its own."""
    dims = tensors.shape[1:]
    count = math.prod(dims[i] for i in others)
    fibres = jnp.moveaxis(tensors, widest + 1, 1).reshape(len(tensors), dims[widest], count)
    places = jnp.unravel_index(jnp.arange(count), tuple(dims[i] for i in others))
    found = {widest: _widened(fibres, rank)}
    for i, place in zip(others, places, strict=True):
        one = jax.nn.one_hot(place, dims[i], axis=0, dtype=tensors.dtype)
        found[i] = jnp.broadcast_to(_widened(one, rank)[None], (len(tensors), dims[i], rank))
    return tuple(found[i] for i in range(len(dims)))


def _alternating(tensors, rank, sweeps, starts):
    dims = tensors.shape[1:]
    modes = range(len(dims))
    letters = "abcde"[: len(dims)]
    keys = jax.random.split(jax.random.key(0), len(dims))
    first = tuple(
        jax.random.normal(k, (starts, len(tensors), d, rank), tensors.dtype) for k, d in zip(keys, dims, strict=True)
    )
    identity = jnp.eye(rank, dtype=tensors.dtype)[None, None]

    def update(factors, mode):
        others = [i for i in modes if i != mode]
        seen = jnp.einsum(
            f"g{letters},{','.join(f'sg{letters[i]}r' for i in others)}->sg{letters[mode]}r",
            tensors,
            *(factors[i] for i in others),
            precision="highest",
        )
        grams = [jnp.einsum("sgdr,sgdq->sgrq", factors[i], factors[i], precision="highest") for i in others]
        gram = functools.reduce(jnp.multiply, grams)
        mean = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / rank
        lower = cholesky_many(gram + (_RIDGE * mean + jnp.finfo(gram.dtype).tiny) * identity)
        return cholesky_solve_many(lower[:, :, None], seen)

    def sweep(_, factors):
        for mode in modes:
            new = update(factors, mode)
            if mode != len(dims) - 1:  # the last factor carries the scale
                size = jnp.linalg.norm(new, axis=-2, keepdims=True)
                new = new / jnp.where(size > 0, size, 1)
            factors = (*factors[:mode], new, *factors[mode + 1 :])
        return factors

    found = jax.lax.fori_loop(0, sweeps, sweep, first)
    made = jnp.einsum(f"{','.join(f'sg{a}r' for a in letters)}->sg{letters}", *found, precision="highest")
    error = jnp.sum((made - tensors[None]) ** 2, axis=tuple(range(2, 2 + len(dims))))
    best = jnp.argmin(error, axis=0)
    return tuple(jnp.take_along_axis(f, best[None, :, None, None], axis=0)[0] for f in found)


def _tucker2(kernel, rank, sweeps):
    spatial, (cin, out) = kernel.shape[:-2], kernel.shape[-2:]
    flat = kernel.reshape(-1, cin, out)

    def leading(gram):
        return _widened(jnp.linalg.eigh(gram)[1][:, ::-1][:, :rank], rank)

    def step(_, sides):
        _, right = sides
        seen = jnp.einsum("kco,os->kcs", flat, right, precision="highest")
        left = leading(jnp.einsum("kcs,kds->cd", seen, seen, precision="highest"))
        seen = jnp.einsum("kco,cr->kro", flat, left, precision="highest")
        return left, leading(jnp.einsum("kro,krp->op", seen, seen, precision="highest"))

    start = leading(jnp.einsum("kco,kcp->op", flat, flat, precision="highest"))
    left, right = jax.lax.fori_loop(0, sweeps, step, (jnp.zeros((cin, rank), kernel.dtype), start))
    core = jnp.einsum("kco,cr,os->krs", flat, left, right, precision="highest")
    return {"channel": left, "core": core.reshape(*spatial, rank, rank), "out": right.T}
