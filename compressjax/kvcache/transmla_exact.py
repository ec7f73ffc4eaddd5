"""The exact rewriting of grouped-query attention with full up-projections, for training (TransMLA, first version).

Each query head reads its key ``k_i = B_i (W x)`` from the joint key of all heads, with W and B made dense by a singular
value decomposition per key head, so that both can be trained; the cache ``W x`` is as large as before. Positions are
turned after the up-projection, so it cannot be absorbed into the query. Meng et al., 2025, arXiv 2502.07864.

Parameters of a layer's attention beside "q" and "o": ``{"k_a": [D, K d], "k_b": [H, d, K d], "v_a", "v_b"}``, with
``"k_a_bias", "v_a_bias"`` ``[K d]`` where the model has biases.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from compressjax.kvcache.latent import linear
from compressjax.leaf.pools import split_pools
from compressjax.models.attention import attend, causal_seen
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Block, Llama
from compressjax.models.rope import rotary_angles, rotate
from compressjax.models.stack import apply
from compressjax.ops import dense


def gqa_to_mla_exact(cfg: LlamaConfig, params: Any, *, factor: Literal["identity", "svd"] = "svd") -> dict:
    """The same function with per-head up-projections of the joint key and value.

    Args:
      cfg, params: the model.
      factor: "identity" copies a key head to its query heads; "svd" spreads singular values over both factors, which
        makes them dense inside a key head and equally scaled; values and the output projection are then factored anew
        per query head, which positions forbid for keys.

    Raises:
      ValueError: norms of query and key heads, which do not commute with the rewriting, or an unknown factor.
    """
    if cfg.qk_norm:
        raise ValueError("attention with norms of query and key heads (qk_norm) cannot be rewritten")
    if factor not in ("identity", "svd"):
        raise ValueError(f"factor must be 'identity' or 'svd', got {factor!r}")
    attn = params["blocks"]["attn"]
    new = {"q": attn["q"], "o": attn["o"]}
    for name in ("k", "v"):
        kernel = np.asarray(dense(attn[name]["kernel"]), np.float64)
        bias = np.asarray(attn[name]["bias"], np.float64) if "bias" in attn[name] else None
        down, up, moved = _factored(cfg, kernel, bias, factor)
        new[f"{name}_a"], new[f"{name}_b"] = jnp.asarray(down, jnp.float32), jnp.asarray(up, jnp.float32)
        if moved is not None:
            new[f"{name}_a_bias"] = jnp.asarray(moved, jnp.float32)
    if factor == "svd":
        new["v_b"], new["o"] = _refactored(cfg, np.asarray(new["v_b"], np.float64), attn["o"])
    return {**params, "blocks": {**params["blocks"], "attn": new}}


def _factored(cfg, kernel, bias, factor):
    """``[L, D, K d]`` to a down- and an up-projection, and the bias of the first."""
    layers, wide, merged = kernel.shape
    heads, kv_heads, d = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    group = heads // kv_heads
    # The bias is one more input, always 1.
    whole = kernel if bias is None else np.concatenate([kernel, bias[:, None]], axis=1)
    own = whole.reshape(layers, -1, kv_heads, d)
    down, up = np.zeros_like(own), np.zeros((layers, heads, d, kv_heads, d))
    for head in range(kv_heads):
        w = own[:, :, head]
        mine = slice(head * group, (head + 1) * group)
        if factor == "identity":
            down[:, :, head], up[:, mine, :, head] = w, np.eye(d)
            continue
        # The stacked maps of the head's queries are `group` copies of w, so their right factor is that of w.
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        root = np.sqrt(s * np.sqrt(group))
        safe = np.maximum(root, 1e-30)
        down[:, :, head] = u * (s / safe)[:, None]
        up[:, mine, :, head] = (np.swapaxes(vt, -1, -2) * root[:, None])[:, None]
    down = down.reshape(layers, -1, merged)
    moved = None if bias is None else down[:, wide]
    return down[:, :wide], up.reshape(layers, heads, d, merged), moved


def _refactored(cfg, up, o):
    """``v_b [L, H, d, K d]`` and the output projection, the singular values of their product shared between them."""
    kernel = np.asarray(dense(o["kernel"]), np.float64).reshape(len(up), cfg.num_heads, cfg.head_dim, -1)
    # Each head's v_b is not zero in its key head's channels only, so its product has rank d: two small factorisations.
    q, r = np.linalg.qr(np.swapaxes(up, -1, -2))
    u, s, vt = np.linalg.svd(r @ kernel, full_matrices=False)
    root = np.sqrt(s)
    new_up = np.swapaxes(q @ u, -1, -2) * root[..., None]
    new_o = (vt * root[..., None]).reshape(len(up), cfg.num_heads * cfg.head_dim, -1)
    return jnp.asarray(new_up, jnp.float32), {**o, "kernel": jnp.asarray(new_o, jnp.float32)}


def attention_logits(cfg: LlamaConfig, params: Any, tokens: jax.Array, *, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Logits float32 ``[B, T, V]`` of a model of `gqa_to_mla_exact`. Differentiable."""
    model, block = Llama(cfg, dtype), Block(cfg)
    layers, join = split_pools(params["blocks"])
    rest = {name: value for name, value in params.items() if name != "blocks"}
    cos, sin = rotary_angles(jnp.arange(tokens.shape[1])[None], cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    seen = causal_seen(tokens.shape[1], None, cfg.sliding_window)

    def lifted(h, attn, name):
        c = jnp.matmul(h, attn[f"{name}_a"].astype(h.dtype))
        if f"{name}_a_bias" in attn:
            c = c + attn[f"{name}_a_bias"].astype(h.dtype)[None, None]
        return jnp.einsum("btc,hdc->bthd", c, attn[f"{name}_b"].astype(h.dtype))

    def body(x, layer):
        layer = join(layer)
        attn = layer["attn"]
        h = apply(block, layer, {"x": x}, method="attention_in")["h"]
        q = linear(h, attn["q"]).reshape(*h.shape[:2], cfg.num_heads, cfg.head_dim)
        k, v = rotate(lifted(h, attn, "k"), cos, sin), lifted(h, attn, "v")
        carry = {"x": x, "h": attend(rotate(q, cos, sin), k, v, seen, causal=True)}
        for method in ("mlp_in", "mlp_act"):
            carry = apply(block, layer, carry, method=method)
        return apply(block, layer, carry, method="finish"), None

    hidden, _ = jax.lax.scan(body, apply(model, rest, tokens, method="lookup"), layers)
    return apply(model, rest, hidden, method="logits")
