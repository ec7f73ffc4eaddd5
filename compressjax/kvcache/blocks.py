"""Codecs that compress tokens block by block and never touch a block again: the prompt, then chunk after chunk.

A subclass says how a block of tokens is compressed, how queries meet its keys and how weights meet its values; the
ring, sinks, streaming and the sum over blocks are here. On a GPU one kernel attends to all blocks of a kind at once
where the subclass says that they are packed codes or latents, see `BlockCodec.rounded_sides` and `BlockCodec.latents`;
and one kernel rounds a full ring into its place, see `BlockCodec.append_block`.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import abc
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.latent_attention import Latents, attend_latents, latent_refusal
from compressjax.kvcache.packed_attention import Sides, attend_packed, kernel_refusal
from compressjax.kvcache.partial import Partial, attend_exact, combine, combine_axis, mix, weigh
from compressjax.kvcache.protocol import Codec, KVSpec, Materialized, Ring, State, View
from compressjax.models.attention import token_positions
from compressjax.ops.on_gpu import kernel_or_formula
from compressjax.ops.size import array_bits


class Blocks(NamedTuple):
    """The compressed tokens.

    Attributes:
      prompt: one block of the prompt's whole chunks; None when it has none.
      chunks: blocks of later chunks, leading with their number; None when there is no room for one.
    """

    prompt: Any
    chunks: Any


class Tokens(NamedTuple):
    """What is known of the tokens of a block.

    Attributes:
      keep: bool ``[B, n]``; what is False there is never read and must leave no trace in the others.
      positions: int32 ``[B, n]``, rotary positions.
      prompt: whether this is the block of the prompt.
    """

    keep: jax.Array
    positions: jax.Array
    prompt: bool


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(array_bits(a) for a in jax.tree.leaves(tree)) // 8


def first_tokens(x: jax.Array, real: jax.Array, count: int) -> jax.Array:
    """Each row's first real tokens ``[..., B, K, count, d]`` of ``x [..., B, K, P, d]``; past the end, the last."""
    start = jnp.argmax(real, axis=1)[:, None]
    at = jnp.minimum(start + jnp.arange(count)[None], real.shape[1] - 1)
    at = at.reshape(*(1,) * (x.ndim - 4), real.shape[0], 1, count, 1)
    return jnp.take_along_axis(x, at, axis=-2)


class BlockCodec(Codec):
    """Base of codecs whose frozen part is `Blocks`."""

    @abc.abstractmethod
    def compress(self, spec: KVSpec, fixed: Any, k: jax.Array, v: jax.Array, tokens: "Tokens") -> Any:
        """A block of float32 ``k, v [U, B, K, n, d]`` (no U when ``unit`` is 1)."""

    @abc.abstractmethod
    def scores(
        self, spec: KVSpec, fixed: Any, block: Any, q: jax.Array, view: View, slots: jax.Array, sub: int
    ) -> tuple[jax.Array, Any]:
        """Scores float32 ``[B, K, G, T, n]`` of ``q [B, K, G, T, d]`` with a block's keys.

        Args:
          spec, fixed, block, q, view, sub: as they were made.
          slots: int32 ``[n]``, where the block's tokens stand in the cache.

        Returns:
          The scores, and anything that `average` can use again.
        """

    @abc.abstractmethod
    def average(self, spec: KVSpec, fixed: Any, block: Any, weights: jax.Array, again: Any, sub: int) -> jax.Array:
        """``[B, K, G, T, n]`` weights times a block's values, float32 ``[B, K, G, T, e]``."""

    @abc.abstractmethod
    def decompress(self, spec: KVSpec, fixed: Any, block: Any, slots: jax.Array, view: View, sub: int) -> Any:
        """Keys and values of a block, float32 ``[B, K, n, d]`` and ``[B, K, n, e]``."""

    def rounded_sides(self, spec: KVSpec, block: Any) -> Sides | str:
        """Keys and values of a block, or of stacked blocks, as the GPU kernel takes them, or why it does not."""
        del spec, block
        return f"{type(self).__name__} has no kernel"

    def latents(self, spec: KVSpec, block: Any) -> Latents | str:
        """Keys of a block, or of stacked blocks, whose values are part of them, or why the GPU kernel takes none."""
        del spec, block
        return f"{type(self).__name__} has no kernel for latents"

    def _kernel_refusal(self, spec, blocks, q):
        if spec.shared:
            return latent_refusal(self.latents(spec, blocks), q)
        return kernel_refusal(self.rounded_sides(spec, blocks), q)

    def _attend_by_kernel(self, spec, blocks, q, seen):
        if spec.shared:
            latents = self.latents(spec, blocks)
            assert not isinstance(latents, str)  # it was not refused
            return attend_latents(q, latents, spec.values, seen)
        sides = self.rounded_sides(spec, blocks)
        assert not isinstance(sides, str)  # it was not refused
        return attend_packed(q, sides, seen)

    def _own(self, x: jax.Array) -> jax.Array:
        return x[0] if self.unit == 1 else x

    def _compress(self, spec, fixed, k, v, tokens):
        k, v = (self._own(x.astype(jnp.float32)) for x in (k, v))
        return self.compress(spec, fixed, k, v, tokens)

    def prefill(self, spec, k, v, real, q, fixed):
        size = self.chunk
        whole = spec.prompt // size * size
        room = (spec.max_len - whole) // size
        count = self.exact_sinks
        keep = real & (jnp.cumsum(real.astype(jnp.int32), axis=1) > count)
        sinks = Ring(*(first_tokens(x, real, count).astype(spec.dtype) for x in (k, v))) if count else None
        prompt = chunks = None
        if whole:
            early = k[..., :whole, :], v[..., :whole, :]
            prompt = self._compress(
                spec, fixed, *early, Tokens(keep[:, :whole], token_positions(real)[:, :whole], True)
            )
        if room:
            shapes = jax.eval_shape(
                lambda f: self._compress(
                    spec,
                    f,
                    jnp.zeros((*k.shape[:-2], size, k.shape[-1])),
                    jnp.zeros((*v.shape[:-2], size, v.shape[-1])),
                    Tokens(jnp.ones((spec.batch, size), bool), jnp.zeros((spec.batch, size), jnp.int32), False),
                ),
                fixed,
            )
            chunks = jax.tree.map(lambda a: jnp.zeros((room, *a.shape), a.dtype), shapes)
        rest = [(0, 0)] * (k.ndim - 2) + [(0, size - (spec.prompt - whole)), (0, 0)]
        ring = Ring(*(jnp.pad(x[..., whole:, :].astype(spec.dtype), rest) for x in (k, v)))
        return State(fixed, Blocks(prompt, chunks), ring, sinks)

    def append(self, spec, hot, k, v, q, view):
        return put_token(spec, hot, k, v, view, self.chunk)

    def append_refusal(self, spec: KVSpec, k: jax.Array, v: jax.Array) -> str | None:
        """Why the GPU kernel does not round a full ring ``k, v [U, B, K, n, d]``, or None."""
        del spec, k, v
        return f"{type(self).__name__} has no kernel"

    def append_block(
        self, spec: KVSpec, fixed: Any, blocks: Any, k: jax.Array, v: jax.Array, tokens: "Tokens", at: jax.Array
    ) -> Any:
        """Stacked blocks with a full ring as the one numbered ``at``, by the GPU kernel, which was not refused."""
        raise NotImplementedError(f"{type(self).__name__} has no kernel")

    def flush(self, spec, state, keep, view):
        positions = jax.lax.dynamic_slice_in_dim(view.positions, view.frozen, self.chunk, axis=1)
        at = (view.frozen - spec.prompt // self.chunk * self.chunk) // self.chunk

        def kernel(blocks, fixed, k, v, keep, positions, at):
            k, v = (self._own(x) for x in (k, v))
            return self.append_block(spec, fixed, blocks, k, v, Tokens(keep, positions, False), at)

        def formula(blocks, fixed, k, v, keep, positions, at):
            block = self._compress(spec, fixed, k, v, Tokens(keep, positions, False))
            put = jax.lax.dynamic_update_index_in_dim
            return jax.tree.map(lambda old, new: put(old, new, at, axis=0), blocks, block)

        k, v = state.hot.k, state.hot.v
        operands = (state.frozen.chunks, state.fixed, k, v, keep, positions, at)
        chunks = kernel_or_formula(kernel, formula, self.append_refusal(spec, k, v), *operands)
        return state._replace(frozen=state.frozen._replace(chunks=chunks))

    def _attend_block(self, spec, fixed, block, q, view, seen, slots, sub) -> Partial:
        scores, again = self.scores(spec, fixed, block, q, view, slots, sub)
        weights, m, total = weigh(scores, seen[:, None, None])
        return Partial(self.average(spec, fixed, block, weights, again, sub), m, total)

    def attend(self, spec, state, q, view, sub):
        parts = [attend_hot(spec, state.hot, state.sinks, q, view, sub)]
        whole = view.prompt.shape[-1]

        def prompt(block, q, view):
            slots = jnp.arange(whole, dtype=jnp.int32)
            return self._attend_block(spec, state.fixed, block, q, view, view.prompt, slots, sub)

        def chunks(blocks, q, view):
            slots = whole + jnp.arange(view.chunks.shape[0] * self.chunk, dtype=jnp.int32)
            each = jax.vmap(lambda b, s, at: self._attend_block(spec, state.fixed, b, q, view, s, at, sub))
            return combine_axis(each(blocks, view.chunks, slots.reshape(-1, self.chunk)))

        for blocks, formula, which in (
            (state.frozen.prompt, prompt, "prompt"),
            (state.frozen.chunks, chunks, "chunks"),
        ):
            if blocks is None:
                continue

            def kernel(blocks, q, view, which=which):
                return self._attend_by_kernel(spec, blocks, q, getattr(view, which))

            refusal = self._kernel_refusal(spec, blocks, q)
            parts.append(kernel_or_formula(kernel, formula, refusal, blocks, q, view))
        return combine(*parts), None

    def materialize(self, spec, state, view, sub):
        exact = [state.hot] if state.sinks is None else [state.hot, state.sinks]
        ks = [x.k[sub].astype(jnp.float32) for x in exact]
        vs = [spec.value_of(x.k[sub], x.v[sub]).astype(jnp.float32) for x in exact]
        seen = [view.ring] if state.sinks is None else [view.ring, view.sinks]
        whole = view.prompt.shape[-1]
        blocks = [] if state.frozen.prompt is None else [(state.frozen.prompt, view.prompt, jnp.arange(whole))]
        if state.frozen.chunks is not None:
            for c in range(view.chunks.shape[0]):
                block = jax.tree.map(lambda a, c=c: a[c], state.frozen.chunks)
                blocks.append((block, view.chunks[c], whole + c * self.chunk + jnp.arange(self.chunk)))
        for block, mask, slots in blocks:
            k, v = self.decompress(spec, state.fixed, block, slots.astype(jnp.int32), view, sub)
            ks, vs, seen = [*ks, k], [*vs, v], [*seen, mask]
        most = max(mask.shape[1] for mask in seen)
        seen = [jnp.broadcast_to(mask, (mask.shape[0], most, mask.shape[2])) for mask in seen]
        k = jnp.concatenate(ks, axis=2)
        bias = jnp.zeros(k.shape[:3])
        return Materialized(k, jnp.concatenate(vs, axis=2), bias, jnp.concatenate(seen, axis=2)[:, None])

    def live_bytes(self, spec, state, frozen, hot):
        fixed = bytes_of((state.fixed, state.frozen.prompt, state.sinks))
        chunks, used = state.frozen.chunks, 0
        if chunks is not None:
            whole = spec.prompt // self.chunk * self.chunk
            room = (spec.max_len - whole) // self.chunk
            used = bytes_of(chunks) * ((frozen - whole) // self.chunk) // room
        return fixed + used + bytes_of(state.hot) * hot // self.chunk


def put_token(spec: KVSpec, ring: Ring, k: jax.Array, v: jax.Array, view: View, size: int) -> Ring:
    """The ring with one more token; NaN when the ring or the cache is full, for nothing may be lost in silence."""
    fits = (view.hot < size) & (view.frozen + view.hot < spec.max_len)
    at = jnp.minimum(view.hot, size - 1)

    def put(old, new):
        new = jnp.where(fits, new.astype(old.dtype), jnp.asarray(math.nan, old.dtype))
        return jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=old.ndim - 2)

    return Ring(put(ring.k, k), put(ring.v, v))


def attend_hot(spec: KVSpec, ring: Ring, sinks: Ring | None, q: jax.Array, view: View, sub: int) -> Partial:
    """Attention to the exact tokens."""
    part = attend_exact(q, ring.k[sub], spec.value_of(ring.k[sub], ring.v[sub]), view.ring[:, None, None])
    if sinks is None:
        return part
    k = sinks.k[sub]
    return combine(part, attend_exact(q, k, spec.value_of(k, sinks.v[sub]), view.sinks[:, None, None]))


def mix_values(weights: jax.Array, again: Any) -> jax.Array:
    """`average` of codecs whose ``again`` is the block's values."""
    return mix(weights, again)
