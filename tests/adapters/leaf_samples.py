"""One compressed weight of each family for a given logical shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.leaf import Transposed, add, pack_affine, pack_codebook

# Jitted, so that a test compiles one function instead of every primitive in it.
_pack_affine = jax.jit(pack_affine, static_argnames=("bits", "group", "zero_kind"))
_pack_codebook = jax.jit(functools.partial(pack_codebook, group=-1))


def affine(shape, seed=0, bits=4, group=16):
    r = np.random.default_rng(seed)
    *lead, rows, cols = shape
    per_group = (*lead, -(-rows // group), cols)
    return _pack_affine(
        jnp.asarray(r.integers(0, 2**bits, shape), jnp.uint8),
        jnp.asarray(r.uniform(0.01, 0.05, per_group), jnp.float32),
        jnp.asarray(r.integers(0, 2**bits, per_group), jnp.uint8),
        bits=bits,
        group=group,
        zero_kind="int",
    )


def codebook(shape, seed=0):
    r = np.random.default_rng(seed)
    *lead, _, cols = shape
    levels = jnp.asarray(r.normal(size=(*lead, 1, 6, cols)) * 0.1, jnp.float32)
    return _pack_codebook(jnp.asarray(r.integers(0, 6, shape), jnp.uint8), levels)


def total(shape, seed=0):
    r = np.random.default_rng(seed)
    return add(affine(shape, seed, bits=3), jnp.asarray(r.normal(size=shape) * 0.1, jnp.float32))


def transposed(shape, seed=0):
    *lead, rows, cols = shape
    return Transposed(inner=affine((*lead, cols, rows), seed))


KINDS = {"affine": affine, "codebook": codebook, "sum": total}
EMBEDDINGS = {"affine": affine, "sum": total, "transposed": transposed}
