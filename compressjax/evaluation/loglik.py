"""Log-likelihood of continuations: the one engine under every task that scores given answers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.evaluation.batches import checked_logits
from compressjax.evaluation.logits import LogitsFn
from compressjax.evaluation.perplexity import token_nll


class Request(NamedTuple):
    """A continuation to score after a context; a space between the two belongs to the continuation."""

    context: str
    continuation: str


class Likelihood(NamedTuple):
    """Score of one continuation.

    Attributes:
      logprob: sum over its tokens of log p, nats.
      tokens: number of its tokens.
      num_bytes: its UTF-8 bytes.
      greedy: each of its tokens is the model's most likely one, so greedy decoding would write it.
    """

    logprob: float
    tokens: int
    num_bytes: int
    greedy: bool


class Engine(Protocol):
    """Anything that scores continuations; tests put oracles in its place."""

    def loglik(self, requests: Sequence[Request]) -> list[Likelihood]:
        """One score per request, in order."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LikelihoodEngine:
    """Scores continuations with a causal model, batched over few static shapes.

    Requests are sorted by length and padded on the right, which a causal model cannot see, to one of the lengths 32,
    48, 64, 96, 128, ...: two compilations per doubling, and at most a third of the positions is padding.

    Attributes:
      logits_fn: the model.
      params: its parameters.
      encode: text to token ids, without special tokens.
      context: longest sequence of the model, tokens.
      batch_tokens: positions in one forward pass; their logits are the peak of memory.
      prefix_id: token put before an empty context, such as the end-of-text token; None refuses empty contexts.
    """

    logits_fn: LogitsFn
    params: Any
    encode: Callable[[str], Sequence[int]]
    context: int
    batch_tokens: int = 1024
    prefix_id: int | None = None

    def __post_init__(self):
        for field in ("context", "batch_tokens"):
            if getattr(self, field) < 2:
                raise ValueError(f"LikelihoodEngine.{field} must be at least 2 tokens, got {getattr(self, field)}")

    def loglik(self, requests: Sequence[Request]) -> list[Likelihood]:
        """Scores, in the order of the requests.

        Raises:
          ValueError: a continuation without tokens, an empty context without ``prefix_id``, a sequence longer than
            the model's context, a token outside its vocabulary, or the model returned NaN.
        """
        pairs = [self._tokenised(index, request) for index, request in enumerate(requests)]
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        by_length: dict[int, list[int]] = {}
        for index, (ids, _) in enumerate(pairs):
            by_length.setdefault(min(bucket(len(ids)), self.context), []).append(index)
        for length, members in sorted(by_length.items()):
            size = max(1, self.batch_tokens // length)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                for index, score in zip(part, self._batch([pairs[i] for i in part], size, length, part), strict=True):
                    scores[index] = score
        return [
            Likelihood(logprob, len(ids) - first, len(request.continuation.encode("utf-8")), greedy)
            for (logprob, greedy), (ids, first), request in zip(scores, pairs, requests, strict=True)
        ]

    def _tokenised(self, index: int, request: Request) -> tuple[np.ndarray, int]:
        """Token ids ``[n]`` of context and continuation, and where the continuation begins."""
        context = list(self.encode(request.context)) if request.context else []
        whole = list(self.encode(request.context + request.continuation))
        # Where a token straddles the border, the context would change under the continuation: encode them apart.
        if whole[: len(context)] != context or len(whole) == len(context):
            whole = context + list(self.encode(request.continuation))
        if len(whole) == len(context):
            raise ValueError(f"request {index}: the continuation {request.continuation!r} has no tokens")
        if not context:
            if self.prefix_id is None:
                raise ValueError(f"request {index}: the context is empty, so the first token has no prediction")
            context, whole = [self.prefix_id], [self.prefix_id, *whole]
        if len(whole) > self.context:
            raise ValueError(f"request {index}: {len(whole)} tokens are longer than the context of {self.context}")
        return np.asarray(whole, np.int32), len(context)

    def _batch(
        self, pairs: list[tuple[np.ndarray, int]], size: int, length: int, indices: list[int]
    ) -> list[tuple[float, bool]]:
        tokens = np.zeros((size, length), np.int32)
        # Rows that fill the batch up keep first = end = 1: they have nothing to score.
        first, end = np.ones(size, np.int32), np.ones(size, np.int32)
        for row, (ids, start) in enumerate(pairs):
            tokens[row, : len(ids)] = ids
            first[row], end[row] = start, len(ids)
        logprob, greedy, vocab_size = _score(self.logits_fn, self.params, tokens, first, end)
        if tokens.max() >= int(vocab_size) or tokens.min() < 0:
            raise ValueError(
                f"token ids of requests {indices[0]} to {indices[-1]} span {tokens.min()} to {tokens.max()}, outside "
                f"the model's {int(vocab_size)} ids: another model's tokenizer?"
            )
        logprob, greedy = np.asarray(logprob, np.float64), np.asarray(greedy)
        for row, index in enumerate(indices):
            if np.isnan(logprob[row]):
                raise ValueError(f"request {index}: the model returned NaN")
        return [(float(logprob[row]), bool(greedy[row])) for row in range(len(pairs))]


def bucket(length: int) -> int:
    """The padded length of a sequence: the least of 32, 48, 64, 96, 128, ... not below ``length``.

    Example:
      >>> [bucket(n) for n in (1, 32, 33, 49, 65, 100)]
      [32, 32, 48, 64, 96, 128]
    """
    size = 32
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


@functools.partial(jax.jit, static_argnums=0)
def _score(
    logits_fn: LogitsFn, params: Any, tokens: jax.Array, first: jax.Array, end: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Over positions ``first`` to ``end - 1`` of each row of ``tokens [B, T]``: sum of log p, all most likely."""
    logits = checked_logits(logits_fn(params, tokens), tokens)
    position = jnp.arange(1, tokens.shape[1])[None, :]
    scored = (position >= first[:, None]) & (position < end[:, None])
    logprob = jnp.where(scored, -token_nll(logits, tokens), 0.0).sum(axis=1)
    hit = jnp.argmax(logits, axis=-1)[:, :-1] == tokens[:, 1:]
    return logprob, jnp.where(scored, hit, True).all(axis=1), jnp.int32(logits.shape[-1])
