"""Batched text generation with a key-value cache of static shape.

The cache is a plain tree, with L layers, B rows, S slots and K key heads of width d::

    {"k": [L, B, S, K, d], "v": [L, B, S, K, d],   keys are stored rotated
     "mask": bool [B, S],                          slots that hold a real token
     "length": int32 scalar}                       slots used; rows differ by left padding only

Layers read their slice of it and hand back the keys and values of the new token alone, which are written once for all
layers after the scan; no step copies the cache.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from compressjax.models.attention import Past, past_seen
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Llama
from compressjax.models.sampling import Sampling, sample
from compressjax.models.stack import apply


def prefill(
    cfg: LlamaConfig,
    params: Any,
    tokens: jax.Array,
    mask: jax.Array | None,
    max_len: int,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[jax.Array, dict]:
    """Reads the prompts and makes the cache.

    Args:
      cfg: the model.
      params: its parameters.
      tokens: int ``[B, T]``, padded on the left.
      mask: bool ``[B, T]``, the real tokens; None when all are.
      max_len: slots of the cache, S >= T.
      dtype: of activations and cache.

    Returns:
      Logits float32 ``[B, V]`` after the last token, and the cache.

    Raises:
      ValueError: ``max_len`` below T, or tokens and mask that `Llama` refuses.
    """
    batch, length = tokens.shape
    if max_len < length:
        raise ValueError(f"max_len={max_len} is less than the {length} tokens of the prompt")
    model = Llama(cfg, dtype)
    hidden, kv = apply(model, params, tokens, mask=mask, keep_kv=True, method="hidden")
    logits = apply(model, params, hidden[:, -1:], method="logits")[:, 0]
    free = max_len - length
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, free), (0, 0), (0, 0))) for x in kv)
    mask = jnp.ones((batch, length), bool) if mask is None else mask
    return logits, {"k": k, "v": v, "mask": jnp.pad(mask, ((0, 0), (0, free))), "length": jnp.int32(length)}


def decode_step(
    cfg: LlamaConfig, params: Any, token: jax.Array, cache: dict, *, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, dict]:
    """Appends one token per row and returns what follows.

    Args:
      cfg: the model.
      params: its parameters.
      token: int ``[B]``.
      cache: of `prefill` or an earlier step, with a free slot; a full one cannot be told under jit, so the caller
        counts.
      dtype: as given to `prefill`.

    Returns:
      Logits float32 ``[B, V]`` and the cache with one more slot used.
    """
    model, start = Llama(cfg, dtype), cache["length"]
    positions = jnp.sum(cache["mask"], axis=1, dtype=jnp.int32)[:, None]
    past = Past(cache["k"], cache["v"], past_seen(cache["mask"], start, 1, cfg.sliding_window))
    hidden, kv = apply(model, params, token[:, None], positions=positions, past=past, keep_kv=True, method="hidden")
    logits = apply(model, params, hidden, method="logits")[:, 0]
    k, v = (
        jax.lax.dynamic_update_slice_in_dim(cache[name], new.astype(cache[name].dtype), start, axis=2)
        for name, new in zip(("k", "v"), kv, strict=True)
    )
    used = jnp.ones((token.shape[0], 1), bool)
    mask = jax.lax.dynamic_update_slice_in_dim(cache["mask"], used, start, axis=1)
    return logits, {"k": k, "v": v, "mask": mask, "length": start + 1}


def generate(
    cfg: LlamaConfig,
    params: Any,
    tokens: ArrayLike,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    mask: ArrayLike | None = None,
    eos_id: int | Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Continues every prompt by up to ``max_new_tokens`` tokens; one compile per prompt shape.

    Args:
      cfg: the model.
      params: its parameters, dense or compressed.
      tokens: int ``[B, T]``, T >= 1, padded on the left.
      max_new_tokens: N >= 1.
      sampling: how tokens are drawn.
      key: random key; needed unless greedy.
      mask: bool ``[B, T]``, the real tokens; each row ends with at least one. None when all are real.
      eos_id: token or tokens that end a row; the row is filled up with the first of them, and work stops when all
        rows have ended.
      dtype: of activations and cache.

    Returns:
      int32 ``[B, T + N]``: prompts and continuations.

    Raises:
      ValueError: empty prompt, right padding, token outside the vocabulary, T + N beyond ``cfg.max_positions``,
        ``max_new_tokens`` below 1, sampling without a key.
    """
    tokens, mask = check_prompt(cfg, tokens, mask)
    check_room(cfg, tokens.shape[1], max_new_tokens)
    ends = end_ids(cfg, eos_id)
    key = check_key(sampling, key)
    return _generate(cfg, max_new_tokens, sampling, ends, jnp.dtype(dtype), params, tokens, mask, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(cfg, new, sampling, ends, dtype, params, tokens, mask, key):
    batch, length = tokens.shape
    logits, cache = prefill(cfg, params, tokens, mask, length + new, dtype=dtype)
    drawn = jnp.full((batch, new), ends[0] if ends else 0, jnp.int32)

    def draw(step, logits, drawn, done):
        token = sample(logits, jax.random.fold_in(key, step), sampling)
        if ends:
            token = jnp.where(done, ends[0], token)
            done = done | jnp.isin(token, jnp.array(ends, jnp.int32))
        return jax.lax.dynamic_update_slice_in_dim(drawn, token[:, None], step, axis=1), token, done

    def unfinished(state):
        step, *_, done = state
        return (step < new) & ~jnp.all(done)

    def advance(state):
        step, drawn, token, cache, done = state
        logits, cache = decode_step(cfg, params, token, cache, dtype=dtype)
        drawn, token, done = draw(step, logits, drawn, done)
        return step + 1, drawn, token, cache, done

    drawn, token, done = draw(jnp.int32(0), logits, drawn, jnp.zeros(batch, bool))
    _, drawn, *_ = jax.lax.while_loop(unfinished, advance, (jnp.int32(1), drawn, token, cache, done))
    return jnp.concatenate([tokens, drawn], axis=1)


def stream(
    cfg: LlamaConfig,
    params: Any,
    tokens: ArrayLike,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    eos_id: int | Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Iterator[int]:
    """Yields the continuation of one prompt token by token, the same tokens as `generate`.

    Args:
      cfg, params, max_new_tokens, sampling, key, eos_id, dtype: as in `generate`.
      tokens: int ``[T]``, one prompt.

    Returns:
      An iterator over at most ``max_new_tokens`` token ids; it ends before an ``eos_id``.

    Raises:
      ValueError: as `generate`, at the call and not at the first token.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1:
        raise ValueError(f"stream takes one prompt, tokens of shape [length], got {tokens.shape}")
    batch, _ = check_prompt(cfg, tokens[None], None)
    check_room(cfg, tokens.shape[0], max_new_tokens)
    ends = end_ids(cfg, eos_id)
    key = check_key(sampling, key)
    return _stream(cfg, params, batch, max_new_tokens, sampling, key, ends, jnp.dtype(dtype))


def _stream(cfg, params, tokens, new, sampling, key, ends, dtype):
    token, cache = _first(cfg, tokens.shape[1] + new, sampling, dtype, params, tokens, key)
    for step in range(1, new + 1):
        value = int(token[0])
        if value in ends:
            return
        yield value
        if step < new:
            token, cache = _next(cfg, sampling, dtype, params, token, cache, key, jnp.int32(step))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _first(cfg, max_len, sampling, dtype, params, tokens, key):
    logits, cache = prefill(cfg, params, tokens, None, max_len, dtype=dtype)
    return sample(logits, jax.random.fold_in(key, 0), sampling), cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _next(cfg, sampling, dtype, params, token, cache, key, step):
    logits, cache = decode_step(cfg, params, token, cache, dtype=dtype)
    return sample(logits, jax.random.fold_in(key, step), sampling), cache


def check_prompt(cfg: LlamaConfig, tokens: ArrayLike, mask: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Tokens int32 and mask bool ``[B, T]``; a ValueError for what `generate` refuses."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.shape[0] < 1:
        raise ValueError(f"tokens must have shape [batch, length], got {tokens.shape}")
    if tokens.shape[1] < 1:
        raise ValueError("the prompt is empty: generation needs at least one token, for example the BOS token")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= cfg.vocab_size:
        raise ValueError(f"tokens must lie in [0, {cfg.vocab_size}), got values from {tokens.min()} to {tokens.max()}")
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if mask.shape != tokens.shape:
        raise ValueError(f"mask must have the shape {tokens.shape} of tokens, got {mask.shape}")
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise ValueError(f"the prompt in row {empty[0]} is empty: its mask has no real token")
    ragged = np.flatnonzero((mask[:, :-1] & ~mask[:, 1:]).any(axis=1))
    if ragged.size:
        raise ValueError(f"prompts must be padded on the left, but the mask of row {ragged[0]} ends or has a gap early")
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)


def check_room(cfg: LlamaConfig, length: int, new: int) -> None:
    """Refuses, with a ValueError, more tokens than the context has positions, or no new ones."""
    if new < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {new}")
    if length + new > cfg.max_positions:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={new} need {length + new} positions, "
            f"more than the context of {cfg.max_positions}"
        )


def end_ids(cfg: LlamaConfig, eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that end a row, as a tuple; a ValueError for one outside the vocabulary."""
    ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, (int, np.integer)) else tuple(eos_id)
    for end in ends:
        if not 0 <= end < cfg.vocab_size:
            raise ValueError(f"eos_id must lie in [0, {cfg.vocab_size}), got {end}")
    return tuple(int(end) for end in ends)


def check_key(sampling: Sampling, key: jax.Array | None) -> jax.Array:
    """The key to draw with; a ValueError when sampling has none."""
    if key is not None:
        return key
    if sampling.temperature > 0:
        raise ValueError(f"sampling at temperature {sampling.temperature} needs a random key, got key=None")
    return jax.random.key(0)
