"""A small decoder whose attention is far from uniform, and caches filled from random keys and values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models import Llama, LlamaConfig

CFG = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=256,
    rope_theta=200.0,
)


def random_params(cfg, seed=0):
    """Parameters drawn at unit scale, so that heads look at few tokens."""
    shapes = jax.eval_shape(Llama(cfg).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    draw = np.random.default_rng(seed).standard_normal

    def fill(path, shape):
        values = draw(shape.shape)
        if path[-1].key == "scale":
            values = 1 + 0.2 * values
        elif path[-1].key == "kernel":
            values = 1.2 * values / np.sqrt(shape.shape[-2])
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="session")
def model():
    """Config and parameters, with all tokens in sight."""
    return CFG, random_params(CFG)


@pytest.fixture(scope="session")
def windowed():
    """The same with a sliding window."""
    cfg = dataclasses.replace(CFG, sliding_window=40)
    return cfg, random_params(CFG)
