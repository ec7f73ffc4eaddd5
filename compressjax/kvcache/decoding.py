"""A decoder that reads, writes and attends to a compressed cache.

What a model's attention looks like is a `Form`: how hidden states become queries, keys and values, and how contexts
become the input of ``o``. Layers are scanned; they read their slice of the cache and hand back the new token's keys and
values alone, which are written once for all layers after the scan.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from compressjax.kvcache.cache import KVCache, Layout, append_token, view_of
from compressjax.kvcache.partial import attend_exact, combine, finish, log_sum_exp
from compressjax.kvcache.protocol import KVSpec
from compressjax.leaf.pools import split_pools
from compressjax.models.attention import attend, causal_seen, token_positions
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Attention, Block, Llama
from compressjax.models.stack import apply


class Form(Protocol):
    """How a model attends; hashable, so that jit can take it as static."""

    @property
    def cfg(self) -> LlamaConfig:
        """The model."""
        ...

    def spec(self, batch: int, prompt: int, max_len: int, dtype: str) -> KVSpec:
        """Sizes of its cache."""
        ...

    def read(self, attn: Any, h: jax.Array, mask: jax.Array | None, positions: jax.Array) -> tuple:
        """``(contexts [B, T, H d], q, k, v)`` of a prompt ``h [B, T, D]``; queries scaled, ``[B, T, heads, width]``."""
        ...

    def project(self, attn: Any, h: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``q, k, v`` of new tokens, queries scaled."""
        ...

    def contexts(self, attn: Any, averages: jax.Array) -> jax.Array:
        """Averages of values ``[B, T, heads, e]`` to the input of ``o``, ``[B, T, H d]``."""
        ...


@dataclasses.dataclass(frozen=True)
class LlamaForm:
    """Grouped-query attention with rotated keys."""

    cfg: LlamaConfig

    def spec(self, batch, prompt, max_len, dtype):
        """As `Form`."""
        cfg = self.cfg
        return KVSpec(
            layers=cfg.num_layers,
            batch=batch,
            q_heads=cfg.num_heads,
            kv_heads=cfg.num_kv_heads,
            head_dim=cfg.head_dim,
            prompt=prompt,
            max_len=max_len,
            dtype=dtype,
            window=cfg.sliding_window,
            rope=(cfg.rope_theta, cfg.rope_scaling),
        )

    def project(self, attn, h, positions):
        """As `Form`."""
        q, k, v = apply(Attention(self.cfg), attn, h, positions, method="project")
        return q * self.cfg.head_dim**-0.5, k, v

    def read(self, attn, h, mask, positions):
        """As `Form`."""
        q, k, v = apply(Attention(self.cfg), attn, h, positions, method="project")
        context = attend(q, k, v, causal_seen(h.shape[1], mask, self.cfg.sliding_window), causal=True)
        return context, q * self.cfg.head_dim**-0.5, k, v

    def contexts(self, attn, averages):
        """As `Form`."""
        return averages.reshape(*averages.shape[:2], -1)


def heads_first(x: jax.Array) -> jax.Array:
    """``[B, T, K, d] -> [B, K, T, d]``."""
    return jnp.swapaxes(x, 1, 2)


def grouped_queries(q: jax.Array, kv_heads: int) -> jax.Array:
    """``[B, T, H, d] -> [B, K, G, T, d]``."""
    b, t, heads, width = q.shape
    return q.reshape(b, t, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)


def ungrouped(averages: jax.Array) -> jax.Array:
    """``[B, K, G, T, e] -> [B, T, K G, e]``."""
    b, heads, groups, t, width = averages.shape
    return averages.transpose(0, 3, 1, 2, 4).reshape(b, t, heads * groups, width)


class _Model:
    """The pieces of a forward pass that stay the same whatever holds the cache."""

    def __init__(self, form: Form, params: Any, dtype: DTypeLike):
        self.form, self.params = form, params
        self.model, self.block = Llama(form.cfg, dtype), Block(form.cfg)
        self.layers, self.join = split_pools(params["blocks"])
        self.rest = {name: value for name, value in params.items() if name != "blocks"}

    def layer(self, index: jax.Array) -> Any:
        """Parameters of one block; picked inside the scan, so that no segment copies its weights."""
        return self.join(jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), self.layers))

    def into(self, params: Any, x: jax.Array) -> jax.Array:
        """Input of attention."""
        return apply(self.block, params, {"x": x}, method="attention_in")["h"]

    def out(self, params: Any, x: jax.Array, context: jax.Array) -> jax.Array:
        """The residual stream after the block."""
        carry = {"x": x, "h": context.astype(x.dtype)}
        for method in ("mlp_in", "mlp_act"):
            carry = apply(self.block, params, carry, method=method)
        return apply(self.block, params, carry, method="finish")

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Embeddings."""
        return apply(self.model, self.rest, tokens, method="lookup")

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits."""
        return apply(self.model, self.rest, hidden, method="logits")


def prefill(
    form: Form,
    layout: Layout,
    params: Any,
    tokens: jax.Array,
    mask: jax.Array,
    fixed: tuple = (),
    *,
    dtype: DTypeLike = jnp.float32,
    every: bool = False,
) -> tuple[jax.Array, KVCache]:
    """Reads a prompt with exact attention and compresses each unit of layers before the next one runs.

    Args:
      form: the model.
      layout: of the cache, with ``spec.prompt`` tokens.
      params: parameters.
      tokens: int ``[B, P]``, padded on the left.
      mask: bool ``[B, P]``, the real tokens.
      fixed: what each segment's codec is given, stacked by layer; () for nothing.
      dtype: of activations.
      every: logits of all positions rather than of the last.

    Returns:
      Logits float32 ``[B, V]``, or ``[B, P, V]``, and the cache.
    """
    spec, model = layout.spec, _Model(form, params, dtype)
    positions, x, states, given = token_positions(mask), model.lookup(tokens), [], layout.given(fixed)
    for index, (codec, start, stop) in enumerate(layout.segments):

        def body(x, inputs, codec=codec, start=start):
            unit, own = inputs
            kept = []
            for sub in range(codec.unit):
                block = model.layer(start + unit * codec.unit + sub)
                context, q, k, v = form.read(block["attn"], model.into(block, x), mask, positions)
                x = model.out(block, x, context)
                kept.append((heads_first(k), heads_first(v), grouped_queries(q, spec.kv_heads)))
            k, v, q = (jnp.stack(parts) for parts in zip(*kept, strict=True))
            return x, codec.prefill(spec, k, v, mask, q if "q" in codec.needs else None, own)

        units = jnp.arange((stop - start) // codec.unit, dtype=jnp.int32)
        x, state = jax.lax.scan(body, x, (units, given[index]))
        states.append(state)
    logits = model.logits(x if every else x[:, -1:])
    real = jnp.pad(mask, ((0, 0), (0, spec.max_len - spec.prompt)))
    cache = KVCache(
        states=tuple(states),
        real=real,
        frozen=jnp.int32(layout.whole),
        hot=jnp.int32(spec.prompt - layout.whole),
        layout=layout,
    )
    return (logits if every else logits[:, 0]), cache


def plain_prompt(
    form: Form, params: Any, tokens: jax.Array, mask: jax.Array, *, dtype: DTypeLike = jnp.float32
) -> tuple[dict, jax.Array]:
    """The exact keys, values and queries of a prompt, for `kv_compress`, which any number of codecs can be tried on.

    Args:
      form, params, tokens, mask, dtype: as for `prefill`.

    Returns:
      ``{"k": [L, B, P, K, d], "v": ..., "mask": [B, P]}`` and rotated, unscaled queries ``[L, B, P, H, d]``.
    """
    model, positions = _Model(form, params, dtype), token_positions(mask)

    def body(x, index):
        block = model.layer(index)
        context, q, k, v = form.read(block["attn"], model.into(block, x), mask, positions)
        return model.out(block, x, context), (q * q.shape[-1] ** 0.5, k, v)

    layers = jnp.arange(form.cfg.num_layers, dtype=jnp.int32)
    _, (q, k, v) = jax.lax.scan(body, model.lookup(tokens), layers)
    return {"k": k, "v": v, "mask": mask}, q


def continuation(
    form: Form, params: Any, tokens: jax.Array, cache: KVCache, *, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, tuple, tuple]:
    """Logits of new tokens that see the compressed past and, exactly, each other; the cache is only read.

    Args:
      form, params, dtype: as for `prefill`.
      tokens: int ``[B, T]``.
      cache: of the tokens before them.

    Returns:
      Logits float32 ``[B, T, V]``, and for every segment its new ``(k, v, q)`` and ``(stats, lse)``.
    """
    layout, spec, model = cache.layout, cache.layout.spec, _Model(form, params, dtype)
    new = tokens.shape[1]
    positions = jnp.sum(cache.real, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(new, dtype=jnp.int32)[None]
    among = causal_seen(new, None, spec.window)[:, None, None]
    x, made, looked = model.lookup(tokens), [], []
    for (codec, start, stop), state in zip(layout.segments, cache.states, strict=True):
        view = view_of(layout, codec, cache.real, cache.frozen, cache.hot, new)

        def body(x, inputs, codec=codec, start=start, view=view):
            unit, own = inputs
            kept, noted = [], []
            for sub in range(codec.unit):
                block = model.layer(start + unit * codec.unit + sub)
                q, k, v = form.project(block["attn"], model.into(block, x), positions)
                q, k, v = grouped_queries(q, spec.kv_heads), heads_first(k), heads_first(v)
                past, stats = codec.attend(spec, own, q, view, sub)
                whole = combine(past, attend_exact(q, k, spec.value_of(k, v), among))
                x = model.out(block, x, form.contexts(block["attn"], ungrouped(finish(whole))))
                kept.append((k, v, q))
                noted.append((stats, log_sum_exp(whole)))
            stacked = tuple(jnp.stack(parts) for parts in zip(*kept, strict=True))
            return x, (stacked, jax.tree.map(lambda *parts: jnp.stack(parts), *noted))

        units = jnp.arange((stop - start) // codec.unit, dtype=jnp.int32)
        x, (kvq, seen) = jax.lax.scan(body, x, (units, state))
        made.append(kvq)
        looked.append(seen)
    return model.logits(x), tuple(made), tuple(looked)


def decode_step(
    form: Form, params: Any, token: jax.Array, cache: KVCache, *, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, KVCache]:
    """Appends one token a row: ``int [B] -> logits [B, V]`` and the cache with one more in its ring.

    The caller counts: after every step that filled the ring, `flush` is due.
    """
    logits, new, seen = continuation(form, params, token[:, None], cache, dtype=dtype)
    return logits[:, 0], append_token(cache, new, seen)
