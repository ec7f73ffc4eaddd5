"""Round to nearest against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import unpack_codes, unpack_zeros
from compressjax.ops import dense
from compressjax.quantization import RTN, quantize, rtn

from .hessians import weight


@pytest.mark.parametrize("bits", [2, 3, 4, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group", [pytest.param(-1, marks=pytest.mark.slow), 16, 20])
def test_against_numpy(bits, sym, group):
    w = np.asarray(weight(48, 5))
    leaf = rtn(jnp.asarray(w), RTN(bits=bits, group=group, sym=sym))
    step = 48 if group == -1 else group
    for g, start in enumerate(range(0, 48, step)):
        part = w[start : start + step]
        low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
        if sym:
            high = np.maximum(-low, high)
            low = -high
        scale = ((high - low) / np.float32(2**bits - 1)).astype(np.float16).astype(np.float32)
        zero = np.full(5, 2.0 ** (bits - 1)) if sym else np.clip(np.round(-low / scale), 0, 2**bits - 1)
        codes = np.clip(np.round(part / scale) + zero, 0, 2**bits - 1)
        np.testing.assert_array_equal(leaf.scale[g], scale.astype(np.float16))
        np.testing.assert_array_equal(unpack_zeros(leaf)[g], zero)
        np.testing.assert_array_equal(unpack_codes(leaf)[start : start + step], codes)
        np.testing.assert_allclose(dense(leaf)[start : start + step], scale * (codes - zero), rtol=1e-6, atol=1e-7)


def test_weights_on_the_grid_come_back_exactly():
    codes = np.random.default_rng(0).integers(0, 16, (64, 8))
    codes[0], codes[1] = 0, 15
    w = jnp.asarray(0.25 * (codes - 7), jnp.float32)
    np.testing.assert_array_equal(dense(rtn(w, RTN(bits=4, group=-1))), w)


def test_mse_grid_has_less_error():
    w = weight(128, 16)
    plain, best = dense(rtn(w, RTN(bits=3))), dense(rtn(w, RTN(bits=3, grid="mse")))
    assert float(jnp.sum(jnp.abs(w - best) ** 2.4)) < float(jnp.sum(jnp.abs(w - plain) ** 2.4))


def test_embedding_by_name():
    params = {"embed": {"embedding": weight(64, 32)}, "head": {"kernel": weight(32, 64)}}
    new = quantize(params, RTN(bits=8, group=32), rules={"embed/embedding": RTN(bits=4, group=32), "head": None})
    assert new["embed"]["embedding"].bits == 4
    assert new["head"]["kernel"] is params["head"]["kernel"]


def test_refusals():
    with pytest.raises(ValueError, match=r"RTN.bits must be in 2\.\.8, got 1"):
        RTN(bits=1)
    with pytest.raises(ValueError, match="weight of head/kernel has NaN"):
        quantize({"head": {"kernel": jnp.full((8, 8), jnp.nan)}}, RTN())
