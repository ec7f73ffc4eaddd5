"""Texts cut into a prompt, whose cache is compressed, and a continuation, which is scored.

The prompt is read once with exact attention, whatever the codec, so its keys, values and queries are kept and every
codec starts from them.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from compressjax.kvcache import (
    DenseKV,
    Generator,
    LlamaForm,
    cache_bytes,
    continuation,
    kv_compress,
    plain_prompt,
)
from compressjax.ops import nbits


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """One text.

    Attributes:
      prompt: int ``[1, P]``.
      plain: exact cache of the prompt, with "mask"; see `plain_prompt`.
      queries: of the prompt.
      rest: int ``[1, T]``, the tokens after it.
      dense: float32 ``[T, V]``, log-probabilities with the exact cache.
    """

    prompt: np.ndarray
    plain: dict
    queries: np.ndarray
    rest: np.ndarray
    dense: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What a codec did, window by window.

    Attributes:
      kl: mean KL divergence from the exact cache's predictions, in nats a token.
      nll, dense_nll: mean negative log-likelihood of the true tokens, with the codec and exactly.
      by_position: ``[T]``, KL by position, mean over windows.
      allocated, dense_bytes: bytes of the cache, and of a plain one of 16-bit floats.
    """

    kl: np.ndarray
    nll: np.ndarray
    dense_nll: np.ndarray
    by_position: np.ndarray
    allocated: int
    dense_bytes: int

    @property
    def gap(self) -> float:
        """Nats a token lost, mean over windows."""
        return float(np.mean(self.nll - self.dense_nll))

    @property
    def gap_error(self) -> float:
        """Standard error of `gap` over windows."""
        return float(np.std(self.nll - self.dense_nll, ddof=1) / len(self.nll) ** 0.5) if len(self.nll) > 1 else 0.0

    @property
    def divergence(self) -> float:
        """Mean KL."""
        return float(np.mean(self.kl))

    @property
    def share(self) -> float:
        """Bytes as a share of the plain cache's."""
        return self.allocated / self.dense_bytes


def windows(bed: lm.TestBed, tokens: np.ndarray, prompt: int) -> list[Window]:
    """Reads the prompts of texts ``int [N, P + T]``."""
    form, out = LlamaForm(bed.cfg), []
    for text in tokens:
        text = jnp.asarray(text[None], jnp.int32)
        plain, queries = read_prompt(form, bed.params, text[:, :prompt])
        exact = compressed(form, plain, queries, DenseKV(residual=32), ())
        dense = jax.nn.log_softmax(continued(form, bed.params, text[:, prompt:], exact)[0])
        held = jax.tree.map(np.asarray, plain)
        out.append(
            Window(
                np.asarray(text[:, :prompt]), held, np.asarray(queries), np.asarray(text[:, prompt:]), np.asarray(dense)
            )
        )
    return out


def score(bed: lm.TestBed, codec: Any, found: Iterable[Window], *, fixed: tuple = ()) -> Score:
    """Compresses every prompt and scores what follows, the continuation itself being exact."""
    form = LlamaForm(bed.cfg)

    def run(window):
        cache = compressed(form, window.plain, window.queries, codec, fixed)
        return continued(form, bed.params, jnp.asarray(window.rest), cache), cache

    return _scored(run, found, None)


def score_generator(generator: Generator, found: Iterable[Window], dense_bytes: int) -> Score:
    """The same for a model that was converted and reads prompts itself; ``dense_bytes`` are those of the original."""

    def run(window):
        _, cache = generator.read(window.prompt)
        return generator.score(window.rest, cache), cache

    return _scored(run, found, dense_bytes)


def _scored(run, found, dense_bytes):
    rows, cache = [], None
    for window in found:
        logits, cache = run(window)
        rows.append([np.asarray(x) for x in _compare(logits[0], window.dense, window.rest[0])])
    assert cache is not None
    kl, nll, dense = (np.stack(parts) for parts in zip(*rows, strict=True))
    size = cache_bytes(cache)
    return Score(
        kl=kl.mean(1),
        nll=nll.mean(1),
        dense_nll=dense.mean(1),
        by_position=kl.mean(0),
        allocated=size.allocated,
        dense_bytes=size.baseline if dense_bytes is None else dense_bytes,
    )


def allocated_bytes(bed: lm.TestBed, codec: Any, window: Window, *, fixed: tuple = ()) -> int:
    """Bytes of a prompt's cache, without making it."""
    form = LlamaForm(bed.cfg)
    shapes = jax.eval_shape(lambda: compressed(form, window.plain, window.queries, codec, fixed))
    return nbits(shapes) // 8


def compressed(form: LlamaForm, plain: dict, queries: Any, codec: Any, fixed: tuple) -> Any:
    """The compressed cache of a prompt, with 16-bit floats for what is exact."""
    cfg = form.cfg
    return kv_compress(
        plain,
        codec,
        queries=jnp.asarray(queries),
        fixed=fixed,
        dtype="bfloat16",
        window=cfg.sliding_window,
        rope=(cfg.rope_theta, cfg.rope_scaling),
    )


@functools.partial(jax.jit, static_argnums=0)
def read_prompt(form: LlamaForm, params: Any, tokens: jax.Array) -> tuple[dict, jax.Array]:
    """Exact cache and queries of a prompt without padding."""
    return plain_prompt(form, params, tokens, jnp.ones(tokens.shape, bool))


@functools.partial(jax.jit, static_argnums=0)
def continued(form: LlamaForm, params: Any, tokens: jax.Array, cache: Any) -> jax.Array:
    """Logits ``[B, T, V]`` of what follows a compressed prompt."""
    return continuation(form, params, tokens, cache)[0]


@jax.jit
def _compare(logits, dense, tokens):
    """KL by position, and negative log-likelihood of the tokens; the last prediction has no token to be right about."""
    ours = jax.nn.log_softmax(logits)
    kl = jnp.sum(jnp.exp(dense) * (dense - ours), axis=-1)
    following = tokens[1:, None]
    pick = lambda table: -jnp.take_along_axis(table[:-1], following, axis=-1)[:, 0]  # noqa: E731
    return kl, pick(ours), pick(dense)
