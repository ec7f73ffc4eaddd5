"""Baselines that drop tokens: StreamingLLM, H2O and SnapKV, each at a fixed number of slots per head."""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses

import jax
import jax.numpy as jnp

from compressjax.kvcache.attention_mass import max_pool
from compressjax.kvcache.protocol import KVSpec
from compressjax.kvcache.rounded import RoundedCodec
from compressjax.kvcache.slots import Candidates, SlotCodec, Slots


def take_tokens(tokens: Candidates, at: jax.Array) -> Slots:
    """The candidates ``at``, int ``[B, K, C]``."""
    rows = lambda x: jnp.take_along_axis(x, at[..., None], axis=2)  # noqa: E731
    flat = lambda x: jnp.take_along_axis(x, at, axis=2)  # noqa: E731
    return Slots(
        rows(tokens.k), rows(tokens.v), flat(tokens.mass), flat(tokens.looks), flat(tokens.at), flat(tokens.bias)
    )


def protected(tokens: Candidates, *, window: int, sinks: int) -> jax.Array:
    """Which candidates stay whatever their score: the last ``window`` and the first ``sinks``; bool ``[B, K, N]``."""
    new = tokens.at >= tokens.now - window
    old = tokens.at - tokens.first[:, None, None] < sinks
    return tokens.valid & (new | old)


def best(tokens: Candidates, score: jax.Array, count: int, *, window: int, sinks: int) -> jax.Array:
    """Indices int ``[B, K, count]`` of the best candidates in the order of the text; invalid ones come last.

    Protected tokens come before all others; equal scores go to the earlier token.
    """
    score = jnp.where(protected(tokens, window=window, sinks=sinks), jnp.inf, score)
    _, chosen = jax.lax.top_k(jnp.where(tokens.valid, score, -jnp.inf), count)
    return jnp.sort(chosen, axis=-1)


class EvictingCodec(SlotCodec):
    """Base of codecs that drop every token they do not keep."""

    budget: int
    window: int
    interval: int
    sinks: int

    @property
    def chunk(self):
        return self.interval

    @property
    def slots(self):
        return self.budget

    def check(self, spec):
        check_budget(self, spec)
        self.check_rounding(spec)

    def rank(self, tokens: Candidates) -> jax.Array:
        """Scores, float32 ``[B, K, N]``."""
        raise NotImplementedError

    def choose(self, spec, tokens):
        at = best(tokens, self.rank(tokens), self.budget, window=self.window, sinks=self.sinks)
        return take_tokens(tokens, at)


def check_budget(cfg, spec: KVSpec | None = None) -> None:
    """Refuses budgets that hold less than what is protected."""
    name = type(cfg).__name__
    for field, least in (("window", 0), ("sinks", 0), ("interval", 1)):
        if getattr(cfg, field) < least:
            raise ValueError(f"{name}.{field} must be >= {least}, got {getattr(cfg, field)}")
    if cfg.budget <= cfg.window + cfg.sinks:
        raise ValueError(f"{name}.budget must exceed window + sinks = {cfg.window + cfg.sinks}, got {cfg.budget}")
    if spec is not None and cfg.budget > spec.max_len:
        raise ValueError(f"{name}.budget={cfg.budget} is more than the {spec.max_len} tokens the cache can ever hold")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingLLM(EvictingCodec):
    """The first ``sinks`` tokens and the newest ones (Xiao et al., 2023, arXiv 2309.17453).

    Positions stay absolute, unlike the paper's, which counts inside the cache to go beyond the context.

    Attributes:
      budget: tokens kept per head beside the ring.
      sinks: first tokens that stay.
      interval: tokens of the ring.
    """

    budget: int = 256
    sinks: int = 4
    interval: int = 64

    def __post_init__(self):
        check_budget(self)

    @property
    def window(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All that is not a sink is a window."""
        return 0

    @property
    def last(self):
        return 0

    def rank(self, tokens):
        return tokens.at.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class H2O(EvictingCodec):
    """The tokens that drew most attention in all, and the newest (Zhang et al., 2023, arXiv 2306.14048).

    Attributes:
      budget: tokens kept per head beside the ring.
      window: newest tokens that stay; None is half of the budget, as in the paper.
      sinks: first tokens that stay whatever they drew; the paper has none.
      interval: tokens of the ring; the paper drops one token at every step.
    """

    budget: int = 256
    window: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 0
    interval: int = 64

    needs = frozenset({"q", "probs"})

    def __post_init__(self):
        if self.window is None:
            object.__setattr__(self, "window", self.budget // 2)
        check_budget(self)

    @property
    def last(self):
        return 1

    def rank(self, tokens):
        return tokens.mass


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapKV(EvictingCodec):
    """The tokens that the last queries look at, with their neighbours (Li et al., 2024, arXiv 2404.14469).

    The paper compresses the prompt only and lets the cache grow afterwards; here every flush ranks again by the last
    queries, so that the cache keeps its size.

    Attributes:
      budget: tokens kept per head beside the ring.
      window: newest tokens that stay, and whose queries rank the others.
      sinks: first tokens that stay; the paper has none.
      pool: neighbours that share their best score.
      interval: tokens of the ring.
      rounding: how kept keys and values are rounded; None keeps them as floats.
    """

    budget: int = 256
    window: int = 32
    sinks: int = 0
    pool: int = 7
    interval: int = 64
    rounding: RoundedCodec | None = None

    needs = frozenset({"q"})

    def __post_init__(self):
        check_budget(self)
        check_pool("SnapKV", self.window, self.pool)

    @property
    def last(self):
        return self.window

    def rank(self, tokens):
        return max_pool(jnp.where(tokens.valid, tokens.recent, 0), self.pool)


def check_pool(name: str, window: int, pool: int) -> None:
    """Refuses a window without queries and a pool without a middle."""
    if window < 1:
        raise ValueError(f"{name}.window must be >= 1, for its queries rank tokens, got {window}")
    if pool < 1 or pool % 2 == 0:
        raise ValueError(f"{name}.pool must be odd and >= 1, got {pool}")
