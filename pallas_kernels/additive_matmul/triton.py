"""The product through Pallas' Triton backend: vectors are gathered straight into the operand of the tensor cores.

A thread of a tensor-core product holds, of one column, pairs of inputs that lie eight apart, and four threads share a
column. The order of the inputs is free as long as both operands have the same, so it is chosen such that the pairs of a
thread are one group: each thread looks up the vectors of its own groups, 16 bytes at a time, adds them, and has the
operand in its registers. With few rows of activations no weight meets shared memory; with many, Hopper's products want
them there, and so do the warps of other GPUs that share outputs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.additive_matmul.config import LANES, AdditiveConfig
from pallas_kernels.additive_matmul.layout import AdditiveLayout
from pallas_kernels.backends import pallas_triton as triton

_CACHED_BYTES = 64 * 2**10  # codebooks beyond this do not stay in the first-level cache
_LOAD_BYTES = 16  # the most that a thread loads at a time
_WORDS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}


def additive_matmul_triton(
    x: jax.Array,
    codes: jax.Array,
    codebooks: jax.Array,
    scale: jax.Array,
    layout: AdditiveLayout,
    config: AdditiveConfig,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; float32 sums, returned in the dtype of ``x``."""
    m, group, bits = x.shape[0], layout.group, layout.bits
    block_m, block_n, quads = config.block_m, config.block_n, config.quads
    grid = (config.splits, math.ceil(layout.cols / block_n), math.ceil(m / block_m))
    taken = quads * LANES
    depth = taken * group
    steps = math.ceil(layout.groups / taken)
    per_split = math.ceil(steps / config.splits)
    partial = config.splits > 1
    ragged = layout.groups % taken != 0
    beyond_cache = codebooks.size * codebooks.dtype.itemsize > _CACHED_BYTES
    # A load gives a thread 16 bytes; longer vectors are read in pieces, side by side, so that one thread has them all.
    piece = min(group, _LOAD_BYTES // codebooks.dtype.itemsize)
    pieces = group // piece
    # Two numbers of a 16-bit dtype fill a register; a float32 has one of its own.
    together = 4 // x.dtype.itemsize
    # One addition of two such numbers rounds once, as the product needs; more are added in float32.
    bare = codebooks.dtype == x.dtype and layout.books <= 2

    def kernel(x_ref, words_ref, books_ref, scale_ref, out_ref):
        split, at_n, at_m = triton.split_program(grid)
        row = at_m * jnp.int32(block_m) + triton.iota(block_m)
        col = at_n * jnp.int32(block_n) + triton.iota(block_n)
        row_inside = None if m % block_m == 0 else (row < jnp.int32(m))[:, None]
        col_inside = None if layout.cols % block_n == 0 else col < jnp.int32(layout.cols)
        first = split * jnp.int32(per_split)
        last = jnp.minimum(first + jnp.int32(per_split), jnp.int32(steps))
        lane = triton.iota(LANES)[None, None, :]
        nth_piece = (triton.iota(pieces) * jnp.int32(piece))[None, :, None, None, None]
        element = nth_piece + triton.iota(piece)[None, None, None, None, :]

        def groups_of(index):
            """Groups of a step, int32 ``[quads, 1, LANES]``."""
            nth = (triton.iota(quads) * jnp.int32(LANES))[:, None, None]
            return index * jnp.int32(taken) + nth + lane

        def exists(index):
            return groups_of(index) < jnp.int32(layout.groups) if ragged else None

        def load_words(index):
            mask = exists(index)
            if col_inside is not None:
                mask = _both(mask, col_inside[None, :, None])
            return triton.load(words_ref, groups_of(index), col[None, :, None], mask=mask)

        def load_x(index):
            at = index * jnp.int32(depth) + triton.iota(depth)
            inside = (at < jnp.int32(layout.rows))[None, :] if ragged else None
            return triton.load(x_ref, row[:, None], at[None, :], mask=_both(row_inside, inside))

        def ahead(index):
            """What a step reads of device memory, loaded while the one before it multiplies."""
            known = jnp.minimum(index, jnp.int32(steps - 1))
            return load_words(known), load_x(known)

        def vectors(index, words):
            """Sums of the vectors of every group, ``[quads, pieces, block_n, LANES, piece]``."""
            words = words[:, None, :, :, None]
            inside = exists(index)
            total = None
            for book in range(layout.books):
                code = words >> jnp.asarray(book * bits, words.dtype) if book else words
                code = code & jnp.asarray(2**bits - 1, words.dtype) if layout.books > 1 else code
                where = (jnp.int32(book), code.astype(jnp.int32), element)
                mask = None if inside is None else inside[:, None, :, :, None]
                vector = triton.load(books_ref, *where, mask=mask, past_cache=beyond_cache)
                vector = vector if bare else vector.astype(jnp.float32)
                total = vector if total is None else total + vector
            assert total is not None  # there is at least one codebook
            return total.astype(x.dtype)

        def step(index, carry):
            total, words, acts = carry
            later = ahead(index + jnp.int32(1))
            runs = (pieces, piece // together, together)
            w = vectors(index, words).reshape(quads, pieces, block_n, LANES, *runs[1:])
            w = lax.transpose(w, (0, 1, 4, 3, 5, 2)).reshape(depth, block_n)
            acts = acts.reshape(block_m, quads, LANES, *runs)
            acts = lax.transpose(acts, (0, 1, 3, 4, 2, 5)).reshape(block_m, depth)
            return total + triton.dot(acts, w, interpret=interpret), *later

        zeros = jnp.zeros((block_m, block_n), jnp.float32)
        total, *_ = lax.fori_loop(first, last, step, (zeros, *ahead(first)))
        factor = triton.load(scale_ref, col, mask=col_inside).astype(jnp.float32)
        where: tuple[Any, ...] = (row[:, None], col[None, :])
        mask = _both(row_inside, None if col_inside is None else col_inside[None, :])
        triton.store(out_ref, total * factor[None, :], *((split, *where) if partial else where), mask=mask)

    shape, dtype = ((config.splits, m, layout.cols), jnp.float32) if partial else ((m, layout.cols), x.dtype)
    y = triton.launch(
        kernel,
        blocks=math.prod(grid),
        out_shape=triton.result(shape, dtype, x),
        name=f"additive_matmul_{layout.books}x{bits}_g{group}",
        warps=config.warps,
        stages=1,  # deeper pipelines would copy the vectors to shared memory first
        interpret=interpret,
    )(x, _group_words(codes, layout), codebooks, scale)
    return jnp.sum(y, axis=0).astype(x.dtype) if partial else y


def _group_words(codes: jax.Array, layout: AdditiveLayout) -> jax.Array:
    """The codes of each group as one word ``[groups, cols]``; XLA moves nothing for it."""
    if layout.books == 1:
        return codes.reshape(layout.groups, layout.cols)
    return lax.bitcast_convert_type(codes, _WORDS[layout.books * layout.bits])


def _both(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    """Where both masks hold; None holds everywhere."""
    if a is None or b is None:
        return b if a is None else a
    return a & b
