"""Rounded groups: what is not a number stays so and stays in its group."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import GEAR
from compressjax.kvcache.gear import gear_compress, gear_decompress
from compressjax.kvcache.packed import pack_groups, unpack_groups

B, K, S, D = 2, 2, 64, 32


def draw():
    return jnp.asarray(np.random.default_rng(0).standard_normal((B, K, S, D)), jnp.float32)


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("axis", ["channel", "token"])
def test_a_group_with_nan_reads_back_as_nan_and_no_other(axis, sym):
    """Of both signs, first in a group and inside it; a word holds fields of all tokens of a channel."""
    keep = jnp.ones((B, S), bool).at[1, 40].set(False)

    @jax.jit
    def there_and_back(x):
        return unpack_groups(pack_groups(x, axis, bits=4, group=16, sym=sym, keep=keep), axis, bits=4)

    x = draw()
    spoilt = x.at[0, 1, 37, 5].set(jnp.nan).at[1, 0, 16, 16].set(-jnp.nan)
    # A token that does not count spoils no group, and is some number.
    spoilt = spoilt.at[1, 1, 40, 3].set(jnp.nan)
    good, bad = np.array(there_and_back(x)), np.array(there_and_back(spoilt))
    lost = np.zeros((B, K, S, D), bool)
    if axis == "channel":
        lost[0, 1, 32:48, 5] = lost[1, 0, 16:32, 16] = True
    else:
        lost[0, 1, 37, :16] = lost[1, 0, 16, 16:] = True
    assert np.all(np.isnan(bad[lost])) and not np.any(np.isnan(good))
    apart = ~lost
    apart[1, 1, 40, 3] = False
    np.testing.assert_array_equal(bad[apart], good[apart])
    assert np.isfinite(bad[1, 1, 40, 3])


def test_infinity_is_not_nan():
    x = draw().at[0, 0, 3, 3].set(jnp.inf)
    packed = jax.jit(functools.partial(pack_groups, axis="channel", bits=4, group=32))(x)
    assert bool(jnp.all(jnp.isfinite(packed.scale))) and bool(jnp.all(jnp.isfinite(packed.low)))


@pytest.mark.parametrize("kind", ["key", "value"])
def test_nan_in_a_block_of_gear_stays_in_its_row(kind):
    """Outliers, fit and base may each carry it on inside a block, yet no part makes a number of it."""
    cfg = GEAR(bits=4, group=16, rank=2, sparsity=0.1)

    @jax.jit
    def there_and_back(x):
        block = gear_compress(x, kind, cfg, 2, jnp.ones((B, S), bool))
        return gear_decompress(block, kind, cfg, D)

    good, bad = there_and_back(draw()), there_and_back(draw().at[0, 1, 37, 5].set(jnp.nan))
    assert np.isnan(bad[0, 1, 37, 5])
    np.testing.assert_array_equal(bad[1], good[1])
