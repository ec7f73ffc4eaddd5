"""Compressed leaves as something to train: their floats in float32, their integers frozen and unpacked once.

A leaf unpacks its codes at every product. In a training loop they never change, so a leaf type may say here how to
unpack them once and how to build, at every step, a weight from the floats alone; at 2 to 4 bits that makes a step
about as dear as one of the dense block. A type without a rule of its own keeps its packed form in the loop.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.dispatch import verb
from compressjax.leaf import Affine, Codebook, Sum, Transposed
from compressjax.leaf.affine import spread_groups, unpack_codes, unpack_zeros
from compressjax.leaf.codebook import unpack_indices
from compressjax.leaf.registration import is_leaf
from compressjax.numerics.grids import grouped


class Trainable(NamedTuple):
    """A weight taken apart for training.

    Attributes:
      floats: pytree of float32 arrays, what is trained.
      frozen: pytree of the arrays that stay as they are.
      build: ``(floats, frozen) -> weight``, an array or a leaf that ``matmul`` takes; differentiable in the floats.
      store: ``floats -> leaf`` in the storage dtypes, with the integers of the leaf it came from, bit for bit.
    """

    floats: Any
    frozen: Any
    build: Callable[[Any, Any], Any]
    store: Callable[[Any], Any]


@verb(on="w")
def unpacked_form(w: Any) -> Trainable:
    """A leaf taken apart with its integers unpacked; registered by leaf types that can."""
    raise NotImplementedError("run by the rule of its argument's type")


def trainable_form(w: Any) -> Trainable:
    """Takes a compressed leaf apart into floats to train and integers to keep.

    By :func:`unpacked_form` where the leaf's type has registered it; for any other leaf the floats are all its floating
    arrays, and it is built from them in its own packed form.

    Args:
      w: a compressed leaf of one ``[in, out]`` weight.

    Raises:
      TypeError: for anything else.
    """
    if not is_leaf(w):
        raise TypeError(f"trainable_form takes a compressed leaf, got {type(w).__name__}")
    return unpacked_form(w) if unpacked_form.knows(w) else _as_packed(w)


def _as_packed(w):
    arrays, structure = jax.tree.flatten(w)
    trained = [jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
    floats = [a.astype(jnp.float32) for a, yes in zip(arrays, trained, strict=True) if yes]

    def joined(floats, frozen):
        floats, frozen = iter(floats), iter(frozen)
        return jax.tree.unflatten(structure, [next(floats if yes else frozen) for yes in trained])

    frozen = [a for a, yes in zip(arrays, trained, strict=True) if not yes]

    def store(floats):
        old = [a for a, yes in zip(arrays, trained, strict=True) if yes]
        return joined([_as_stored(new, a) for new, a in zip(floats, old, strict=True)], frozen)

    return Trainable(floats, frozen, joined, store)


def _as_stored(new, old):
    """``new`` in the storage dtype of ``old``, kept finite."""
    largest = float(jnp.finfo(old.dtype).max)
    return jnp.clip(new, -largest, largest).astype(old.dtype)


@unpacked_form.register(Affine)
def _affine(w: Affine):
    floats = {"scale": w.scale.astype(jnp.float32)}
    frozen: dict[str, Any] = {"codes": unpack_codes(w), "g_idx": w.g_idx}
    if w.zero_kind == "real":
        floats["zero"] = unpack_zeros(w)
    else:
        frozen["zero"] = unpack_zeros(w)

    def build(floats, frozen):
        def wide(per_group):
            return spread_groups(per_group, w.group, w.shape[0], frozen["g_idx"])

        zero = floats["zero"] if w.zero_kind == "real" else frozen["zero"]
        return wide(floats["scale"]) * (frozen["codes"].astype(jnp.float32) - wide(zero))

    def store(floats):
        new = replace(w, scale=_as_stored(floats["scale"], w.scale))
        return replace(new, zero=_as_stored(floats["zero"], w.zero)) if w.zero_kind == "real" else new

    return Trainable(floats, frozen, build, store)


@unpacked_form.register(Codebook)
def _codebook(w: Codebook):
    def build(floats, frozen):
        codes = grouped(frozen["codes"], w.group)
        out = jnp.zeros(codes.shape, jnp.float32)
        # As the leaf itself: K selects, whose transpose is K masked sums and not a scatter.
        for k in range(w.levels.shape[-2]):
            out = jnp.where(codes == k, floats["levels"][:, k][:, None], out)
        return out.reshape(-1, w.shape[1])[: w.shape[0]]

    def store(floats):
        return replace(w, levels=_as_stored(floats["levels"], w.levels))

    return Trainable({"levels": w.levels.astype(jnp.float32)}, {"codes": unpack_indices(w)}, build, store)


@unpacked_form.register(Sum)
def _sum(w: Sum):
    parts = [_part(p) for p in w.parts]

    def build(floats, frozen):
        built = [p.build(f, z) for p, f, z in zip(parts, floats, frozen, strict=True)]
        arrays, leaves = [p for p in built if isinstance(p, jax.Array)], [p for p in built if is_leaf(p)]
        merged = [sum(arrays[1:], arrays[0])] if arrays else []
        return merged[0] if merged and not leaves else Sum(parts=(*merged, *leaves))

    def store(floats):
        return Sum(parts=tuple(p.store(f) for p, f in zip(parts, floats, strict=True)))

    return Trainable([p.floats for p in parts], [p.frozen for p in parts], build, store)


def _part(p):
    """A part of a sum; a dense one is all floats."""
    if is_leaf(p):
        return trainable_form(p)
    return Trainable(p.astype(jnp.float32), None, lambda floats, frozen: floats, lambda floats: _as_stored(floats, p))


@unpacked_form.register(Transposed)
def _transposed(w: Transposed):
    inner = trainable_form(w.inner)

    def build(floats, frozen):
        built = inner.build(floats, frozen)
        return jnp.swapaxes(built, -1, -2) if isinstance(built, jax.Array) else Transposed(inner=built)

    return Trainable(inner.floats, inner.frozen, build, lambda floats: Transposed(inner=inner.store(floats)))
