"""A whole model's compressed cache: segments of layers with a codec each, and counters that all rows share.

Rows of a batch differ by left padding only. All codecs of a cache compress their rings at the same step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.protocol import Codec, KVSpec, Segment, State, View
from compressjax.models.attention import token_positions
from compressjax.ops.size import nbits, size, stored_bits


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is static about a cache.

    Attributes:
      spec: sizes.
      segments: codecs by layers, in order.
    """

    spec: KVSpec
    segments: tuple[Segment, ...]

    def __post_init__(self):
        spec, at = self.spec, 0
        for codec, start, stop in self.segments:
            if start != at or stop <= start:
                raise ValueError(f"segments must follow each other without gaps, got one of layers {start} to {stop}")
            if (stop - start) % codec.unit:
                raise ValueError(f"{type(codec).__name__} holds {codec.unit} layers together, not {stop - start}")
            codec.check(spec)
            at = stop
        if at != spec.layers:
            raise ValueError(f"the cache has {spec.layers} layers, but its segments end at {at}")
        chunks = {segment.codec.chunk for segment in self.segments}
        if len(chunks) > 1:
            raise ValueError(f"all codecs of a cache fill their rings together: sizes {sorted(chunks)} must be equal")

    def given(self, fixed: tuple) -> tuple:
        """One entry a segment of what the codecs are given; None for nothing.

        Raises:
          ValueError: another number of entries.
        """
        if fixed and len(fixed) != len(self.segments):
            raise ValueError(f"fixed needs one entry for each of {len(self.segments)} segments, got {len(fixed)}")
        return tuple(fixed) or (None,) * len(self.segments)

    @property
    def chunk(self) -> int:
        """Ring slots."""
        return self.segments[0].codec.chunk

    @property
    def whole(self) -> int:
        """Tokens of the prompt that are compressed with it."""
        return self.spec.prompt // self.chunk * self.chunk


@dataclasses.dataclass(frozen=True)
class KVCache:
    """Arrays of a compressed cache; a pytree.

    Attributes:
      states: one a segment, its arrays leading with the number of units.
      real: bool ``[B, S]``, slots of real tokens among all that can ever be used.
      frozen, hot: int32, tokens compressed and tokens in the ring.
      layout: static.
    """

    states: tuple[State, ...]
    real: jax.Array
    frozen: jax.Array
    hot: jax.Array
    layout: Layout

    def replace(self, **changes: Any) -> "KVCache":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


jax.tree_util.register_dataclass(KVCache, data_fields=["states", "real", "frozen", "hot"], meta_fields=["layout"])


class Bytes(NamedTuple):
    """Sizes in bytes.

    Attributes:
      live: of what holds tokens now.
      allocated: of all arrays, room for later tokens included.
      baseline: of a plain 16-bit cache with the same tokens.
    """

    live: int
    allocated: int
    baseline: int


def view_of(layout: Layout, codec: Codec, real: jax.Array, frozen: jax.Array, hot: jax.Array, new: int) -> View:
    """Which slots the next ``new`` positions see.

    Args:
      layout: of the cache.
      codec: whose sinks lie apart.
      real: bool ``[B, S]``, slots that hold real tokens.
      frozen, hot: int32 scalars.
      new: T.
    """
    spec, chunk, whole = layout.spec, layout.chunk, layout.whole
    room = (spec.max_len - whole) // chunk
    slot = jnp.arange(spec.max_len, dtype=jnp.int32)
    at = frozen + hot + jnp.arange(new, dtype=jnp.int32)
    sinks = sink_slots(spec, codec, real)
    near = jnp.ones((1, 1, spec.max_len), bool)
    if spec.window is not None:
        near = (at[:, None] - slot[None] < spec.window)[None]
    seen = near & real[:, None, :]
    cold = seen & ((slot < frozen)[None] & ~sinks)[:, None, :]
    # A ring that starts near the end of the cache would be clamped, so the slots are padded by one ring.
    padded = jnp.pad(seen & ((slot >= frozen)[None] & ~sinks)[:, None, :], ((0, 0), (0, 0), (0, chunk)))
    ring = jax.lax.dynamic_slice_in_dim(padded, frozen, chunk, axis=2) & (jnp.arange(chunk) < hot)[None, None]
    later = cold[:, :, whole : whole + room * chunk]
    chunks = later.reshape(*later.shape[:2], room, chunk).transpose(2, 0, 1, 3)
    first = jnp.argmax(real, axis=1).astype(jnp.int32)
    head = first[:, None] + jnp.arange(codec.exact_sinks, dtype=jnp.int32)[None]
    held = jnp.take_along_axis(sinks, jnp.minimum(head, spec.max_len - 1), axis=1)[:, None]
    if spec.window is not None:
        held = held & (at[None, :, None] - head[:, None, :] < spec.window)
    return View(cold[:, :, :whole], chunks, ring, held, at, frozen, hot, token_positions(real), first)


def sink_slots(spec: KVSpec, codec: Codec, real: jax.Array) -> jax.Array:
    """Which slots hold tokens of the prompt that are kept exactly: bool ``[B, S]``."""
    rank = jnp.cumsum(real.astype(jnp.int32), axis=1)
    return real & (rank <= codec.exact_sinks) & (jnp.arange(real.shape[1]) < spec.prompt)[None]


def append_token(cache: KVCache, new: tuple, seen: tuple = ()) -> KVCache:
    """The cache with one more token in its ring.

    Args:
      cache: with a free ring slot.
      new: for every segment, ``(k, v, q)`` of all units: ``[n, U, B, K, 1, d]``, ``[n, U, B, K, 1, e]`` and
        ``[n, U, B, K, G, 1, d]``.
      seen: for every segment, ``(stats, lse)`` of `Codec.attend`.
    """
    layout, spec = cache.layout, cache.layout.spec
    states = []
    for index, (segment, state) in enumerate(zip(layout.segments, cache.states, strict=True)):
        codec, (k, v, q) = segment.codec, new[index]
        view = view_of(layout, codec, cache.real, cache.frozen, cache.hot, 1)
        hot = jax.vmap(lambda h, k, v, q, c=codec, w=view: c.append(spec, h, k, v, q, w))(state.hot, k, v, q)
        state = state._replace(hot=hot)
        if "probs" in codec.needs and seen:
            stats, lse = seen[index]
            hot = jax.vmap(lambda s, p, e, q, c=codec, w=view: c.observe(spec, s, p, e, q, w))(state, stats, lse, q)
            state = state._replace(hot=hot)
        states.append(state)
    slot = jnp.minimum(cache.frozen + cache.hot, spec.max_len - 1)
    used = jnp.ones((cache.real.shape[0], 1), bool)
    real = jax.lax.dynamic_update_slice_in_dim(cache.real, used, slot, axis=1)
    return cache.replace(states=tuple(states), real=real, hot=cache.hot + 1)


def flush(cache: KVCache) -> KVCache:
    """Compresses a full ring in all layers and empties it; for use every ``cache.layout.chunk`` steps, under jit."""
    layout, spec = cache.layout, cache.layout.spec
    states = []
    for (codec, _, _), state in zip(layout.segments, cache.states, strict=True):
        view = view_of(layout, codec, cache.real, cache.frozen, cache.hot, 1)
        keep = cache.real & ~sink_slots(spec, codec, cache.real)
        keep = jax.lax.dynamic_slice_in_dim(keep, cache.frozen, layout.chunk, axis=1)
        states.append(jax.vmap(lambda s, c=codec, m=keep, w=view: c.flush(spec, s, m, w))(state))
    return cache.replace(states=tuple(states), frozen=cache.frozen + layout.chunk, hot=jnp.int32(0))


def materialize(cache: KVCache, layer: int, new: int = 1) -> Any:
    """Keys and values that attention of one layer stands for; `Materialized`, for tests and oracles."""
    layout = cache.layout
    for segment, state in zip(layout.segments, cache.states, strict=True):
        if segment.start <= layer < segment.stop:
            at, sub = divmod(layer - segment.start, segment.codec.unit)
            own = jax.tree.map(lambda a, at=at: a[at], state)
            view = view_of(layout, segment.codec, cache.real, cache.frozen, cache.hot, new)
            return segment.codec.materialize(layout.spec, own, view, sub)
    raise ValueError(f"the cache has {layout.spec.layers} layers, got layer {layer}")


def cache_bytes(cache: KVCache) -> Bytes:
    """Sizes of a concrete cache, every array counted: codes, scales, indices, rings, masks and projections."""
    layout, frozen, hot = cache.layout, int(cache.frozen), int(cache.hot)
    allocated = stored_bits(cache) // 8
    live = sum(
        segment.codec.live_bytes(layout.spec, state, frozen, hot)
        for segment, state in zip(layout.segments, cache.states, strict=True)
    )
    held = layout.spec.batch * (frozen + hot)
    return Bytes(live + held, allocated, layout.spec.dense_bytes(frozen + hot))


@nbits.register(KVCache)
def _nbits(w):
    return stored_bits(w)


@size.register(KVCache)
def _size(w):
    spec = w.layout.spec
    return spec.layers * spec.batch * spec.kv_heads * spec.max_len * (spec.head_dim + spec.stored_values)
