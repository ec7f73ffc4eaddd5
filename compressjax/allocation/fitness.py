"""How far a candidate's predictions lie from the original's, by Kullback-Leibler divergence on text."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from compressjax.evaluation.divergence import token_kl
from compressjax.evaluation.logits import LogitsFn

Assemble = Callable[[Any, jax.Array], Any]


class TextBatch(NamedTuple):
    """Windows of text, and what the original predicts in them.

    Attributes:
      tokens: int32 ``[N, 1, T]``.
      counted: bool ``[N, 1, T]``: all positions but the last of each window, cut to the tokens asked for.
      values: float32 ``[N, 1, T, K]``, the original's logits, or the K largest of them.
      ids: int32 ``[N, 1, T, K]``, whose they are, or None for all in order.
    """

    tokens: jax.Array
    counted: jax.Array
    values: jax.Array
    ids: jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextFitness:
    """``(state, batch) -> mean KL(original || candidate)`` in nats per token; lower is better.

    The original's predictions are computed once per batch, and one compiled program per batch shape serves every
    candidate, for the state is a traced argument. With ``topk`` both distributions are taken over the original's K most
    likely tokens alone (EvoPress, arXiv 2410.14649: 512 is as good as all); a batch then holds 8 K bytes a token
    instead of 4 V.

    Attributes:
      logits_fn: the model.
      params: the original.
      assemble: ``(data, state) -> params`` of a candidate; pure, and hashable, so a function of a module.
      data: what it needs besides the state.
      tokens: int ``[windows, T]`` that batches are drawn from.
      topk: K, or None for the whole vocabulary.
    """

    logits_fn: LogitsFn
    params: Any
    assemble: Assemble
    data: Any
    tokens: ArrayLike
    topk: int | None = 512

    def __post_init__(self):
        tokens = np.asarray(self.tokens)
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
            raise ValueError(f"TextFitness.tokens must be [windows >= 1, length >= 2], got {tokens.shape}")
        if self.topk is not None and self.topk < 2:
            raise ValueError(f"TextFitness.topk must be >= 2 or None, got {self.topk}")

    def draw(self, count: int, rng: np.random.Generator) -> TextBatch:
        """A batch of ``count`` tokens: windows drawn without putting back, the last one cut.

        Raises:
          ValueError: there are not as many tokens.
        """
        every = np.asarray(self.tokens, np.int32)
        length = every.shape[1]
        needed = -(-count // length)
        if needed > len(every):
            raise ValueError(f"a stage asks for {count} tokens, there are {every.size}")
        drawn = every[rng.choice(len(every), needed, replace=False)]
        counted = np.ones(drawn.shape, bool)
        counted[:, -1] = False
        counted[-1, count - (needed - 1) * length :] = False
        if not counted.any():
            raise ValueError(f"{count} tokens leave no position to judge: ask for at least 2")
        tokens = jnp.asarray(drawn[:, None])
        values, ids = _predictions(self.logits_fn, self.topk, self.params, tokens)
        return TextBatch(tokens, jnp.asarray(counted[:, None]), values, ids)

    def __call__(self, state: ArrayLike, batch: TextBatch) -> float:
        """Mean divergence of a candidate on a batch."""
        return float(_divergence(self.logits_fn, self.assemble, self.data, jnp.asarray(state), batch))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predictions(logits_fn, topk, params, tokens):
    def of_window(window):
        logits = logits_fn(params, window).astype(jnp.float32)
        return (logits, None) if topk is None else jax.lax.top_k(logits, min(topk, logits.shape[-1]))

    return jax.lax.map(of_window, tokens)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _divergence(logits_fn, assemble, data, state, batch):
    params = assemble(data, state)

    def of_window(window):
        logits = logits_fn(params, window.tokens).astype(jnp.float32)
        if window.ids is not None:
            logits = jnp.take_along_axis(logits, window.ids, axis=-1)
        return jnp.where(window.counted, token_kl(window.values, logits), 0.0).sum()

    return jax.lax.map(of_window, batch).sum() / batch.counted.sum().astype(jnp.float32)
