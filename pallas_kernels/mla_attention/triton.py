"""The attention through Pallas' Triton backend: a row is read once, and is key and value of all heads.

A program takes a block of query heads and goes through the tokens of one text, or a share of them. The rows of a step
are multiplied with all its queries, the sums so far are moved to the new largest score, and the same rows, weighed, are
added to them: on tensor cores, a product ``[heads, r + p] x [r + p, rows]`` and one ``[heads, rows] x [rows, r]``.
Programs that differ in their heads only follow each other in the grid, so that the second-level cache serves all but
the first. Widths that are no powers of two are cut into segments that are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.kv_attention.layout import UNSEEN, Codes, Softmax
from pallas_kernels.mla_attention.config import MLAConfig
from pallas_kernels.mla_attention.layout import Latents, MLALayout, blocks_of
from pallas_kernels.mla_attention.reading import FloatRows, PackedRows, segments


def mla_attention_triton(
    q: jax.Array,
    latents: Latents,
    start: jax.Array,
    stop: jax.Array,
    seen: jax.Array | None,
    *,
    layout: MLALayout,
    config: MLAConfig,
    interpret: bool = False,
) -> Softmax:
    """The unnormalised average of latents; float32 sums."""
    batch, heads, _ = q.shape
    blocks, rows, many = blocks_of(latents), config.rows, config.heads
    per_block = math.ceil(layout.tokens / rows)
    tiles = blocks * per_block
    per_split, head_blocks = math.ceil(tiles / config.splits), math.ceil(heads / many)
    cut = segments(layout, config.segment)
    latent = [each for each in cut if each.latent]
    flat, tree = jax.tree.flatten((latents, seen))
    inputs = len(flat)

    def dot(a, b):
        return triton.dot(a.astype(q.dtype), b.astype(q.dtype), interpret=interpret)

    def kernel(q_ref, start_ref, stop_ref, *refs):
        given, (acc_ref, m_ref, l_ref) = refs[:inputs], refs[inputs:]
        held, seen_ref = jax.tree.unflatten(tree, given)
        split, text, first_head = triton.split_program((config.splits, batch, head_blocks))
        if isinstance(held, Codes):
            assert layout.side is not None  # checked with the arrays
            reader: Any = PackedRows(layout, layout.side, rows, held.codes, held.scale, held.low, text)
        else:
            reader = FloatRows(layout, rows, held, text)
        head = first_head * jnp.int32(many) + triton.iota(many)
        inside = None if heads % many == 0 else head < jnp.int32(heads)

        def query(each):
            channel, exists = each.channels()
            return triton.load(q_ref, text, head[:, None], channel[None, :], mask=_both(inside, exists))

        queries = [query(each) for each in cut]
        begin, end = triton.load(start_ref, text), triton.load(stop_ref, text)
        first = jnp.maximum(split * jnp.int32(per_split), _tile_of(begin, layout, rows))
        last = jnp.minimum((split + jnp.int32(1)) * jnp.int32(per_split), jnp.int32(tiles))
        last = jnp.minimum(last, _tile_of(end - jnp.int32(1), layout, rows) + jnp.int32(1))
        last = jnp.where(begin < end, last, jnp.int32(0))

        def step(index, carry):
            sums, m, total = carry
            block, at = lax.div(index, jnp.int32(per_block)), lax.rem(index, jnp.int32(per_block)) * jnp.int32(rows)
            parts = [part.astype(q.dtype) for part in reader.parts(block, at, cut)]
            scores = jnp.zeros((many, rows), jnp.float32)
            for each, part in zip(queries, parts, strict=True):
                scores = scores + dot(each, part.T)
            at = at + triton.iota(rows)
            token = block * jnp.int32(layout.tokens) + at
            among = (token >= begin) & (token < end)
            exists = None if layout.tokens % rows == 0 else at < jnp.int32(layout.tokens)
            if exists is not None:
                among = among & exists
            if seen_ref is not None:
                among = among & (triton.load(seen_ref, block, text, at, mask=exists) != jnp.uint8(0))
            scores = jnp.where(among[None, :], scores, jnp.float32(UNSEEN))
            above = jnp.maximum(m, jnp.max(scores, axis=1))
            # With nothing seen so far, weights are exp(-1e30) and not exp(0).
            level = jnp.where(above == jnp.float32(UNSEEN), 0.0, above)
            fade, weights = jnp.exp(m - above), jnp.exp(scores - level[:, None])
            sums = tuple(
                old * fade[:, None] + dot(weights, part) for old, part in zip(sums, parts[: len(sums)], strict=True)
            )
            return sums, above, total * fade + jnp.sum(weights, axis=1)

        zero = jnp.zeros((many,), jnp.float32)
        sums = tuple(jnp.zeros((many, each.count), jnp.float32) for each in latent)
        sums, m, total = lax.fori_loop(first, last, step, (sums, zero + jnp.float32(UNSEEN), zero))
        # Places of whole blocks of heads follow from the program's number, so nothing need be kept through the loop.
        place = (split * jnp.int32(batch) + text) * jnp.int32(heads) + head
        if inside is None:
            place = triton.program() * jnp.int32(many) + triton.iota(many)
        for each, value in zip(latent, sums, strict=True):
            channel, exists = each.channels()
            mask = _both(inside, exists)
            triton.store(acc_ref, value, place[:, None], channel[None, :], mask=mask)
        triton.store(m_ref, m, place, mask=inside)
        triton.store(l_ref, total, place, mask=inside)

    places = config.splits * batch * heads
    kind = "float" if layout.side is None else f"w{layout.side.bits}"
    acc, m, total = triton.launch(
        kernel,
        blocks=config.splits * batch * head_blocks,
        out_shape=[triton.result(shape, jnp.float32, q) for shape in ((places, layout.rank), (places,), (places,))],
        name=f"mla_attention_{kind}",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(q, start, stop, *flat)
    acc, m, total = (a.reshape(config.splits, batch, heads, *a.shape[1:]) for a in (acc, m, total))
    if config.splits == 1:
        return Softmax(acc[0], m[0], total[0])
    best = jnp.max(m, axis=0)
    fade = jnp.exp(m - best[None])
    return Softmax(jnp.sum(acc * fade[..., None], axis=0), best, jnp.sum(total * fade, axis=0))


def _tile_of(token: jax.Array, layout: MLALayout, rows: int) -> jax.Array:
    """Number of the run of ``rows`` tokens that holds a token from 0 on; the last run of a block may be short."""
    if layout.tokens % rows == 0:
        return lax.div(token, jnp.int32(rows))
    block, within = lax.div(token, jnp.int32(layout.tokens)), lax.rem(token, jnp.int32(layout.tokens))
    return block * jnp.int32(math.ceil(layout.tokens / rows)) + lax.div(within, jnp.int32(rows))


def _both(rows: jax.Array | None, columns: jax.Array | None) -> jax.Array | None:
    """Mask of a block from those of its rows and columns."""
    if rows is None:
        return None if columns is None else columns[None, :]
    return rows[:, None] if columns is None else rows[:, None] & columns[None, :]
