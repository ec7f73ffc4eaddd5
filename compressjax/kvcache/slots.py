"""Codecs that keep a fixed number of tokens per head and drop or merge the others.

The frozen part is ``budget`` slots per key head, each with its key, value, position and the attention it has drawn. A
flush puts slots and ring together, ranks them and keeps the best; which of them, and what becomes of the others, is the
subclass's.

Letters: B batch, K key heads, G query heads of a key head, C slots, R ring slots, w last queries, d and e widths.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.attention_mass import attention_mass
from compressjax.kvcache.blocks import bytes_of, put_token
from compressjax.kvcache.packed import Packed, pack_groups, unpack_groups
from compressjax.kvcache.partial import UNSEEN, Partial, dot, mix, weigh
from compressjax.kvcache.protocol import Codec, KVSpec, Materialized, Ring, State, View
from compressjax.kvcache.rounded import RoundedCodec


class Slots(NamedTuple):
    """Kept tokens.

    Attributes:
      k, v: ``[B, K, C, d]`` and ``[B, K, C, e]`` in the cache's dtype, or their codes.
      mass: float32 ``[B, K, C]``, attention drawn so far, summed over queries.
      looks: int32 ``[B, K, C]``, queries that could give any.
      at: int32 ``[B, K, C]``, slot of the token in the text; -1 where nothing is kept.
      bias: float32 ``[B, K, C]``, added to scores.
    """

    k: Any
    v: Any
    mass: jax.Array
    looks: jax.Array
    at: jax.Array
    bias: jax.Array


class Hot(NamedTuple):
    """What changes at every step.

    Attributes:
      ring: newest tokens.
      mass: float32 ``[B, K, C + R]``, attention drawn since the last flush, by slots and then by the ring.
      looks: int32 ``[B, K, C + R]``, queries that could give any.
      q: ``[B, K, G, w, d]``, the last queries, oldest first; w is 0 for codecs that rank without them.
    """

    ring: Ring
    mass: jax.Array
    looks: jax.Array
    q: jax.Array


class Candidates(NamedTuple):
    """Tokens that a flush chooses from, in the order of the text where they are equal: see `Slots`.

    Attributes:
      recent: float32 ``[B, K, N]``, mean attention of the last w queries.
      now: int32 scalar, slot of the next token.
      first: int32 ``[B]``, slot of each row's first real token.
    """

    k: jax.Array
    v: jax.Array
    mass: jax.Array
    looks: jax.Array
    at: jax.Array
    bias: jax.Array
    recent: jax.Array
    now: jax.Array
    first: jax.Array

    @property
    def valid(self) -> jax.Array:
        """bool ``[B, K, N]``."""
        return self.at >= 0


class SlotCodec(Codec):
    """Base of codecs with slots.

    Attributes:
      rounding: how kept keys and values are rounded; they are rounded anew at every flush. None keeps them as floats.
    """

    rounding: RoundedCodec | None = None

    @property
    @abc.abstractmethod
    def slots(self) -> int:
        """Tokens kept per head, C."""

    @property
    @abc.abstractmethod
    def last(self) -> int:
        """Last queries that rank tokens, w; 0 for none."""

    @abc.abstractmethod
    def choose(self, spec: KVSpec, tokens: Candidates) -> Slots:
        """Fills the slots from ``N >= C`` candidates."""

    def _scores_tokens(self) -> bool:
        return "q" in self.needs

    def prefill(self, spec, k, v, real, q, fixed):
        k, v = k[0], v[0]
        size, b, heads = self.chunk, spec.batch, spec.kv_heads
        whole = spec.prompt // size * size
        if q is None:
            mass = recent = jnp.zeros((b, heads, spec.prompt), jnp.float32)
            looks = jnp.zeros((b, spec.prompt), jnp.int32)
            queries = jnp.zeros((b, heads, spec.groups, 0, spec.head_dim), spec.dtype)
        else:
            mass, looks, recent = attention_mass(q[0], k, real, self.last, spec.window)
            queries = q[0][..., max(0, spec.prompt - self.last) :, :]
            gap = self.last - queries.shape[3]
            queries = jnp.pad(queries, ((0, 0), (0, 0), (0, 0), (gap, 0), (0, 0))).astype(spec.dtype)
        at = jnp.where(real, jnp.arange(spec.prompt, dtype=jnp.int32)[None], -1)
        room = ((0, 0), (0, 0), (0, max(0, self.slots - whole)))
        spread = lambda x: jnp.broadcast_to(x[:, None], (b, heads, x.shape[1]))[:, :, :whole]  # noqa: E731
        found = Candidates(
            k=jnp.pad(k[:, :, :whole].astype(jnp.float32), (*room, (0, 0))),
            v=jnp.pad(v[:, :, :whole].astype(jnp.float32), (*room, (0, 0))),
            mass=jnp.pad(mass[:, :, :whole], room),
            looks=jnp.pad(spread(looks), room),
            at=jnp.pad(spread(at), room, constant_values=-1),
            bias=jnp.zeros((b, heads, max(whole, self.slots)), jnp.float32),
            recent=jnp.pad(recent[:, :, :whole], room),
            now=jnp.int32(whole),
            first=jnp.argmax(real, axis=1).astype(jnp.int32),
        )
        rest = ((0, 0), (0, 0), (0, size - (spec.prompt - whole)))
        drawn = ((0, 0), (0, 0), (self.slots, rest[-1][1]))
        ring = Ring(*(jnp.pad(x[None, :, :, whole:].astype(spec.dtype), ((0, 0), *rest, (0, 0))) for x in (k, v)))
        looks = jnp.broadcast_to(looks[:, None], (b, heads, spec.prompt))
        hot = Hot(ring, jnp.pad(mass[:, :, whole:], drawn), jnp.pad(looks[:, :, whole:], drawn), queries)
        return State(fixed, self._stored(spec, self.choose(spec, found)), hot, None)

    def check_rounding(self, spec: KVSpec) -> None:
        """Refuses, with a ValueError, slots that cannot be rounded in whole groups."""
        if self.rounding is None:
            return
        self.rounding.check(spec)
        group = max([32, *(form.group for form in self.rounding.formats(spec) if form.axis == "channel")])
        if self.slots % group or self.slots % 32:
            raise ValueError(f"{type(self).__name__}.budget={self.slots} must be a multiple of {group} to be rounded")
        if self.rounding.turned_back:
            raise ValueError(f"{type(self).__name__}.rounding must not turn keys back: a slot has its own position")

    def _stored(self, spec, slots):
        if self.rounding is None:
            return slots._replace(k=slots.k.astype(spec.dtype), v=slots.v.astype(spec.dtype))
        key, value = (
            pack_groups(x, form.axis, bits=form.bits, group=form.group, sym=form.sym, keep=slots.at >= 0)
            if x.shape[-1]
            else x
            for x, form in zip((slots.k, slots.v), self.rounding.formats(spec), strict=True)
        )
        return slots._replace(k=key, v=value)

    def _kept(self, spec, slots):
        """Keys and values of the slots, float32."""
        if self.rounding is None:
            return slots.k.astype(jnp.float32), slots.v.astype(jnp.float32)
        return tuple(
            unpack_groups(x, form.axis, bits=form.bits) if isinstance(x, Packed) else x
            for x, form in zip((slots.k, slots.v), self.rounding.formats(spec), strict=True)
        )

    def _held(self, spec: KVSpec, state: State, view: View):
        """Keys, values, biases and what is seen of slots and ring together."""
        slots, ring = state.frozen, state.hot.ring
        new_k, new_v = ring.k[0].astype(jnp.float32), ring.v[0].astype(jnp.float32)
        old_k, old_v = self._kept(spec, slots)
        k = jnp.concatenate([old_k, new_k], axis=2)
        v = jnp.concatenate([spec.value_of(old_k, old_v), spec.value_of(new_k, new_v)], axis=2)
        seen = (slots.at >= 0)[:, :, None, :]
        if spec.window is not None:
            seen = seen & (view.at[None, None, :, None] - slots.at[:, :, None, :] < spec.window)
        most = max(seen.shape[2], view.ring.shape[1])
        both = [jnp.broadcast_to(x, (*slots.at.shape[:2], most, x.shape[-1])) for x in (seen, view.ring[:, None, :, :])]
        bias = jnp.pad(slots.bias, ((0, 0), (0, 0), (0, ring.k.shape[3])))
        return k, v, bias, jnp.concatenate(both, axis=-1)

    def attend(self, spec, state, q, view, sub):
        k, v, bias, seen = self._held(spec, state, view)
        scores = dot(q, k) + bias[:, :, None, None]
        weights, m, total = weigh(scores, seen[:, :, None])
        logits = jnp.where(seen[:, :, None], scores, UNSEEN)[..., -1, :] if "probs" in self.needs else None
        return Partial(mix(weights, v), m, total), logits

    def append(self, spec, hot, k, v, q, view):
        ring = put_token(spec, hot.ring, k, v, view, self.chunk)
        if not self._scores_tokens():
            return hot._replace(ring=ring)
        queries = jnp.concatenate([hot.q[..., 1:, :], q[0].astype(hot.q.dtype)], axis=3)
        return hot._replace(ring=ring, q=queries)

    def observe(self, spec, state, stats, lse, q, view):
        """Adds one query's attention to what every token has drawn; the ring already holds the query's own token."""
        slots, ring = state.frozen.at.shape[-1], state.hot.ring
        own = jnp.einsum("bkgtd,bkrd->bkgr", q[0], ring.k[0].astype(jnp.float32))
        here = (jnp.arange(self.chunk) == view.hot)[None, None, None]
        logits = jnp.concatenate([stats[0][..., :slots], jnp.where(here, own, stats[0][..., slots:])], axis=-1)
        weights = jnp.where(logits > UNSEEN, jnp.exp(logits - lse[0]), 0)
        looks = jnp.any(logits > UNSEEN, axis=2).astype(jnp.int32)
        return state.hot._replace(mass=state.hot.mass + jnp.mean(weights, axis=2), looks=state.hot.looks + looks)

    def flush(self, spec, state, keep, view):
        slots, hot = state.frozen, state.hot
        b, heads, _ = slots.at.shape
        old_k, old_v = self._kept(spec, slots)
        ring_at = jnp.where(keep, view.frozen + jnp.arange(self.chunk, dtype=jnp.int32)[None], -1)
        spread = lambda x: jnp.broadcast_to(x[:, None], (b, heads, x.shape[1]))  # noqa: E731
        join = lambda old, new: jnp.concatenate([old, new], axis=2)  # noqa: E731
        at = join(slots.at, spread(ring_at))
        k = join(old_k, hot.ring.k[0].astype(jnp.float32))
        bias = jnp.pad(slots.bias, ((0, 0), (0, 0), (0, self.chunk)))
        now = view.frozen + self.chunk
        found = Candidates(
            k=k,
            v=join(old_v, hot.ring.v[0].astype(jnp.float32)),
            mass=hot.mass.at[:, :, : self.slots].add(slots.mass),
            looks=hot.looks.at[:, :, : self.slots].add(slots.looks),
            at=at,
            bias=bias,
            recent=self._recent(spec, hot.q, k, bias, at, now),
            now=now,
            first=view.first,
        )
        hot = hot._replace(mass=jnp.zeros_like(hot.mass), looks=jnp.zeros_like(hot.looks))
        return state._replace(frozen=self._stored(spec, self.choose(spec, found)), hot=hot)

    def _recent(self, spec, q, k, bias, at, now):
        """Mean attention of the stored last queries, float32 ``[B, K, N]``."""
        if not self._scores_tokens():
            return jnp.zeros(at.shape, jnp.float32)
        asked = now - self.last + jnp.arange(self.last, dtype=jnp.int32)
        seen = (at >= 0)[:, :, None, :] & (at[:, :, None, :] <= asked[None, None, :, None])
        if spec.window is not None:
            seen &= asked[None, None, :, None] - at[:, :, None, :] < spec.window
        scores = jnp.where(seen[:, :, None], dot(q, k) + bias[:, :, None, None], UNSEEN)
        asking = jnp.any(seen, axis=-1)[:, :, None, :, None]  # a prompt shorter than the window left gaps
        weights = jnp.where(asking, jax.nn.softmax(scores, axis=-1), 0)
        count = jnp.maximum(jnp.sum(asking, axis=(2, 3), dtype=jnp.int32), 1).astype(jnp.float32)
        return jnp.sum(weights, axis=(2, 3)) / (spec.groups * count)

    def materialize(self, spec, state, view, sub):
        k, v, bias, seen = self._held(spec, state, view)
        return Materialized(k.astype(jnp.float32), v.astype(jnp.float32), bias, seen)

    def live_bytes(self, spec, state, frozen, hot):
        used = min(self.slots, frozen)
        small = bytes_of((state.hot.q, state.hot.looks, state.hot.mass))
        return bytes_of(state.frozen) * used // self.slots + bytes_of(state.hot.ring) * hot // self.chunk + small
