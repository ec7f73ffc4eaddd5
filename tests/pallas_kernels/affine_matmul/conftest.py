"""Products of random words, as more than one kernel is tried on."""

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_product():
    """``(m, layout, dtype) -> x, codes, scale, zero`` with every bit of the words drawn."""

    def draw(m, layout, dtype="bfloat16"):
        rng = np.random.default_rng(0)

        def words(*shape):
            return jnp.asarray(rng.integers(0, 2**32, shape, dtype=np.uint32))

        scale = rng.uniform(0.5, 1.5, (layout.groups, layout.cols)) * rng.choice([-1, 1], (layout.groups, layout.cols))
        zero_words = layout.zero_packing.tiles * layout.zero_packing.words
        zero = {
            "none": None,
            "real": jnp.asarray(rng.uniform(0, 2**layout.bits, scale.shape), jnp.float16),
            "int": words(layout.groups, zero_words),
        }[layout.zero_kind]
        codes = words(layout.packing.tiles * layout.packing.words, layout.cols)
        return jnp.asarray(rng.normal(size=(m, layout.rows)), dtype), codes, jnp.asarray(scale, jnp.float16), zero

    return draw
