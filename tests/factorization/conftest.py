"""A tiny decoder, decomposed, and a store of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.factorization import BitStack, lowrank, stacks_of, write_store
from compressjax.models import Llama, LlamaConfig

LEVELS, MATRICES = 4, 14


@pytest.fixture(scope="session")
def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=32,
    )


@pytest.fixture(scope="session")
def decomposed(tiny_config) -> dict:
    """Parameters whose kernels are stacks of four blocks."""
    shapes = jax.eval_shape(Llama(tiny_config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)
    return lowrank(params, {"blocks/**": BitStack(levels=LEVELS, rank=2, scale="none", svd="exact")})


@pytest.fixture(scope="session")
def order() -> np.ndarray:
    """A loading order that mixes levels."""
    return np.random.default_rng(5).permutation(np.repeat(np.arange(MATRICES), LEVELS - 1))


@pytest.fixture(scope="session")
def store_folder(decomposed, order, tmp_path_factory):
    """A store on disk, to be read only."""
    assert sum(w.loaded.size for w in stacks_of(decomposed).values()) == MATRICES
    folder = tmp_path_factory.mktemp("bitstack") / "store"
    write_store(folder, decomposed, order, about={"made": "here"})
    return folder
