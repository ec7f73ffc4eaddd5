"""Small networks that learn the bytes of a real text in a minute: what training methods are compared on.

The text is the reference manual inside Python itself, so its figures hold for one Python version only; every
comparison is between runs on the same text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.data.resolve import text_from
from compressjax.models import Llama, LlamaConfig

_HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class ByteText:
    """Bytes to train on and bytes to judge by."""

    train: np.ndarray
    held_out: np.ndarray

    def windows(self, seed: int, count: int, length: int) -> np.ndarray:
        """Random training windows, int32 ``[count, length]``."""
        starts = np.random.default_rng(seed).integers(0, len(self.train) - length, count)
        return self.train[starts[:, None] + np.arange(length)[None]].astype(np.int32)

    def held_out_windows(self, count: int, length: int) -> np.ndarray:
        """Windows spread over the held-out bytes, int32 ``[count, length]``."""
        starts = np.linspace(0, len(self.held_out) - length, count).astype(np.int64)
        return self.held_out[starts[:, None] + np.arange(length)[None]].astype(np.int32)


@functools.cache
def byte_text() -> ByteText:
    """The text, its last tenth held out."""
    data = np.frombuffer(text_from("topics").encode("utf-8"), np.uint8)
    cut = int(len(data) * (1 - _HELD_OUT))
    return ByteText(data[:cut], data[cut:])


def byte_llama(layers: int = 2, width: int = 128, heads: int = 4) -> tuple[Llama, LlamaConfig]:
    """A Llama over bytes; about 0.36 M parameters at two layers of width 128."""
    cfg = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        tie_embeddings=True,
    )
    return Llama(cfg), cfg


def llama_loss(model: Llama) -> Callable[[Any, jax.Array], jax.Array]:
    """``(params, windows [B, T]) -> mean nats per byte``."""

    def loss(params, windows):
        logits = model.apply({"params": params}, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    return loss


def mlp_params(seed: int, context: int, width: int) -> dict:
    """A two-layer network that reads ``context`` bytes by embeddings of 16 and names the next."""
    keys = jax.random.split(jax.random.key(seed), 4)
    sizes = ((context * 16, width), (width, width), (width, 256))
    return {
        "table": 0.3 * jax.random.normal(keys[0], (256, 16)),
        **{
            f"w{i}": jax.random.normal(key, shape) / np.float32(np.sqrt(shape[0]))
            for i, (key, shape) in enumerate(zip(keys[1:], sizes, strict=True))
        },
    }


def mlp_logits(params: dict, windows: jax.Array) -> jax.Array:
    """Logits ``[B, 256]`` of the last byte of windows ``[B, context + 1]``."""
    x = params["table"][windows[:, :-1]].reshape(windows.shape[0], -1)
    x = jax.nn.relu(x @ params["w0"])
    return jax.nn.relu(x @ params["w1"]) @ params["w2"]


def mlp_loss(params: dict, windows: jax.Array) -> jax.Array:
    """Mean nats of the last byte."""
    return optax.softmax_cross_entropy_with_integer_labels(mlp_logits(params, windows), windows[:, -1]).mean()


def train(loss: Callable, params: Any, tx: optax.GradientTransformation, batches: np.ndarray) -> tuple[Any, Any]:
    """Parameters and optimizer state after one step on each of ``batches [steps, B, T]``, in one compiled scan."""

    @jax.jit
    def run(params, state, batches):
        def step(carry, windows):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, windows), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), batches)[0]

    return run(params, tx.init(params), jnp.asarray(batches))
