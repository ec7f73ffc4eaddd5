import shutil

import numpy as np
import pytest

from compressjax.checkpoint.fingerprint import fingerprint


@pytest.fixture
def model(tmp_path):
    """A file of 5 MB and a small one, in a folder."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "big").write_bytes(np.random.default_rng(0).bytes(5_000_000))
    (folder / "small").write_bytes(b"config")
    return folder


def of(folder):
    return fingerprint(folder.iterdir())


def test_moving_keeps_it_and_order_does_not_matter(model, tmp_path):
    before = of(model)
    shutil.copytree(model, tmp_path / "b")
    assert of(tmp_path / "b") == before
    assert fingerprint(sorted(model.iterdir(), reverse=True)) == before
    assert len(before) == 64


@pytest.mark.parametrize("position", [0, 1_000_000, 5_000_000 - 1, 2_500_000 - 2048])
def test_a_change_in_head_tail_or_a_sample_changes_it(model, position):
    before = of(model)
    data = bytearray((model / "big").read_bytes())
    data[position] ^= 1
    (model / "big").write_bytes(data)
    assert of(model) != before


def test_names_sizes_and_small_files_count(model):
    seen = {of(model)}
    (model / "small").write_bytes(b"confiG")
    seen.add(of(model))
    with (model / "big").open("ab") as file:
        file.write(b"\0")
    seen.add(of(model))
    (model / "small").rename(model / "renamed")
    seen.add(of(model))
    assert len(seen) == 4
