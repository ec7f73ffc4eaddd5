"""A tiny decoder with random weights, and a min-max quantiser independent of the library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from compressjax.checkpoint.names import block_modules, rest_modules
from compressjax.leaf import pack_affine
from compressjax.models.config import LlamaConfig

VOCAB = 96


@pytest.fixture
def tiny():
    """A config with widths that are multiples of 32 and a feed-forward width that 64 does not divide."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=64,
    )


@pytest.fixture
def tokenizer():
    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<bos>": VOCAB - 2, "<eos>": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture
def random_params():
    """``(cfg, seed=0) -> params`` in float32."""

    def make(cfg, seed=0):
        rng = np.random.default_rng(seed)

        def array(*shape):
            return jnp.asarray(0.1 * rng.standard_normal(shape), jnp.float32)

        def tree(modules, *lead):
            out = {}
            for module in modules:
                node = out
                for key in module.path.split("/"):
                    node = node.setdefault(key, {})
                if module.kind == "norm":
                    node["scale"] = 1 + array(*lead, module.outputs)
                elif module.kind == "embedding":
                    node["embedding"] = 10 * array(module.inputs, module.outputs)
                else:
                    node["kernel"] = array(*lead, module.inputs, module.outputs)
                    if module.bias:
                        node["bias"] = array(*lead, module.outputs)
            return out

        return {**tree(rest_modules(cfg)), "blocks": tree(block_modules(cfg), cfg.num_layers)}

    return make


def min_max(w, *, bits=4, group=32, symmetric=False, dtype=np.float16, order=None):
    """Rounds ``w [*lead, in, out]`` to a min-max grid per group; ``order`` permutes inputs before grouping."""
    w = np.asarray(w)
    rows = w.shape[-2]
    size = rows if group == -1 else group
    g_idx = np.arange(rows) // size
    if order is not None:
        g_idx = g_idx[np.argsort(order)]
    members = [w[..., g_idx == g, :] for g in range(-(-rows // size))]
    low = np.minimum(np.stack([m.min(-2) for m in members], -2), 0)
    high = np.maximum(np.stack([m.max(-2) for m in members], -2), 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = ((high - low) / (2**bits - 1)).astype(dtype)
    wide = scale.astype(np.float32)
    zero = np.full(low.shape, 2 ** (bits - 1), np.float32) if symmetric else np.round(-low / wide)
    codes = np.clip(np.round(w / wide[..., g_idx, :]) + zero[..., g_idx, :], 0, 2**bits - 1)
    scattered = jnp.asarray(np.broadcast_to(g_idx, (*w.shape[:-2], rows)), jnp.int32)
    return pack_affine(
        jnp.asarray(codes, jnp.uint8),
        jnp.asarray(scale),
        None if symmetric else jnp.asarray(zero, jnp.uint8),
        bits=bits,
        group=group,
        zero_kind="none" if symmetric else "int",
        g_idx=None if order is None else scattered,
    )


@pytest.fixture
def quantize():
    """``(params, rule=None, **options) -> params`` with the kernels of blocks quantised.

    ``rule(path)`` may give other options for a kernel, or None to leave it dense.
    """

    def make(params, rule=None, **options):
        def one(path, value):
            if path[-1].key != "kernel":
                return value
            chosen = options if rule is None else rule("/".join(key.key for key in path))
            return value if chosen is None else min_max(value, **chosen)

        return {**params, "blocks": jax.tree_util.tree_map_with_path(one, params["blocks"])}

    return make


@pytest.fixture
def affine():
    """The quantiser itself: ``(w, bits=4, group=32, symmetric=False, dtype=float16, order=None) -> Affine``."""
    return min_max
