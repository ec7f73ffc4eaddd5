"""The attention through Pallas' Triton backend: keys and values are unpacked in registers and never stored.

A program goes through the tiles of one key head, or a share of them. It unpacks the keys of a tile, some tokens at a
time, and multiplies them with all query heads on tensor cores; when the scores of the whole tile are known, the sums so
far are scaled to the new largest score once, and the values are unpacked and added. A low-rank part takes two thin
products a tile and some tokens: ``(q b) a^T`` joins the scores and ``(w a) b^T`` the sums.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.kv_attention.config import AttentionConfig
from pallas_kernels.kv_attention.layout import UNSEEN, KVLayout, Past, Softmax
from pallas_kernels.kv_attention.unpacking import Columns, Reader, power_of_two

_LEAST = 16  # a tensor-core product is at least so wide and deep


def kv_attention_triton(
    q: jax.Array,
    past: Past,
    start: jax.Array,
    stop: jax.Array,
    seen: jax.Array | None,
    bias: jax.Array | None,
    *,
    layout: KVLayout,
    config: AttentionConfig,
    keep_scores: bool = False,
    interpret: bool = False,
) -> Softmax:
    """The unnormalised average; float32 sums."""
    batch, heads, groups, _ = q.shape
    blocks, pairs = past.k.codes.shape[0], batch * heads
    per_block = layout.tokens // layout.tile
    tiles, rows = blocks * per_block, config.rows
    per_split, steps = math.ceil(tiles / config.splits), layout.tile // rows
    padded = max(_LEAST, power_of_two(groups))

    def merged(a):
        """Batch and heads as one axis."""
        return a.reshape(a.shape[0], pairs, *a.shape[3:])

    flat, tree = jax.tree.flatten((jax.tree.map(merged, past), seen, None if bias is None else merged(bias)))
    inputs = len(flat)

    def dot(a, b):
        return triton.dot(a.astype(q.dtype), b.astype(q.dtype), interpret=interpret)

    def unrolled(step, carry):
        return triton.unrolled(steps, step, carry, interpret=interpret)

    def kernel(q_ref, start_ref, stop_ref, *refs):
        given, (acc_ref, m_ref, l_ref, *kept) = refs[:inputs], refs[inputs:]
        held, seen_ref, bias_ref = jax.tree.unflatten(tree, given)
        split, pair = triton.split_program((config.splits, pairs))
        row = pair // jnp.int32(heads)
        keys = Reader(layout.key, layout, rows, held.k.codes, held.k.scale, held.k.low, pair)
        values = Reader(layout.value, layout, rows, held.v.codes, held.v.scale, held.v.low, pair)
        query = triton.iota(padded)
        inside = None if padded == groups else query < jnp.int32(groups)
        channel, exists = Columns(layout.key).channels()
        q = triton.load(q_ref, pair, query[:, None], channel[None, :], mask=_both(inside, exists))
        begin, end = triton.load(start_ref, row), triton.load(stop_ref, row)
        first = jnp.maximum(split * jnp.int32(per_split), begin // jnp.int32(layout.tile))
        last = jnp.minimum((split + jnp.int32(1)) * jnp.int32(per_split), jnp.int32(tiles))
        last = jnp.minimum(last, (end + jnp.int32(layout.tile - 1)) // jnp.int32(layout.tile))

        def thin_queries(block):
            """Queries in the basis of the keys' low-rank part."""
            return None if held.k_fit is None else dot(q, _basis(held.k_fit.b, keys, block))

        def widened(shares, block):
            """Sums in the basis of the values' low-rank part."""
            return 0.0 if held.v_fit is None else dot(shares, _basis(held.v_fit.b, values, block).T)

        only = thin_queries(jnp.int32(0)) if blocks == 1 else None

        def one_tile(index, carry):
            acc, m, total, shares = carry
            block, tile = lax.div(index, jnp.int32(per_block)), lax.rem(index, jnp.int32(per_block))
            words = keys.words(block, tile)
            thin = only if blocks == 1 else thin_queries(block)

            def score(nth):
                found = dot(q, keys.values(words, block, tile, nth).T)
                if held.k_fit is not None:
                    found = found + dot(thin, _shares(held.k_fit.a, keys, block, tile, nth).T)
                at = tile * jnp.int32(layout.tile) + jnp.asarray(nth * rows, jnp.int32) + triton.iota(rows)
                if bias_ref is not None:
                    places = (query[:, None], at[None, :])
                    found = found + triton.load(bias_ref, block, pair, *places, mask=_both(inside, None))
                among = block * jnp.int32(layout.tokens) + at
                among = (among >= begin) & (among < end)
                if seen_ref is not None:
                    among = among & (triton.load(seen_ref, block, row, at) != jnp.uint8(0))
                found = jnp.where(among[None, :], found, jnp.float32(UNSEEN))
                if kept:
                    triton.store(kept[0], found, block, pair, query[:, None], at[None, :], mask=_both(inside, None))
                return found

            scores = triton.unrolled_sums(
                triton.zero_sums(steps, (padded, rows), interpret=interpret), score, interpret=interpret
            )
            best = unrolled(lambda nth, best: jnp.maximum(best, scores[nth]), jnp.full((padded, rows), UNSEEN))
            above = jnp.maximum(m, jnp.max(best, axis=1))
            # With nothing seen so far, weights are exp(-1e30) and not exp(0).
            level = jnp.where(above == jnp.float32(UNSEEN), 0.0, above)[:, None]
            fade = jnp.exp(m - above)
            words = values.words(block, tile)

            def add(nth, carry):
                acc, weighed, shares = carry
                weights = jnp.exp(scores[nth] - level)
                if held.v_fit is not None:
                    shares = shares + dot(weights, _shares(held.v_fit.a, values, block, tile, nth))
                acc = acc + dot(weights, values.values(words, block, tile, nth))
                return acc, weighed + weights, shares

            weighed = jnp.zeros((padded, rows), jnp.float32)
            acc, weighed, shares = unrolled(add, (acc * fade[:, None], weighed, shares * fade[:, None]))
            if blocks > 1:  # every block has a basis of its own
                acc, shares = acc + widened(shares, block), jnp.zeros_like(shares)
            return acc, above, total * fade + jnp.sum(weighed, axis=1), shares

        zero = jnp.zeros((padded,), jnp.float32)
        width, rank = Columns(layout.value).count, 1 if held.v_fit is None else _rank(held.v_fit.a)
        sums, shares = (jnp.zeros((padded, length), jnp.float32) for length in (width, rank))
        carry = (sums, zero + jnp.float32(UNSEEN), zero, shares)
        acc, m, total, shares = lax.fori_loop(first, last, one_tile, carry)
        if blocks == 1:
            acc = acc + widened(shares, jnp.int32(0))
        channel, exists = Columns(layout.value).channels()
        triton.store(acc_ref, acc, split, pair, query[:, None], channel[None, :], mask=_both(inside, exists))
        triton.store(m_ref, m, split, pair, query, mask=inside)
        triton.store(l_ref, total, split, pair, query, mask=inside)

    lead = (config.splits, pairs, groups)
    shapes = [(*lead, layout.value.width), lead, lead]
    if keep_scores:
        shapes.append((blocks, pairs, groups, layout.tokens))
    bits = "" if layout.key.bits == layout.value.bits else f"v{layout.value.bits}"
    out = triton.launch(
        kernel,
        blocks=config.splits * pairs,
        out_shape=[triton.result(shape, jnp.float32, q) for shape in shapes],
        name=f"kv_attention_k{layout.key.bits}{bits}",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(q.reshape(pairs, groups, -1), start, stop, *flat)
    acc, m, total, *kept = (a.reshape(a.shape[0], batch, heads, groups, *a.shape[3:]) for a in out)
    scores = kept[0] if kept else None
    if config.splits == 1:
        return Softmax(acc[0], m[0], total[0], scores)
    best = jnp.max(m, axis=0)
    fade = jnp.exp(m - best[None])
    return Softmax(jnp.sum(acc * fade[..., None], axis=0), best, jnp.sum(total * fade, axis=0), scores)


def _both(rows: jax.Array | None, columns: jax.Array | None) -> jax.Array | None:
    """Mask of a block from those of its rows and columns."""
    if rows is None:
        return None if columns is None else columns[None, :]
    return rows[:, None] if columns is None else rows[:, None] & columns[None, :]


def _rank(ref: Any) -> int:
    return max(_LEAST, power_of_two(ref.shape[-1]))


def _ranks(ref: Any) -> tuple[jax.Array, jax.Array | None]:
    """Numbers of the padded ranks, and which exist."""
    rank = triton.iota(_rank(ref))
    return rank, None if _rank(ref) == ref.shape[-1] else rank < jnp.int32(ref.shape[-1])


def _basis(ref: Any, side: Reader, block: jax.Array) -> jax.Array:
    """``b`` of a block, ``[columns, ranks]``."""
    (channel, exists), (rank, real) = side.columns.channels(), _ranks(ref)
    return triton.load(ref, block, side.pair, channel[:, None], rank[None, :], mask=_both(exists, real))


def _shares(ref: Any, side: Reader, block: jax.Array, tile: jax.Array, nth: Any) -> jax.Array:
    """``a`` of some tokens of a tile, ``[rows, ranks]``."""
    rank, real = _ranks(ref)
    at = tile * jnp.int32(side.layout.tile) + jnp.asarray(nth * side.rows, jnp.int32) + triton.iota(side.rows)
    return triton.load(ref, block, side.pair, at[:, None], rank[None, :], mask=_both(None, real))
