import numpy as np
import pytest

from compressjax.exchange.marlin import from_marlin, scales_from_marlin, scales_to_marlin, to_marlin


def test_word_by_word():
    """Each word against the published rule, spelled out one nibble at a time."""
    codes = np.random.default_rng(0).integers(0, 16, (32, 128)).astype(np.uint8)
    words = to_marlin(codes).view(np.uint32)
    assert words.shape == (2, 256)
    for tile_row, tile_col in [(0, 0), (1, 0), (1, 1)]:
        tile = codes[16 * tile_row : 16 * tile_row + 16, 64 * tile_col : 64 * tile_col + 64]
        for thread in range(32):
            for warp in range(4):
                column = 16 * warp + thread // 4
                rows = [2 * (thread % 4) + r for r in (0, 1, 8, 9)]
                held = [tile[r, column] for r in rows] + [tile[r, column + 8] for r in rows]
                wanted = sum(int(held[n]) << (4 * place) for place, n in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
                assert words[tile_row, 128 * tile_col + 4 * thread + warp] == wanted


@pytest.mark.parametrize("shape", [(16, 64), (64, 192), (576, 1536)])
def test_there_and_back(shape):
    codes = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8)
    np.testing.assert_array_equal(from_marlin(to_marlin(codes)), codes)


@pytest.mark.parametrize("groups", [1, 4])
def test_scales_there_and_back(groups):
    scale = np.random.default_rng(0).standard_normal((groups, 192)).astype(np.float16)
    moved = scales_to_marlin(scale)
    assert (moved != scale).any()
    np.testing.assert_array_equal(scales_from_marlin(moved), scale)


def test_scale_orders():
    grouped = scales_to_marlin(np.arange(128).reshape(2, 64))
    assert grouped[0, :10].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]
    single = scales_to_marlin(np.arange(64).reshape(1, 64))
    assert single[0, :16].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27]
    assert single[0, 32:36].tolist() == [32, 33, 40, 41]


def test_refuses_sides_without_tiles():
    with pytest.raises(ValueError, match="16 x 64, they do not divide a weight of 16 x 96"):
        to_marlin(np.zeros((16, 96), np.uint8))
