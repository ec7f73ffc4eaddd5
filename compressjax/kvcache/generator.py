"""Text generation on a compressed cache: the same calls as `models.generate`, with a cache config."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from compressjax.kvcache import decoding
from compressjax.kvcache.cache import Bytes, KVCache, Layout, cache_bytes, flush
from compressjax.kvcache.decoding import Form, LlamaForm
from compressjax.kvcache.rules import Rules, segments_by
from compressjax.models.config import LlamaConfig
from compressjax.models.generate import check_key, check_prompt, check_room, end_ids
from compressjax.models.sampling import Sampling, sample


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A decoder with a way to hold its cache.

    One program is compiled for the prompt's shape, one for a step and one for the flush of the ring; no step is traced
    twice.

    Attributes:
      cfg: the model.
      params: its parameters, dense or compressed.
      kv: a codec such as ``GEAR(bits=2)``, None for a plain cache, or codecs by layers and heads (`kvcache.rules`).
      form: how the model attends; by default the grouped-query attention of ``cfg``.
      fixed: what the codecs of the segments are given, stacked by layer, such as trained projections; a tuple with one
        entry a segment.
      dtype: of activations.
      cache_dtype: of what the cache keeps exactly; by default ``dtype``.
    """

    cfg: LlamaConfig
    params: Any
    kv: Rules = None
    form: Form | None = None
    fixed: tuple = ()
    dtype: str = "float32"
    cache_dtype: str | None = None

    @property
    def model(self) -> Form:
        """The model's `Form`."""
        return LlamaForm(self.cfg) if self.form is None else self.form

    def layout(self, batch: int, prompt: int, max_len: int) -> Layout:
        """The layout of a cache for these sizes.

        Raises:
          ValueError: sizes that the codecs refuse.
        """
        spec = self.model.spec(batch, prompt, max_len, self.cache_dtype or self.dtype)
        return Layout(spec, segments_by(self.kv, spec))

    def read(self, tokens: ArrayLike, *, mask: ArrayLike | None = None, new: int = 0) -> tuple[jax.Array, KVCache]:
        """Reads prompts and compresses them.

        Args:
          tokens: int ``[B, P]``, padded on the left.
          mask: bool ``[B, P]``, the real tokens; None when all are.
          new: tokens that will follow.

        Returns:
          Logits float32 ``[B, V]`` after the last token, and the cache.

        Raises:
          ValueError: as `models.generate`, or sizes that the codecs refuse.
        """
        tokens, mask = check_prompt(self.cfg, tokens, mask)
        if new:
            check_room(self.cfg, tokens.shape[1], new)
        layout = self.layout(tokens.shape[0], tokens.shape[1], tokens.shape[1] + new)
        return _read(self.model, layout, self.dtype, self.params, tokens, mask, self.fixed)

    def score(self, tokens: ArrayLike, cache: KVCache) -> jax.Array:
        """Logits float32 ``[B, T, V]`` of a text ``int [B, T]`` that follows a compressed prompt; the text is exact."""
        return _score(self.model, self.dtype, self.params, jnp.asarray(tokens, jnp.int32), cache)

    def generate(
        self,
        tokens: ArrayLike,
        *,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        key: jax.Array | None = None,
        mask: ArrayLike | None = None,
        eos_id: int | Sequence[int] | None = None,
    ) -> jax.Array:
        """Continues every prompt; arguments, result and errors as `models.generate`."""
        check_key(sampling, key)
        drawn, done, ends = [], None, end_ids(self.cfg, eos_id)
        for token in self._tokens(tokens, max_new_tokens, sampling, key, mask, None):
            value = np.asarray(token)
            if ends:
                if done is not None:
                    value = np.where(done, ends[0], value)
                done = np.isin(value, ends) | (False if done is None else done)
            drawn.append(value)
            if done is not None and done.all():
                break
        fill = ends[0] if ends else 0
        out = np.full((np.asarray(tokens).shape[0], max_new_tokens), fill, np.int32)
        out[:, : len(drawn)] = np.stack(drawn, axis=1)
        return jnp.concatenate([jnp.asarray(tokens, jnp.int32), jnp.asarray(out)], axis=1)

    def stream(
        self,
        tokens: ArrayLike,
        *,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        key: jax.Array | None = None,
        eos_id: int | Sequence[int] | None = None,
    ) -> "Stream":
        """Yields the continuation of one prompt ``int [T]`` token by token; the iterator knows its cache's size.

        Raises:
          ValueError: as `generate`, at the call and not at the first token.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"stream takes one prompt, tokens of shape [length], got {tokens.shape}")
        ends = end_ids(self.cfg, eos_id)
        check_key(sampling, key)
        out = Stream()
        out.tokens = self._ended(self._tokens(tokens[None], max_new_tokens, sampling, key, None, out), ends)
        return out

    def _ended(self, tokens, ends):
        for token in tokens:
            value = int(token[0])
            if value in ends:
                return
            yield value

    def _tokens(self, tokens, new, sampling, key, mask, out) -> Iterator[jax.Array]:
        """Checks at once; the loop runs as it is iterated."""
        tokens, mask = check_prompt(self.cfg, tokens, mask)
        check_room(self.cfg, tokens.shape[1], new)
        layout = self.layout(tokens.shape[0], tokens.shape[1], tokens.shape[1] + new)
        key = check_key(sampling, key)
        return self._loop(layout, tokens, mask, new, sampling, key, out)

    def _loop(self, layout, tokens, mask, new, sampling, key, out):
        logits, cache = _read(self.model, layout, self.dtype, self.params, tokens, mask, self.fixed)
        token = _draw(sampling, logits, key, jnp.int32(0))
        hot = layout.spec.prompt - layout.whole
        for step in range(1, new + 1):
            if out is not None:
                out.cache = cache
            yield token
            if step == new:
                return
            token, cache = _next(self.model, sampling, self.dtype, self.params, token, cache, key, jnp.int32(step))
            hot += 1
            if hot == layout.chunk:
                cache, hot = compress_ring(cache), 0


class Stream:
    """An iterator over token ids that shows the cache behind them."""

    tokens: Iterator[int]
    cache: KVCache | None = None

    def __iter__(self) -> Iterator[int]:
        return self.tokens

    def __next__(self) -> int:
        return next(self.tokens)

    @property
    def bytes(self) -> Bytes | None:
        """Size of the cache now; None before the first token."""
        return None if self.cache is None else cache_bytes(self.cache)


compress_ring = jax.jit(flush, donate_argnums=0)
"""`flush` as a program of its own that reuses the cache's memory."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(form, layout, dtype, params, tokens, mask, fixed):
    return decoding.prefill(form, layout, params, tokens, mask, fixed, dtype=dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(form, dtype, params, tokens, cache):
    return decoding.continuation(form, params, tokens, cache, dtype=dtype)[0]


@functools.partial(jax.jit, static_argnums=0)
def _draw(sampling, logits, key, step):
    return sample(logits, jax.random.fold_in(key, step), sampling)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _next(form, sampling, dtype, params, token, cache, key, step):
    logits, cache = decoding.decode_step(form, params, token, cache, dtype=dtype)
    return sample(logits, jax.random.fold_in(key, step), sampling), cache
