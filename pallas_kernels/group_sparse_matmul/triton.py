"""The product through Pallas' Triton backend: each lane walks stored groups of one output and gathers what they meet.

A program makes ``block_n`` outputs with ``lanes`` lanes each. In a step every lane takes one stored group: its words
come with those of its neighbours, and the activations it meets are one aligned run of the row, which stays in the
first-level cache, so they are gathered 16 bytes at a time. Groups that are not stored cost nothing. Where outputs store
different numbers of groups, a program goes on as far as the longest of its own.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.group_sparse_matmul.config import GroupSparseConfig
from pallas_kernels.group_sparse_matmul.layout import GroupSparseLayout, StoredGroups


def group_sparse_matmul_triton(
    x: jax.Array,
    stored: StoredGroups,
    layout: GroupSparseLayout,
    config: GroupSparseConfig,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; float32 sums, returned in the dtype of ``x``."""
    m = x.shape[0]
    n, lanes = config.block_n, config.lanes
    bits, group, fields, words = layout.bits, layout.group, layout.fields, layout.words
    ragged = layout.cols % n != 0

    def kernel(x_ref, codes_ref, scale_ref, zero_ref, index_ref, *refs):
        out_ref = refs[-1]
        start = triton.program() * jnp.int32(n)
        lane = triton.iota(n * lanes)
        # Neighbouring lanes read neighbouring groups: of one output where those of an output stand together.
        if layout.equal:
            col, first = start + lax.rem(lane, jnp.int32(n)), lax.div(lane, jnp.int32(n))
        else:
            col, first = start + lax.div(lane, jnp.int32(lanes)), lax.rem(lane, jnp.int32(lanes))
        there = col < jnp.int32(layout.cols) if ragged else None
        begin: Any = jnp.int32(0)
        end: Any = jnp.int32(layout.kept)
        if not layout.equal:
            begin, end = (triton.load(refs[0], col + jnp.int32(i), mask=there) for i in (0, 1))
        steps = lax.div(end - begin + jnp.int32(lanes - 1), jnp.int32(lanes))
        within = triton.iota(group)[None, :]

        def zeros_of(at, mask):
            if layout.zero_kind == "real":
                return triton.load(zero_ref, *at, mask=mask).astype(jnp.float32)
            last = at[-1]
            place = lax.rem(last, jnp.int32(32))
            word = lax.div(last, jnp.int32(32)) * jnp.int32(bits) + lax.rem(place, jnp.int32(bits))
            found = triton.load(zero_ref, *at[:-1], word, mask=mask)
            shift = (lax.div(place, jnp.int32(bits)) * jnp.int32(bits)).astype(jnp.uint32)
            code = (found >> shift) & jnp.uint32(2**bits - 1)
            return triton.exact_float(code) - triton.exact_zero(0)

        def step(nth, totals):
            at = begin + nth * jnp.int32(lanes) + first
            mask = at < end if there is None else (at < end) & there
            where = (at, col) if layout.equal else (at,)
            word = triton.iota(words)[None, :]
            packed = triton.load(codes_ref, word, *(a[:, None] for a in where), mask=mask[:, None])
            shift = (triton.iota(fields) * jnp.int32(bits)).astype(jnp.uint32)
            code = (packed[:, None, :] >> shift[None, :, None]) & jnp.uint32(2**bits - 1)
            zero = zeros_of(where, mask)
            level = triton.exact_float(code.reshape(n * lanes, group)) - triton.exact_zero(zero)[:, None]
            scale = triton.load(scale_ref, *where, mask=mask).astype(jnp.float32)
            index = triton.load(index_ref, *where, mask=mask).astype(jnp.int32)
            run = index[:, None] * jnp.int32(group) + within

            def add(row):
                met = triton.load(x_ref, jnp.int32(row), run, mask=mask[:, None]).astype(jnp.float32)
                return jnp.sum(level * met, axis=1) * scale

            return tuple(total + add(row) for row, total in enumerate(totals))

        totals = tuple(jnp.zeros((n * lanes,), jnp.float32) for _ in range(m))
        longest = lax.reduce_max(steps, (0,)) if not layout.equal else steps
        totals = lax.fori_loop(jnp.int32(0), longest, step, totals)
        out = start + triton.iota(n)
        for row, total in enumerate(totals):
            parted = total.reshape(lanes, n) if layout.equal else total.reshape(n, lanes)
            total = jnp.sum(parted, axis=0 if layout.equal else 1)
            triton.store(out_ref, total, jnp.int32(row), out, mask=out < jnp.int32(layout.cols) if ragged else None)

    return triton.launch(
        kernel,
        blocks=math.ceil(layout.cols / n),
        out_shape=triton.result((m, layout.cols), x.dtype, x),
        name=f"group_sparse_matmul_w{bits}_{'ell' if layout.equal else 'bsr'}",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(x, *(a for a in stored if a is not None))
