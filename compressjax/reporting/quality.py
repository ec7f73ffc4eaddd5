"""Several models on one text in one pass: the original is run once, however many are compared with it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.evaluation.batches import checked_logits
from compressjax.evaluation.divergence import token_kl
from compressjax.evaluation.logits import LinenLogits, LogitsFn
from compressjax.evaluation.paired import ratio_standard_error
from compressjax.evaluation.perplexity import bits_per_byte, token_nll
from compressjax.models import Llama, LlamaConfig

# Beyond this the exponential of a negative log-likelihood is no float any more.
_LARGEST_NLL = 700.0


class Candidate(NamedTuple):
    """A model to measure."""

    name: str
    config: LlamaConfig
    params: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """How well one model predicts a text.

    Attributes:
      name: the model's.
      perplexity, nll: of the text; nats per token.
      standard_error: of ``nll``, from the spread between windows; None with one window.
      tokens: scored.
      bits_per_byte: None when the bytes of the text are not known.
      kl: KL(original || this), nats per token; None for the original itself, or without one.
      agreement: share of positions where the most likely token is the original's; likewise.
    """

    name: str
    perplexity: float
    nll: float
    standard_error: float | None
    tokens: int
    bits_per_byte: float | None
    kl: float | None = None
    agreement: float | None = None


def measure(
    models: Sequence[Candidate],
    tokens: np.ndarray,
    *,
    num_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Quality, ...]:
    """Measures models on the same windows; the first is the original that the others are compared with.

    Args:
      models: at least one, of one vocabulary.
      tokens: int ``[N, T]`` windows; positions 2 to T of each are scored.
      num_bytes: UTF-8 bytes of the scored tokens.
      progress: called with (forward passes done, in all).

    Returns:
      One result per model, in order.

    Raises:
      ValueError: no model, vocabularies that differ, tokens outside them or beyond a context, or NaN logits.
    """
    if not models:
        raise ValueError("models must hold at least one model")
    for model in models:
        _check(model, models[0], tokens)
    functions = [LinenLogits(Llama(model.config)) for model in models]
    count = len(tokens)
    nll, kl, same = (np.zeros((len(models), count)) for _ in range(3))
    for window, row in enumerate(tokens):
        batch = jnp.asarray(row[None], jnp.int32)
        reference, losses = _reference(functions[0], models[0].params, batch)
        nll[0, window] = _total(losses, models[0].name, window)
        for index in range(1, len(models)):
            _tell(progress, window * len(models) + index, count * len(models))
            losses, divergence, agreed = _compared(functions[index], models[index].params, batch, reference)
            nll[index, window] = _total(losses, models[index].name, window)
            kl[index, window], same[index, window] = float(divergence), float(agreed)
        _tell(progress, (window + 1) * len(models), count * len(models))
    return tuple(
        _quality(model.name, nll[i], tokens.shape, num_bytes, (kl[i], same[i]) if i else None)
        for i, model in enumerate(models)
    )


def _check(model: Candidate, first: Candidate, tokens: np.ndarray) -> None:
    if model.config.vocab_size != first.config.vocab_size:
        raise ValueError(
            f"vocabularies differ: {first.name} has {first.config.vocab_size} tokens, "
            f"{model.name} {model.config.vocab_size}"
        )
    if tokens.shape[1] > model.config.max_positions:
        raise ValueError(
            f"windows of {tokens.shape[1]} tokens exceed the context of {model.name}, {model.config.max_positions}"
        )
    if int(tokens.max()) >= model.config.vocab_size:
        raise ValueError(
            f"token {int(tokens.max())} is outside the vocabulary of {model.name}, {model.config.vocab_size}"
        )


def _tell(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _total(losses: jax.Array, name: str, window: int) -> float:
    value = float(np.asarray(losses, np.float64).sum())
    if math.isnan(value):
        raise ValueError(f"{name} returned NaN in window {window}")
    return value


def _quality(name, nll, shape, num_bytes, compared) -> Quality:
    windows, length = shape
    scored, total = windows * (length - 1), float(nll.sum())
    mean = total / scored
    return Quality(
        name=name,
        perplexity=math.exp(mean) if mean < _LARGEST_NLL else math.inf,
        nll=mean,
        standard_error=ratio_standard_error(nll, np.full(windows, length - 1)),
        tokens=scored,
        bits_per_byte=None if num_bytes is None else bits_per_byte(total, num_bytes),
        kl=None if compared is None else float(compared[0].sum()) / (windows * length),
        agreement=None if compared is None else float(compared[1].sum()) / (windows * length),
    )


@functools.partial(jax.jit, static_argnums=0)
def _reference(logits_fn: LogitsFn, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = checked_logits(logits_fn(params, tokens), tokens)
    return logits, token_nll(logits, tokens)


@functools.partial(jax.jit, static_argnums=0)
def _compared(logits_fn: LogitsFn, params: Any, tokens: jax.Array, reference: jax.Array):
    """Losses ``[1, T - 1]``, summed KL and number of agreeing positions."""
    logits = checked_logits(logits_fn(params, tokens), tokens)
    agreed = jnp.argmax(logits, axis=-1) == jnp.argmax(reference, axis=-1)
    return token_nll(logits, tokens), jnp.sum(token_kl(reference, logits)), jnp.sum(agreed)
