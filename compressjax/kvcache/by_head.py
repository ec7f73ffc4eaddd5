"""Different codecs for the key heads of one layer."""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses

import jax
import jax.numpy as jnp

from compressjax.kvcache.partial import Partial
from compressjax.kvcache.protocol import Codec, KVSpec, Materialized, State, View


@dataclasses.dataclass(frozen=True)
class ByHead(Codec):
    """Heads in groups with a codec each; rings are filled together.

    Attributes:
      parts: ``(codec, key heads)``; every head in exactly one of them.
    """

    parts: tuple[tuple[Codec, tuple[int, ...]], ...]

    def __post_init__(self):
        for name in ("chunk", "exact_sinks"):
            found = sorted({getattr(codec, name) for codec, _ in self.parts})
            if len(found) > 1:
                raise ValueError(f"codecs of the heads of a layer must agree in {name}, got {found}")
        if any(codec.unit > 1 for codec, _ in self.parts):
            raise ValueError("a codec that holds several layers together takes whole layers, not single heads")

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What any of them needs."""
        return frozenset().union(*(codec.needs for codec, _ in self.parts))

    @property
    def chunk(self):
        return self.parts[0][0].chunk

    @property
    def exact_sinks(self):
        return self.parts[0][0].exact_sinks

    def _each(self, spec: KVSpec):
        for at, (codec, heads) in enumerate(self.parts):
            own = dataclasses.replace(spec, kv_heads=len(heads), q_heads=len(heads) * spec.groups)
            yield at, codec, own, jnp.array(heads, jnp.int32)

    def check(self, spec):
        held = sorted(head for _, heads in self.parts for head in heads)
        if held != list(range(spec.kv_heads)):
            raise ValueError(f"heads 0 to {spec.kv_heads - 1} must each have one codec, got {held}")
        for _, codec, own, _ in self._each(spec):
            codec.check(own)

    def prefill(self, spec, k, v, real, q, fixed):
        states = [
            codec.prefill(
                own,
                k[:, :, heads],
                v[:, :, heads],
                real,
                None if q is None or "q" not in codec.needs else q[:, :, heads],
                None,
            )
            for _, codec, own, heads in self._each(spec)
        ]
        return State(None, *(tuple(parts) for parts in zip(*(state[1:] for state in states), strict=True)))

    def _state(self, state: State, at: int) -> State:
        return State(None, state.frozen[at], state.hot[at], state.sinks[at])

    def attend(self, spec, state, q, view, sub):
        parts, stats = [], []
        for at, codec, own, heads in self._each(spec):
            part, seen = codec.attend(own, self._state(state, at), q[:, heads], view, sub)
            parts.append(part)
            stats.append(seen)
        # Heads come back in the order of the parts.
        order = jnp.argsort(jnp.array([head for _, heads in self.parts for head in heads], jnp.int32))
        joined = [jnp.concatenate(arrays, axis=1)[:, order] for arrays in zip(*parts, strict=True)]
        return Partial(*joined), tuple(stats)

    def append(self, spec, hot, k, v, q, view):
        return tuple(
            codec.append(own, hot[at], k[:, :, heads], v[:, :, heads], q[:, :, heads], view)
            for at, codec, own, heads in self._each(spec)
        )

    def observe(self, spec, state, stats, lse, q, view):
        return tuple(
            codec.observe(own, self._state(state, at), stats[at], lse[:, :, heads], q[:, :, heads], view)
            for at, codec, own, heads in self._each(spec)
        )

    def flush(self, spec, state, keep, view):
        states = [codec.flush(own, self._state(state, at), keep, view) for at, codec, own, _ in self._each(spec)]
        return State(None, *(tuple(parts) for parts in zip(*(new[1:] for new in states), strict=True)))

    def materialize(self, spec: KVSpec, state: State, view: View, sub: int) -> Materialized:
        found = [codec.materialize(own, self._state(state, at), view, sub) for at, codec, own, _ in self._each(spec)]
        slots = max(part.k.shape[2] for part in found)

        def padded(part: Materialized) -> Materialized:
            gap = slots - part.k.shape[2]
            room = ((0, 0), (0, 0), (0, gap))
            heads = part.k.shape[1]
            seen = jnp.broadcast_to(part.seen, (part.seen.shape[0], heads, *part.seen.shape[2:]))
            return Materialized(
                jnp.pad(part.k, (*room, (0, 0))),
                jnp.pad(part.v, (*room, (0, 0))),
                jnp.pad(part.bias, room),
                jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (0, gap))),
            )

        order = jnp.argsort(jnp.array([head for _, heads in self.parts for head in heads], jnp.int32))
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1)[:, order], *map(padded, found))

    def live_bytes(self, spec, state, frozen, hot):
        return sum(codec.live_bytes(own, self._state(state, at), frozen, hot) for at, codec, own, _ in self._each(spec))
