"""What every compressed cache offers: one protocol for quantised, merged, projected and evicted keys and values.

A codec is a frozen dataclass without arrays, a static argument of jit; its arrays are a `State`, one a unit of
consecutive layers. The newest ``chunk`` tokens lie in an exact ring, everything before them is frozen in compressed
form. A full ring is compressed by ``flush``, called every ``chunk`` steps from outside the step: a condition inside it
would cost at every token.

Letters: U layers of a unit, B batch, K key heads, G query heads of a key head, T new positions, R ring slots, d and e
widths of keys and values. Keys are rotated. Arrays of a stacked cache lead with the number of units.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.partial import Partial
from compressjax.models.config import RopeScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVSpec:
    """Sizes of a cache, all static.

    Attributes:
      layers, batch, q_heads, kv_heads, head_dim: counts, and the width of a key.
      prompt: tokens of the prompt, padding included.
      max_len: tokens the cache can ever hold.
      dtype: of what is stored exactly.
      value_dim: width of a value; None is that of a key.
      shared: a value is the first ``value_dim`` channels of its key, and is not stored (latent attention).
      window: a query sees this many last positions, its own included; None for all.
      rope: base and stretch of rotary positions, for codecs that turn keys back; None when there are none.
    """

    layers: int
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    prompt: int
    max_len: int
    dtype: str = "float32"
    value_dim: int | None = None
    shared: bool = False
    window: int | None = None
    rope: tuple[float, RopeScaling | None] | None = None

    def __post_init__(self):
        for field in ("layers", "batch", "q_heads", "kv_heads", "head_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"KVSpec.{field} must be >= 1, got {getattr(self, field)}")
        if self.prompt < 1:
            raise ValueError(f"the prompt is empty: KVSpec.prompt must be >= 1, got {self.prompt}")
        if self.max_len < self.prompt:
            raise ValueError(f"KVSpec.max_len={self.max_len} is less than the prompt of {self.prompt} tokens")
        if self.q_heads % self.kv_heads:
            raise ValueError(f"KVSpec.kv_heads={self.kv_heads} does not divide q_heads={self.q_heads}")
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"KVSpec.dtype must be a floating-point type, got {self.dtype!r}")
        if self.shared and (self.value_dim is None or self.value_dim > self.head_dim):
            raise ValueError(f"KVSpec.shared needs value_dim <= head_dim={self.head_dim}, got {self.value_dim}")

    @property
    def groups(self) -> int:
        """Query heads of a key head."""
        return self.q_heads // self.kv_heads

    @property
    def values(self) -> int:
        """Width of a value."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def stored_values(self) -> int:
        """Width of a value as stored beside its key."""
        return 0 if self.shared else self.values

    def value_of(self, k: jax.Array, v: jax.Array) -> jax.Array:
        """The values that belong to keys ``k``, whether they were stored or are part of them."""
        return k[..., : self.values] if self.shared else v

    def dense_bytes(self, tokens: int) -> int:
        """Bytes of ``tokens`` tokens in a plain cache of 16-bit floats."""
        return 2 * self.layers * self.batch * self.kv_heads * tokens * (self.head_dim + self.stored_values)


class Ring(NamedTuple):
    """The newest tokens, exact: ``k [U, B, K, R, d]`` and ``v [U, B, K, R, e]``."""

    k: jax.Array
    v: jax.Array


class State(NamedTuple):
    """Arrays of one unit of layers.

    Attributes:
      fixed: what the codec was given for these layers, such as projections; None for most.
      frozen: the compressed tokens.
      hot: the ring, and what else changes at every step.
      sinks: `Ring` of each row's first tokens, exact; None when there are none.
    """

    fixed: Any
    frozen: Any
    hot: Any
    sinks: Any


class View(NamedTuple):
    """Which slots new positions see; the same in all layers.

    Attributes:
      prompt: bool ``[B, T or 1, P]``, compressed slots of the prompt.
      chunks: bool ``[C, B, T or 1, R]``, slots compressed later.
      ring: bool ``[B, T or 1, R]``.
      sinks: bool ``[B, T or 1, n]``.
      at: int32 ``[T]``, slots of the new positions.
      frozen, hot: int32, tokens compressed and tokens in the ring.
      positions: int32 ``[B, S]``, rotary position of every slot.
      first: int32 ``[B]``, slot of each row's first real token.
    """

    prompt: jax.Array
    chunks: jax.Array
    ring: jax.Array
    sinks: jax.Array
    at: jax.Array
    frozen: jax.Array
    hot: jax.Array
    positions: jax.Array
    first: jax.Array


class Segment(NamedTuple):
    """Layers ``start .. stop - 1`` and the codec they share."""

    codec: "Codec"
    start: int
    stop: int


class Materialized(NamedTuple):
    """The cache as plain attention would take it, for tests and oracles.

    Attributes:
      k, v: float32 ``[B, K, S, d]`` and ``[B, K, S, e]``.
      bias: float32 ``[B, K, S]``, added to scores.
      seen: bool ``[B, K, T or 1, S]``.
    """

    k: jax.Array
    v: jax.Array
    bias: jax.Array
    seen: jax.Array


class Codec(abc.ABC):
    """A way to hold keys and values; subclasses are frozen dataclasses.

    Attributes:
      unit: consecutive layers held together.
      needs: what the codec has to be shown beside keys and values: "q", queries; "probs", what attention looked at.
    """

    unit: int = 1
    needs: frozenset[str] = frozenset()

    @property
    @abc.abstractmethod
    def chunk(self) -> int:
        """Ring slots, and so the steps between two flushes."""

    @property
    def exact_sinks(self) -> int:
        """First tokens of a row that stay exact beside the compressed ones."""
        return 0

    def check(self, spec: KVSpec) -> None:
        """Refuses sizes that do not fit, with a ValueError; by default none."""
        del spec

    def segments(self, layers: int) -> tuple[Segment, ...]:
        """How a stack of layers is divided; by default all of them are alike."""
        if layers % self.unit:
            raise ValueError(f"{type(self).__name__} holds {self.unit} layers together, which do not divide {layers}")
        return (Segment(self, 0, layers),)

    @abc.abstractmethod
    def prefill(
        self, spec: KVSpec, k: jax.Array, v: jax.Array, real: jax.Array, q: jax.Array | None, fixed: Any
    ) -> State:
        """Compresses a prompt.

        Args:
          spec: sizes.
          k, v: ``[U, B, K, P, d]`` and ``[U, B, K, P, e]``.
          real: bool ``[B, P]``, False at left padding.
          q: ``[U, B, K, G, P, d]``, scaled; None unless the codec needs it.
          fixed: what the caller gives the codec for these layers.
        """

    @abc.abstractmethod
    def attend(self, spec: KVSpec, state: State, q: jax.Array, view: View, sub: int) -> tuple[Partial, Any]:
        """Attention of new positions to everything held.

        Args:
          spec, state: sizes and arrays.
          q: ``[B, K, G, T, d]``, scaled.
          view: which slots they see.
          sub: which layer of the unit.

        Returns:
          The partial, and what `observe` wants to know; None unless the codec needs "probs".
        """

    @abc.abstractmethod
    def append(self, spec: KVSpec, hot: Any, k: jax.Array, v: jax.Array, q: Any, view: View) -> Any:
        """Puts one token ``k, v [U, B, K, 1, d]`` into the ring."""

    def observe(self, spec: KVSpec, state: State, stats: Any, lse: jax.Array, q: jax.Array, view: View) -> Any:
        """The hot part after one token's attention with denominators ``exp(lse) [U, B, K, G, 1]`` was looked at."""
        return state.hot

    @abc.abstractmethod
    def flush(self, spec: KVSpec, state: State, keep: jax.Array, view: View) -> State:
        """Compresses a full ring.

        Args:
          spec, state: sizes and arrays.
          keep: bool ``[B, R]``, ring slots that are real tokens and no sinks.
          view: of the moment.
        """

    @abc.abstractmethod
    def materialize(self, spec: KVSpec, state: State, view: View, sub: int) -> Materialized:
        """Keys and values that `attend` stands for."""

    @abc.abstractmethod
    def live_bytes(self, spec: KVSpec, state: State, frozen: int, hot: int) -> int:
        """Bytes of a state of this shape that hold tokens, out of those allocated; leading axes are counted."""
