"""The layout as kernels know it is the layout in which the library packs."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics import bitpack
from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.affine_matmul.xla import unpacked
from pallas_kernels.packing import Packing
from pallas_kernels.specs import LAYERS, layer, pack_tile


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("tile, rows", [(64, 130), (32, 32)])
def test_the_library_packs_what_kernels_unpack(bits, tile, rows):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (rows, 3))
    words = bitpack.pack(jnp.asarray(codes), bits, tile)
    packing = Packing(bits, tile, rows)
    assert words.shape == (packing.tiles * packing.words, 3)
    assert packing.run * packing.fields == tile
    np.testing.assert_array_equal(unpack(words, packing), codes)
    np.testing.assert_array_equal(unpacked(words, packing), codes)


def test_tiles_are_chosen_alike():
    assert all(pack_tile(at.inputs) == bitpack.pack_tile(at.inputs) for at in LAYERS)
    assert layer("SmolLM2-135M/gate").outputs == 1536


@pytest.mark.parametrize("bits, tile, what", [(9, 64, "bits must be in 1..8"), (4, 96, "tile must be 32")])
def test_what_no_kernel_reads_is_refused(bits, tile, what):
    with pytest.raises(ValueError, match=f"op: {what}"):
        Packing(bits, tile, 64).check("op")
