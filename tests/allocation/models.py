"""A small random decoder that the tests of allocation search on."""

import jax
import jax.numpy as jnp

from compressjax.evaluation.logits import LinenLogits
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Llama

CFG = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=True,
)
LOGITS = LinenLogits(Llama(CFG))


def decoder():
    """Parameters, larger than at initialisation so that layers matter, and tokens ``[6, 16]``."""
    tokens = jax.random.randint(jax.random.key(1), (6, 16), 0, CFG.vocab_size)
    params = Llama(CFG).init(jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda a: a * 4 if a.ndim == 3 else a, params), jnp.asarray(tokens)
