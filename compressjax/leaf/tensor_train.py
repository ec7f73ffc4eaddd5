"""A weight that is a chain of small cores: a tensor train, or matrix product operator.

``w[(i_1 ... i_N), (o_1 ... o_N)] = sum over bonds of prod_k core_k[a_k, i_k, o_k, a_{k+1}]``; see
``numerics.tensor_train``.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf(static=("in_dims", "out_dims", "shape"))
class TensorTrain:
    """Cores of N sites, stacked layers leading; each core is an array or a compressed leaf of its own.

    Attributes:
      cores: core k ``[*lead, a_k i_k, o_k a_{k+1}]``, with ``a_1 = a_{N+1} = 1``.
      in_dims: ``(i_1, ..., i_N)``, whose product is at least in.
      out_dims: ``(o_1, ..., o_N)``, whose product is at least out.
      shape: ``(in, out)``; rows and columns of the product past it are padding.
    """

    cores: tuple[Any, ...]
    in_dims: tuple[int, ...]
    out_dims: tuple[int, ...]
    shape: tuple[int, int]


def tensor_train(
    cores: Sequence[Any],
    in_dims: Sequence[int],
    out_dims: Sequence[int],
    shape: tuple[int, int] | None = None,
) -> TensorTrain:
    """Builds a :class:`TensorTrain` leaf.

    Args:
      cores: arrays or leaves, ``[*lead, a_k i_k, o_k a_{k+1}]``.
      in_dims, out_dims: a factor of either side per core.
      shape: ``(in, out)`` where the factors multiply to more; None for their products.

    Raises:
      ValueError: when lists differ in length, cores do not fit each other, or the shape is larger than the products.
    """
    in_dims, out_dims = tuple(in_dims), tuple(out_dims)
    if not cores or not len(cores) == len(in_dims) == len(out_dims):
        raise ValueError(f"cores, in_dims and out_dims must be as many, got {len(cores)}, {in_dims} and {out_dims}")
    if min(*in_dims, *out_dims) < 1:
        raise ValueError(f"in_dims and out_dims must be >= 1, got {in_dims} and {out_dims}")
    shapes = [logical_shape(core) for core in cores]
    bond = 1
    for k, (s, i, o) in enumerate(zip(shapes, in_dims, out_dims, strict=True)):
        if s[:-2] != shapes[0][:-2] or s[-2] != bond * i or s[-1] % o:
            raise ValueError(
                f"core {k} must be {(*shapes[0][:-2], bond * i)} by a multiple of {o} for bond {bond} before it and "
                f"factors {i} and {o}, got {s}"
            )
        bond = s[-1] // o
    if bond != 1:
        raise ValueError(f"the last core must end in {out_dims[-1]} columns, got {shapes[-1]}")
    full = (math.prod(in_dims), math.prod(out_dims))
    shape = full if shape is None else (shape[0], shape[1])
    if shape[0] > full[0] or shape[1] > full[1] or min(shape) < 1:
        raise ValueError(f"shape must be at least (1, 1) and at most {full}, got {shape}")
    return TensorTrain(cores=tuple(cores), in_dims=in_dims, out_dims=out_dims, shape=shape)


def bonds_of(w: TensorTrain) -> tuple[int, ...]:
    """The N - 1 bonds between the cores."""
    return tuple(logical_shape(core)[-1] // o for core, o in zip(w.cores[:-1], w.out_dims[:-1], strict=True))


def contracts(w: TensorTrain, rows: int) -> bool:
    """Whether a product with so many rows is cheaper core by core than with the dense weight built once.

    Counted in multiplications: ``rows (o_1 .. o_{k-1}) (a_k i_k o_k a_{k+1}) (i_{k+1} .. i_N)`` per core, against
    ``(i_1 o_1) .. (i_{k-1} o_{k-1}) (a_k i_k o_k a_{k+1})`` per core and ``rows in out``.
    """
    by_core = to_build = 0
    for k, core in enumerate(w.cores):
        held = math.prod(logical_shape(core)[-2:])
        before_in, before_out = math.prod(w.in_dims[:k]), math.prod(w.out_dims[:k])
        by_core += before_out * held * math.prod(w.in_dims[k + 1 :])
        to_build += before_in * before_out * held if k else 0
    return rows * by_core <= to_build + rows * math.prod(w.in_dims) * math.prod(w.out_dims)


@dense.register(TensorTrain)
def _dense(w: TensorTrain):
    *lead, _, _ = logical_shape(w)
    rows = cols = bond = 1
    built = jnp.ones((*lead, 1, 1), jnp.float32)  # [*lead, rows cols, bond]
    for core, i, o in zip(w.cores, w.in_dims, w.out_dims, strict=True):
        matrix = dense(core).astype(jnp.float32).reshape(*lead, bond, -1)
        bond = matrix.shape[-1] // (i * o)
        wide = jnp.matmul(built, matrix, precision="highest").reshape(*lead, rows, cols, i, o * bond)
        rows, cols = rows * i, cols * o
        built = jnp.swapaxes(wide, -2, -3).reshape(*lead, rows * cols, bond)
    return built.reshape(*lead, rows, cols)[..., : w.shape[0], : w.shape[1]]


@logical_shape.register(TensorTrain)
def _shape(w: TensorTrain):
    return (*logical_shape(w.cores[0])[:-2], *w.shape)


@matmul.register(TensorTrain)
def _matmul(x, w: TensorTrain):
    flat = x.reshape(-1, x.shape[-1])
    y = _forward(flat, w) if contracts(w, flat.shape[0]) else matmul(flat, dense(w))
    return y.reshape(*x.shape[:-1], w.shape[1])


def _forward(x, w):
    """``x [m, in]`` through the cores from the first to the last."""
    state = _padded(x, math.prod(w.in_dims))[:, None]  # [m o_1 .. o_{k-1}, a_k, i_k .. i_N]
    for core, i, o in zip(w.cores, w.in_dims, w.out_dims, strict=True):
        rows, bond, rest = state.shape[0], state.shape[1], state.shape[2] // i
        read = state.reshape(rows, bond * i, rest).swapaxes(1, 2)
        put = matmul(read, core).reshape(rows, rest, o, -1)
        state = put.transpose(0, 2, 3, 1).reshape(rows * o, -1, rest)
    return state.reshape(x.shape[0], -1)[:, : w.shape[1]]


@matmul_t.register(TensorTrain)
def _matmul_t(x, w: TensorTrain):
    flat = x.reshape(-1, x.shape[-1])
    y = _backward(flat, w) if contracts(w, flat.shape[0]) else matmul_t(flat, dense(w))
    return y.reshape(*x.shape[:-1], w.shape[0])


def _backward(x, w):
    """``x [m, out]`` through the transposed cores from the last to the first."""
    state = _padded(x, math.prod(w.out_dims))[..., None]  # [m, o_1 .. o_k a_{k+1}, i_{k+1} .. i_N]
    for core, i in zip(w.cores[::-1], w.in_dims[::-1], strict=True):
        width = logical_shape(core)[-1]
        rows, outer, inner = state.shape[0], state.shape[1] // width, state.shape[2]
        read = state.reshape(rows, outer, width, inner).swapaxes(2, 3)
        put = matmul_t(read, core).reshape(rows, outer, inner, -1, i)
        state = put.transpose(0, 1, 3, 4, 2).reshape(rows, -1, i * inner)
    return state.reshape(x.shape[0], -1)[:, : w.shape[0]]


def _padded(x, width):
    return x if x.shape[1] == width else jnp.pad(x, ((0, 0), (0, width - x.shape[1])))


@take.register(TensorTrain)
def _take(w: TensorTrain, ids):
    flat = ids.reshape(-1)
    digits = jnp.unravel_index(flat, w.in_dims)
    state = jnp.ones((flat.shape[0], 1, 1), jnp.float32)  # [ids, o_1 .. o_{k-1}, a_k]
    for core, i, o, digit in zip(w.cores, w.in_dims, w.out_dims, digits, strict=True):
        bond = state.shape[-1]
        own = take(core, jnp.arange(bond, dtype=digit.dtype)[None] * i + digit[:, None]).astype(jnp.float32)
        state = jnp.matmul(state, own, precision="highest")
        state = state.reshape(flat.shape[0], state.shape[1] * o, -1)
    return state.reshape(*ids.shape, -1)[..., : w.shape[1]]
