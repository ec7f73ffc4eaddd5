"""A real layer with its real inputs, without running a network: the first attention layer of SmolLM2."""

import dataclasses
from pydoc_data.topics import topics

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Activations, Hessian, Moments, measure
from compressjax.checkpoint import open_model


@pytest.fixture(scope="session")
def real_layer(smollm2_path):
    """Kernel of the first block's ``v`` ``[576, 192]``, and records of its inputs on two different texts.

    The first block reads normalised rows of the embedding, so no forward pass is needed.
    """
    source = open_model(smollm2_path)
    block, rest = source.block(0), source.rest()
    table = rest["embed"]["embedding"]

    def record(text):
        rows = table[source.tokenizer.encode(text).ids]
        rows = rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + source.config.norm_eps)
        x = jnp.asarray(rows * block["attn_norm"]["scale"])
        found = measure(Hessian(), x)
        moments, samples = measure(Moments(), x), measure(Activations(per_batch=256), x)
        return dataclasses.replace(
            found,
            x_sum=moments.x_sum,
            abs_sum=moments.abs_sum,
            abs_max=moments.abs_max,
            samples=samples.samples,
            # Without a loss at hand, the Fisher information of a linear layer whose outputs all matter alike.
            fisher=jnp.broadcast_to(jnp.diagonal(found.xtx)[:, None], block["attn"]["v"]["kernel"].shape),
        )

    words = "\n\n".join(topics[key] for key in sorted(topics))
    return jnp.asarray(block["attn"]["v"]["kernel"]), record(words[:60_000]), record(words[60_000:100_000])
