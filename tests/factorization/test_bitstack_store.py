import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from compressjax.factorization import block_bytes_of, load_stack, open_store, stacks_of, write_store
from compressjax.ops import nbits


def test_blocks_come_back_bit_for_bit(store_folder, decomposed, order):
    store = open_store(store_folder)
    assert store.about == {"made": "here"} and store.levels == 4
    np.testing.assert_array_equal(store.order, order)
    for weight in store.weights:
        leaf = stacks_of(decomposed)[weight.path]
        for part, stored in zip(("signs", "u", "v"), store.read_block(weight, 1, 2), strict=True):
            np.testing.assert_array_equal(stored, getattr(leaf, part)[1, 2])


def test_sizes_are_those_of_the_arrays(store_folder, decomposed):
    store = open_store(store_folder)
    np.testing.assert_array_equal(store.block_bytes, block_bytes_of(stacks_of(decomposed)))
    assert store.block_bytes[0] == 4 * 8 + 2 * 2 * (16 + 8)  # k is [16, 8]; 16 rows of signs fill half a word
    assert store.table.bytes[-1] == nbits(decomposed) // 8


def test_the_rest_comes_back(store_folder, decomposed):
    tree, scales = open_store(store_folder).read_rest()
    assert scales == {}
    np.testing.assert_array_equal(tree["embed"]["embedding"], decomposed["embed"]["embedding"])
    assert set(tree["blocks"]) == {"attn_norm", "attn", "mlp_norm", "mlp"}


def test_an_existing_folder_is_never_replaced(store_folder, decomposed, order):
    before = sorted((f.name, f.stat().st_mtime_ns) for f in store_folder.iterdir())
    with pytest.raises(FileExistsError, match="exists already; name another folder"):
        write_store(store_folder, decomposed, order)
    assert sorted((f.name, f.stat().st_mtime_ns) for f in store_folder.iterdir()) == before


def test_a_failed_write_leaves_nothing(decomposed, order, tmp_path, monkeypatch):
    import compressjax.factorization.bitstack_store as module

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_store(tmp_path / "store", decomposed, order)
    assert list(tmp_path.iterdir()) == []


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_block_is_named(store_folder, tmp_path):
    broken = copy(store_folder, tmp_path)
    flip(broken / "level-000.safetensors", -1)
    with pytest.raises(ValueError, match=r"level-000.safetensors: block blocks/.*/\d is damaged"):
        load_stack(open_store(broken), 10**9)


@pytest.mark.parametrize(
    "harm, error, message",
    [
        (lambda f: (f / "level-002.safetensors").write_bytes(b"12345678"), ValueError, "level-002.safetensors"),
        (lambda f: (f / "level-002.safetensors").unlink(), FileNotFoundError, "level-002.safetensors"),
        (lambda f: (f / "rest.safetensors").unlink(), FileNotFoundError, "rest.safetensors"),
        (lambda f: flip(f / "rest.safetensors", -1), ValueError, "rest.safetensors is damaged"),
        (lambda f: flip(f / "bitstack.json", 200), ValueError, "bitstack.json"),
        (lambda f: (f / "bitstack.json").write_text("{}"), ValueError, "bitstack.json is damaged"),
        (lambda f: (f / "bitstack.json").unlink(), FileNotFoundError, "no BitStack store at"),
    ],
)
def test_a_damaged_store_is_refused(store_folder, tmp_path, harm, error, message):
    broken = copy(store_folder, tmp_path)
    harm(broken)
    with pytest.raises(error, match=message):
        open_store(broken)


def test_a_store_of_a_newer_format_is_refused(store_folder, tmp_path):
    import zlib

    broken = copy(store_folder, tmp_path)
    body = json.loads(json.loads((broken / "bitstack.json").read_text())["body"]) | {"format": 2}
    text = json.dumps(body)
    (broken / "bitstack.json").write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "body": text}))
    with pytest.raises(ValueError, match="has format 2, this version reads 1"):
        open_store(broken)


def test_what_is_not_a_decomposed_model_is_refused(decomposed, order, tmp_path):
    plain = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    with pytest.raises(ValueError, match="hold no SignLowRank leaf"):
        write_store(tmp_path / "s", plain, order)
    single = jax.tree.map(lambda a: a[0], decomposed["blocks"])
    with pytest.raises(ValueError, match="attn/k/kernel must stack its layers on one axis, not 0"):
        write_store(tmp_path / "s", single, order)
    with pytest.raises(ValueError, match="order leaves out levels"):
        write_store(tmp_path / "s", decomposed, order[:-1])
    with pytest.raises(ValueError, match="order has 14 blocks, the stacks have 4 levels"):
        write_store(tmp_path / "s", decomposed, np.arange(14))
