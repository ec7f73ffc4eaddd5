import io
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from compressjax.checkpoint.safetensors_file import DTYPES, open_safetensors, read_stream


def raw(header: dict, data: bytes) -> bytes:
    """A safetensors file by the letter of the format."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def tensors():
    """Arrays of several types, an empty one and a scalar among them."""
    rng = np.random.default_rng(0)
    return {
        "b": rng.normal(size=(3, 5)).astype(np.float32),
        "a": rng.normal(size=(7,)).astype(np.float16),
        "ints": rng.integers(-5, 5, (2, 2, 2)),
        "bytes": rng.integers(0, 255, (11,)).astype(np.uint8),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float64),
    }


def test_reads_what_the_package_writes(tensors, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = open_safetensors(tmp_path / "m.safetensors")
    assert set(file.entries) == set(tensors)
    assert file.metadata == {"format": "pt"}
    for name, values in tensors.items():
        got = file.read(name)
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values)


def test_a_stream_gives_the_same(tensors, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    got = dict(read_stream(io.BytesIO(data), len(data), "stream"))
    assert got.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_every_dtype_by_its_bits(kind, tmp_path):
    dtype = DTYPES[kind]
    bits = np.arange(8 * dtype.itemsize, dtype=np.uint8) % 2 if kind == "BOOL" else np.arange(8 * dtype.itemsize)
    data = bits.astype(np.uint8).tobytes()
    header = {"w": {"dtype": kind, "shape": [2, 4], "data_offsets": [0, len(data)]}}
    (tmp_path / "m.safetensors").write_bytes(raw(header, data))
    got = open_safetensors(tmp_path / "m.safetensors").read("w")
    assert got.dtype == dtype and got.shape == (2, 4)
    assert got.tobytes() == data


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.array([1.0, -2.5, 3.140625, 1e30], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = {"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    (tmp_path / "m.safetensors").write_bytes(raw(header, upper.tobytes()))
    got = open_safetensors(tmp_path / "m.safetensors").read("w")
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got.astype(np.float32), (upper.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncation_anywhere_is_refused(keep, tensors, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(ValueError, match="m.safetensors"):
        open_safetensors(path)
    with pytest.raises(ValueError, match="name of the stream"):
        list(read_stream(io.BytesIO(data[:keep]), len(data[:keep]), "name of the stream"))


def test_truncation_after_opening_is_refused(tensors, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(tensors, path)
    file = open_safetensors(path)
    path.write_bytes(path.read_bytes()[: file.entries["b"].offset + 4])
    with pytest.raises(ValueError, match="truncated in tensor b: wanted 60 bytes"):
        file.read("b")


def test_extra_bytes_are_refused(tensors, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors")
    with (tmp_path / "m.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="truncated or padded"):
        open_safetensors(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "bytes 0 to 4"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "bytes 4 to 8"),
        ({"w": {"dtype": "Q7", "shape": [8], "data_offsets": [0, 8]}}, "dtype Q7"),
        ({"w": {"shape": [2], "data_offsets": [0, 8]}}, "damaged safetensors header"),
        ({"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, "bytes 0 to 8"),
        ({"w": [1, 2]}, "damaged safetensors header"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, "damaged safetensors header"),
        (
            {
                "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            },
            "bytes 0 to 8",
        ),
    ],
)
def test_headers_that_lie_are_refused(header, message, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(raw(header, b"\0" * 8))
    with pytest.raises(ValueError, match=message):
        open_safetensors(tmp_path / "m.safetensors")


def test_other_files_and_no_file(tmp_path):
    (tmp_path / "m.safetensors").write_text("<html>not found</html>" * 10)
    with pytest.raises(ValueError, match="not a safetensors file"):
        open_safetensors(tmp_path / "m.safetensors")
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        open_safetensors(tmp_path / "absent.safetensors")


def test_damage_ends_in_an_error_or_a_table(tensors, tmp_path):
    """Change every byte of the header once: no other exception than ValueError, and it names the file."""
    save_file(tensors, tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    refused = 0
    for position in range(8 + int.from_bytes(data[:8], "little")):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        (tmp_path / "bad.safetensors").write_bytes(changed)
        try:
            open_safetensors(tmp_path / "bad.safetensors")
        except ValueError as error:
            assert "bad.safetensors" in str(error)
            refused += 1
    assert refused > 200
