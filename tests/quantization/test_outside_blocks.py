"""Embedding and head in fewer bits."""

import jax.numpy as jnp
import pytest

from compressjax.quantization.outside_blocks import round_outside


def params(largest=1.0):
    return {"embed": {"embedding": jnp.full((8, 4), largest)}, "final_norm": {"scale": jnp.ones(4)}}


def test_sixteen_bits_are_float16_and_refuse_what_it_does_not_hold():
    small = round_outside(params(), 16)
    assert small["embed"]["embedding"].dtype == jnp.float16 and small["final_norm"]["scale"].dtype == jnp.float32
    with pytest.raises(ValueError, match="embed/embedding has entries beyond 65504"):
        round_outside(params(1e6), 16)
    assert round_outside(params(1e6), 32)["embed"]["embedding"].dtype == jnp.float32
