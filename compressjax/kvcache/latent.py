"""Multi-head latent attention: one latent vector and one small rotary key per token, shared by all heads.

Parameters of a layer's attention, with H query heads of width d, latent width r and rotary width p::

    {"q": {"kernel": [D, H d]} or "q_a": [D, n] and "q_b": [n, H d],
     "kv_a": {"kernel": [D, r]},              x -> c, the latent
     "k_rope": {"kernel": [D, p]},            x -> the rotary key, before rotation
     "q_rope": [H, d, p],                     a head's query -> its rotary part
     "kv_b_k": [H, d, r], "kv_b_v": [H, d, r], c -> a head's key and value
     "o": {"kernel": [H d, D]}}

with biases beside kernels where the model has them. A head's score is ``q . (kv_b_k c) + rotated(q q_rope) . k_rope``;
at decode ``kv_b_k`` is absorbed into the query and ``kv_b_v`` applied to the average of latents, so that c is never
expanded. A prompt is read expanded, which is cheaper there. DeepSeek-AI, 2024, "DeepSeek-V2", arXiv 2405.04434.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from compressjax.kvcache.protocol import KVSpec
from compressjax.leaf.pools import split_pools
from compressjax.models.attention import attend, causal_seen, token_positions
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Block, Llama
from compressjax.models.rope import rotary_frequencies, rotate
from compressjax.models.stack import apply
from compressjax.ops import matmul


@dataclasses.dataclass(frozen=True)
class LatentForm:
    """How a converted model attends; a `Form` for caches.

    Attributes:
      cfg: the model it came from.
      rank: width of the latent, r.
      frequencies: which of the ``d / 2`` rotary frequencies each pair of rotary channels turns with; p is twice their
        number.
    """

    cfg: LlamaConfig
    rank: int
    frequencies: tuple[int, ...]

    @property
    def rope_dim(self) -> int:
        """Width of the rotary key, p."""
        return 2 * len(self.frequencies)

    def spec(self, batch: int, prompt: int, max_len: int, dtype: str) -> KVSpec:
        """One key head whose values are the first r channels of its keys."""
        return KVSpec(
            layers=self.cfg.num_layers,
            batch=batch,
            q_heads=self.cfg.num_heads,
            kv_heads=1,
            head_dim=self.rank + self.rope_dim,
            value_dim=self.rank,
            shared=True,
            prompt=prompt,
            max_len=max_len,
            dtype=dtype,
            window=self.cfg.sliding_window,
        )

    def _angles(self, positions):
        table = rotary_frequencies(self.cfg.head_dim, self.cfg.rope_theta, self.cfg.rope_scaling)
        table = jnp.asarray(table[np.asarray(self.frequencies, int)])
        angles = positions.astype(jnp.float32)[..., None] * table[None, None]
        return jnp.cos(angles), jnp.sin(angles)

    def _parts(self, attn, h, positions):
        """Queries ``[B, T, H, d]`` and their rotary parts, latents ``[B, T, r]`` and rotary keys ``[B, T, 1, p]``."""
        cfg = self.cfg
        q = linear(matmul(h, attn["q_a"]["kernel"]), attn["q_b"]) if "q_a" in attn else linear(h, attn["q"])
        q = q.reshape(*h.shape[:2], cfg.num_heads, cfg.head_dim)
        cos, sin = self._angles(positions)
        q_rope = rotate(jnp.einsum("bthd,hdp->bthp", q, attn["q_rope"].astype(q.dtype)), cos, sin)
        return q, q_rope, linear(h, attn["kv_a"]), rotate(linear(h, attn["k_rope"])[:, :, None], cos, sin)

    def project(self, attn: Any, h: jax.Array, positions: jax.Array):
        """Absorbed queries, the joint key and no value; see `Form`."""
        q, q_rope, c, k_rope = self._parts(attn, h, positions)
        absorbed = jnp.einsum("bthd,hdr->bthr", q, attn["kv_b_k"].astype(q.dtype))
        q = jnp.concatenate([absorbed, q_rope], axis=-1) * self.cfg.head_dim**-0.5
        k = jnp.concatenate([c[:, :, None], k_rope], axis=-1)
        return q, k, jnp.zeros((*k.shape[:3], 0), k.dtype)

    def read(self, attn: Any, h: jax.Array, mask: jax.Array | None, positions: jax.Array):
        """Exact attention of a prompt, keys and values expanded; see `Form`."""
        q, q_rope, c, k_rope = self._parts(attn, h, positions)
        k = jnp.einsum("btr,hdr->bthd", c, attn["kv_b_k"].astype(c.dtype))
        v = jnp.einsum("btr,hdr->bthd", c, attn["kv_b_v"].astype(c.dtype))
        keys = jnp.concatenate([k, jnp.broadcast_to(k_rope, (*k.shape[:3], k_rope.shape[-1]))], axis=-1)
        # `attend` scales by the width of keys; the model's scale is that of a head.
        wide = (keys.shape[-1] / self.cfg.head_dim) ** 0.5
        seen = causal_seen(h.shape[1], mask, self.cfg.sliding_window)
        context = attend(jnp.concatenate([q, q_rope], axis=-1) * wide, keys, v, seen, causal=True)
        return context, *self.project(attn, h, positions)

    def contexts(self, attn: Any, averages: jax.Array) -> jax.Array:
        """Averages of latents ``[B, T, H, r]`` to the input of ``o``."""
        out = jnp.einsum("bthr,hdr->bthd", averages, attn["kv_b_v"].astype(averages.dtype))
        return out.reshape(*out.shape[:2], -1)


def linear(x: jax.Array, layer: Any) -> jax.Array:
    """``x W (+ b)``."""
    y = matmul(x, layer["kernel"])
    return y + layer["bias"].astype(y.dtype)[None, None] if "bias" in layer else y


def latent_hidden(
    form: Any, params: Any, tokens: jax.Array, *, mask: jax.Array | None = None, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, Any]:
    """Residual stream after the last block ``[B, T, D]`` of a converted model, and every layer's attention input.

    Args:
      form: `LatentForm`, or another `Form`.
      params: of the converted model.
      tokens: int ``[B, T]``.
      mask: bool ``[B, T]``, the real tokens.
      dtype: of activations.
    """
    model, block = Llama(form.cfg, dtype), Block(form.cfg)
    layers, join = split_pools(params["blocks"])
    rest = {name: value for name, value in params.items() if name != "blocks"}
    positions = jnp.arange(tokens.shape[1])[None] if mask is None else token_positions(mask)

    def body(x, layer):
        layer = join(layer)
        h = apply(block, layer, {"x": x}, method="attention_in")["h"]
        carry = {"x": x, "h": form.read(layer["attn"], h, mask, positions)[0]}
        for method in ("mlp_in", "mlp_act"):
            carry = apply(block, layer, carry, method=method)
        return apply(block, layer, carry, method="finish"), h

    return jax.lax.scan(body, apply(model, rest, tokens, method="lookup"), layers)


def latent_logits(form: Any, params: Any, tokens: jax.Array, **options: Any) -> jax.Array:
    """Logits float32 ``[B, T, V]`` of a converted model; options as for `latent_hidden`. Differentiable."""
    hidden, _ = latent_hidden(form, params, tokens, **options)
    rest = {name: value for name, value in params.items() if name != "blocks"}
    return apply(Llama(form.cfg), rest, hidden, method="logits")
