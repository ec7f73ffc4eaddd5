import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models import Llama, LlamaConfig, RopeScaling


def random_params(cfg: LlamaConfig, seed: int = 0) -> dict:
    """Parameters in which no bias is zero, no norm is one and attention is far from uniform."""
    shapes = jax.eval_shape(Llama(cfg).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    draw = np.random.default_rng(seed).standard_normal

    def fill(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        values = draw(shape.shape)
        kind = path[-1].key
        if kind == "scale":
            values = 1 + 0.2 * values
        elif kind == "kernel":
            values = 1.5 * values / np.sqrt(shape.shape[-2])
        elif kind == "bias":
            values = 0.3 * values
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """A config, parameters for it, and the jitted forward ``logits(params, tokens, ...)``."""

    cfg: LlamaConfig
    params: dict
    logits: Callable[..., jax.Array]


def decoder(cfg: LlamaConfig) -> Decoder:
    apply = jax.jit(lambda params, *args, **kwargs: Llama(cfg).apply({"params": params}, *args, **kwargs))
    return Decoder(cfg, random_params(cfg), apply)


@pytest.fixture(scope="session")
def everything() -> Decoder:
    """A decoder with every switch of the config on, and sizes that tell axes apart."""
    return decoder(
        LlamaConfig(
            vocab_size=61,
            hidden_size=24,
            intermediate_size=40,
            num_layers=3,
            num_heads=6,
            num_kv_heads=2,
            head_dim=8,
            max_positions=48,
            rope_theta=200.0,
            rope_scaling=RopeScaling(kind="llama3", factor=4.0, original_max_positions=16),
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            qk_norm=True,
            sliding_window=5,
        )
    )


@pytest.fixture(scope="session")
def tied() -> Decoder:
    """A plain decoder with a tied head, like SmolLM2; widths that quantise in groups of 32."""
    return decoder(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            max_positions=48,
            tie_embeddings=True,
        )
    )


@pytest.fixture(scope="session")
def equations() -> Callable[[Any], list]:
    """Lists every equation of a jaxpr, those of inner functions and loops included."""

    def walk(jaxpr: Any) -> list:
        inner = [walk(value) for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "eqns")]
        return [*jaxpr.eqns, *itertools.chain.from_iterable(inner)]

    return walk
