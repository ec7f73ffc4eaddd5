"""Uniform and sparse leaves as something to train: real weights, scales and zeros behind a rounding with a gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.dispatch import verb
from compressjax.leaf.affine import Affine, pack_affine, unpack_zeros
from compressjax.leaf.group_sparse import (
    GroupSparse,
    kept_groups,
    pack_group_sparse,
    places,
    stored_groups,
)
from compressjax.leaf.n_m import NMSparse, spread, unpack_positions
from compressjax.numerics import grids
from compressjax.ops import dense


class FakeGroups(NamedTuple):
    """The trainable arrays of one matrix, float32.

    Attributes:
      w: ``[in, out]``; entries that the mask drops mean nothing.
      scale: ``[groups, out]``.
      zero: ``[groups, out]``, real while it trains; None when it is ``2**(bits-1)`` for good.
    """

    w: jax.Array
    scale: jax.Array
    zero: jax.Array | None


class FakeKind(NamedTuple):
    """What does not train; hashable.

    Attributes:
      bits: code width.
      group: inputs per scale.
      scale_dtype: storage dtype of the scale.
      integer_zero: whether zeros are rounded.
    """

    bits: int
    group: int
    scale_dtype: str
    integer_zero: bool


@verb(on="w")
def to_fake(w: Any) -> tuple[FakeGroups, jax.Array | None, FakeKind]:
    """The trainable arrays of an unstacked leaf, the bool mask ``[in, out]`` of what it stores (None for all), and
    the rest; ``fake_weight`` of them is the leaf's dense weight, bit for bit.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="w")
def from_fake(w: Any, fake: FakeGroups) -> Any:
    """The leaf ``w`` with codes, scales and zeros as the trained arrays say; same structure and size."""
    raise NotImplementedError("run by the rule of its argument's type")


def _raw(w, scale, zero, integer_zero):
    """Codes before clipping. Integer zeros are added after rounding, as ``grids.encode`` does."""
    return jnp.round(w / scale) + jnp.round(zero) if integer_zero else jnp.round(w / scale + zero)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def fake_round(w: jax.Array, scale: jax.Array, zero: jax.Array, bits: int, integer_zero: bool = True) -> jax.Array:
    """``s (clip(round(w/s) + round(z), 0, 2^b - 1) - round(z))`` with straight-through gradients.

    Rounding passes gradients as if it were not there. Inside the range that gives ``d/dw = 1``,
    ``d/ds = round(w/s) - w/s`` (the step-size gradient of LSQ, Esser et al., 2020, arXiv 1902.08153), ``d/dz = 0``;
    clipped low ``0``, ``-z``, ``-s``; clipped high ``0``, ``2^b - 1 - z``, ``-s``.

    Args:
      w: float32 ``[..., n, out]``.
      scale, zero: ``[..., 1, out]``.
      bits: code width.
      integer_zero: False leaves ``z`` real: the code is then ``round(w/s + z)``.
    """
    offset = jnp.round(zero) if integer_zero else zero
    return scale * (jnp.clip(_raw(w, scale, zero, integer_zero), 0, 2**bits - 1) - offset)


def _forward(w, scale, zero, bits, integer_zero):
    return fake_round(w, scale, zero, bits, integer_zero), (w, scale, zero)


def _backward(bits, integer_zero, saved, ct):
    w, scale, zero = saved
    raw, offset, top = _raw(w, scale, zero, integer_zero), jnp.round(zero) if integer_zero else zero, 2**bits - 1
    inside = (raw >= 0) & (raw <= top)
    by_scale = jnp.clip(raw, 0, top) - offset - jnp.where(inside, w / scale, 0)
    return (
        jnp.where(inside, ct, 0),
        jnp.sum(ct * by_scale, axis=-2, keepdims=True),
        jnp.sum(jnp.where(inside, 0, -scale * ct), axis=-2, keepdims=True),
    )


fake_round.defvjp(_forward, _backward)


def _stored_scale(scale, dtype):
    """The scale at its storage precision, with the gradient of the float32 one."""
    return scale + jax.lax.stop_gradient(grids.stored(scale, dtype) - scale)


def _wide(fake: FakeGroups, kind: FakeKind):
    """Weights, scales and zeros in groups ``[groups, group or 1, out]``."""
    scale = _stored_scale(fake.scale, kind.scale_dtype)
    zero = jnp.full_like(scale, 2 ** (kind.bits - 1)) if fake.zero is None else fake.zero
    return grids.grouped(fake.w, kind.group), scale[:, None], zero[:, None]


def fake_weight(fake: FakeGroups, mask: jax.Array | None, kind: FakeKind) -> jax.Array:
    """The weight ``[in, out]`` that the stored leaf will decode to, differentiable in the trainable arrays.

    The mask comes after the rounding: a rounded zero would not undo what a moved grid makes of a pruned weight.
    """
    w, scale, zero = _wide(fake, kind)
    rounded: Any = fake_round(w, scale, zero, kind.bits, kind.integer_zero)
    flat = rounded.reshape(-1, fake.w.shape[1])[: fake.w.shape[0]]
    return flat if mask is None else jnp.where(mask, flat, 0)


def _frozen(fake: FakeGroups, kind: FakeKind):
    """Codes ``[in, out]``, scale and zero ``[groups, out]`` as they will be stored."""
    w, scale, zero = _wide(fake, kind)
    if kind.integer_zero:
        zero = jnp.clip(jnp.round(zero), 0, 2**kind.bits - 1)
    codes = jnp.clip(_raw(w, scale, zero, kind.integer_zero), 0, 2**kind.bits - 1).reshape(-1, fake.w.shape[1])
    return codes[: fake.w.shape[0]], scale[:, 0], zero[:, 0]


def _kind(w: Any) -> FakeKind:
    return FakeKind(w.bits, w.group, str(w.scale.dtype), w.zero_kind != "real")


@to_fake.register(Affine)
def _(w: Affine):
    if w.g_idx is not None:
        raise ValueError("recovery needs contiguous groups, got an Affine leaf with a group index (g_idx)")
    zero = None if w.zero is None else unpack_zeros(w)
    return FakeGroups(dense(w), w.scale.astype(jnp.float32), zero), None, _kind(w)


@from_fake.register(Affine)
def _(w: Affine, fake):
    codes, scale, zero = _frozen(fake, _kind(w))
    return pack_affine(
        codes,
        scale.astype(w.scale.dtype),
        None if w.zero is None else (zero.astype(w.zero.dtype) if w.zero_kind == "real" else zero),
        bits=w.bits,
        group=w.group,
        zero_kind=w.zero_kind,
        tile=w.tile,
    )


@to_fake.register(GroupSparse)
def _(w: GroupSparse):
    found = stored_groups(w)
    place = places(found, w.shape[0] // w.group, w.shape[1])
    # Absent groups get a grid that is safe to divide by; the mask keeps what it makes from counting.
    scale = jnp.take(found.scale, place, mode="fill", fill_value=1)
    zero = jnp.take(found.zero, place, mode="fill", fill_value=0)
    mask = jnp.repeat(kept_groups(w), w.group, axis=0)
    return FakeGroups(dense(w), scale, zero), mask, _kind(w)


@from_fake.register(GroupSparse)
def _(w: GroupSparse, fake):
    codes, scale, zero = _frozen(fake, _kind(w))
    found = stored_groups(w)
    groups = w.shape[0] // w.group
    kept = found.index.reshape(w.index.shape) if w.row_ptr is None else found.output * groups + found.index
    return pack_group_sparse(
        codes,
        scale.astype(w.scale.dtype),
        zero.astype(w.zero.dtype) if w.zero_kind == "real" else zero,
        kept,
        bits=w.bits,
        group=w.group,
        layout=w.layout,
        zero_kind=w.zero_kind,
    )


def _values_as_fake(w: NMSparse):
    if not isinstance(w.values, Affine):
        raise TypeError(f"recovery of N:M leaves needs Affine values, got {type(w.values).__name__}")
    short, _, kind = to_fake(w.values)
    group = kind.group * w.m // w.n
    if kind.group % w.n:
        raise ValueError(f"groups of {kind.group} stored weights do not hold whole runs of n={w.n}")
    return short, kind._replace(group=group)


@to_fake.register(NMSparse)
def _(w: NMSparse):
    short, kind = _values_as_fake(w)
    mask = spread(jnp.ones(short.w.shape, jnp.float32), w) > 0
    return short._replace(w=dense(w)), mask, kind


@from_fake.register(NMSparse)
def _(w: NMSparse, fake):
    positions = unpack_positions(w).astype(jnp.int32)
    blocks = fake.w.reshape(-1, w.m, w.shape[1])
    short = jnp.take_along_axis(blocks, positions, axis=1).reshape(-1, w.shape[1])
    return NMSparse(
        values=from_fake(w.values, fake._replace(w=short)),
        positions=w.positions,
        n=w.n,
        m=w.m,
        shape=w.shape,
        tile=w.tile,
    )
