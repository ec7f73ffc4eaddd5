import time

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from compressjax.checkpoint import gguf_table
from compressjax.checkpoint.gguf_table import read_table

QUANTIZABLE = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]
# Byte positions of the float16 scales inside a block: random bytes there could be NaN.
SUPER_BLOCKS = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
}


def random_blocks(kind, rows, blocks):
    """Valid blocks of a type for which the package has no quantiser."""
    rng = np.random.default_rng(int(kind))
    size = gguf.GGML_QUANT_SIZES[kind][1]
    raw = rng.integers(0, 256, (rows, blocks, size)).astype(np.uint8)
    for position in SUPER_BLOCKS[kind]:
        scale = rng.uniform(0.001, 0.1, (rows, blocks, 1)).astype(np.float16)
        raw[..., position : position + 2] = scale.view(np.uint8)
    return raw.reshape(rows, blocks * size)


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=lambda kind: kind.name)
def test_simple_types(kind, write_gguf):
    weights = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    raw = quantize(weights, kind)
    table = read_table(write_gguf({}, {"w": raw}, {"w": kind}))
    got = table.read("w")
    assert table.tensors["w"].kind == kind
    assert got.dtype == np.float32 and got.shape == (6, 64)
    np.testing.assert_array_equal(got, np.asarray(dequantize(raw, kind), np.float32).reshape(6, 64))
    step = {Kind.F32: 0, Kind.F16: 2e-3, Kind.BF16: 2e-2}.get(kind, 0.5)
    np.testing.assert_allclose(got, weights, atol=step)


@pytest.mark.parametrize("kind", SUPER_BLOCKS, ids=lambda kind: kind.name)
def test_k_quants(kind, write_gguf):
    raw = random_blocks(kind, 3, 2)
    got = read_table(write_gguf({}, {"w": raw}, {"w": kind})).read("w")
    assert got.shape == (3, 512)
    np.testing.assert_array_equal(got, dequantize(raw, kind))
    assert len(np.unique(got)) > 50


def test_chunks_change_nothing(write_gguf, monkeypatch):
    raw = random_blocks(Kind.Q4_K, 37, 1)
    table = read_table(write_gguf({}, {"w": raw, "v": np.ones(5, np.float32)}, {"w": Kind.Q4_K}))
    whole = table.read("w")
    for chunk in (1, 256, 1000, 256 * 36):
        monkeypatch.setattr(gguf_table, "_CHUNK", chunk)
        np.testing.assert_array_equal(table.read("w"), whole)
        np.testing.assert_array_equal(table.read("v"), np.ones(5))


def test_q4_1_and_q8_0_by_their_layout(smollm2):
    """Block layouts written out: 16-bit scale and minimum, low nibbles first; 16-bit scale and signed bytes."""
    table = read_table(smollm2.path)
    place = table.tensors["blk.7.ffn_down.weight"]
    raw = np.fromfile(table.path, np.uint8, place.nbytes, offset=place.offset).reshape(-1, 20)
    d, m = raw[:, :2].copy().view(np.float16), raw[:, 2:4].copy().view(np.float16)
    codes = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1)
    want = d.astype(np.float32) * codes + m.astype(np.float32)
    np.testing.assert_array_equal(table.read("blk.7.ffn_down.weight"), want.reshape(576, 1536))

    place = table.tensors["token_embd.weight"]
    raw = np.fromfile(table.path, np.uint8, 34 * 18 * 100, offset=place.offset).reshape(-1, 34)
    want = raw[:, :2].copy().view(np.float16).astype(np.float32) * raw[:, 2:].view(np.int8)
    np.testing.assert_array_equal(table.read("token_embd.weight")[:100], want.reshape(100, 576))


def test_the_same_tables_as_the_package_reads(write_gguf):
    metadata = {
        ".a_number": 7,
        ".a_float": 0.25,
        ".a_flag": True,
        "a.string": "naïve 雪",
        "strings": ["x", "", "ü"],
        "numbers": [1, -2, 3],
        "floats": [0.5, -1.5],
        "flags": [True, False],
    }
    tensors = {"one": np.arange(5, dtype=np.float32), "two": np.ones((2, 3, 4), np.float16)}
    path = write_gguf(metadata, tensors)
    table, reader = read_table(path), gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert table.metadata == theirs
    assert table.metadata["general.architecture"] == "llama" and table.metadata["llama.a_flag"] is True
    assert {tensor.name: (int(tensor.data_offset), int(tensor.n_bytes)) for tensor in reader.tensors} == {
        name: (tensor.offset, tensor.nbytes) for name, tensor in table.tensors.items()
    }
    assert table.tensors["two"].shape == (2, 3, 4)


@pytest.mark.slow
def test_the_packaged_model_as_the_package_reads_it(smollm2):
    table, reader = read_table(smollm2.path), gguf.GGUFReader(smollm2.path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert table.metadata == theirs
    for tensor in reader.tensors:
        got = table.read(tensor.name)
        np.testing.assert_array_equal(got, np.reshape(dequantize(tensor.data, tensor.tensor_type), got.shape))


def test_every_truncation_is_refused(write_gguf, tmp_path):
    path = write_gguf({"s": "text", "l": ["a", "b"], "n": [1, 2, 3]}, {"w": np.ones((4, 8), np.float32)})
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for keep in [*range(0, 200), len(data) - 1]:
        cut.write_bytes(data[:keep])
        with pytest.raises(ValueError, match="cut.gguf"):
            read_table(cut)


def test_truncation_after_opening_is_refused(write_gguf):
    path = write_gguf({}, {"w": np.ones((4, 8), np.float32)})
    table = read_table(path)
    path.write_bytes(path.read_bytes()[: table.tensors["w"].offset + 40])
    with pytest.raises(ValueError, match="truncated in tensor w: 128 bytes wanted"):
        table.read("w")


def test_damage_ends_in_an_error_or_a_table_and_soon(write_gguf, tmp_path):
    """Flip bits all over the tables: no other exception, no long loop, no allocation beyond the file's size."""
    path = write_gguf({"s": "text", "l": ["a", "b"], "n": [1, 2, 3]}, {"w": np.ones((4, 8), np.float32)})
    data = path.read_bytes()
    end = read_table(path).tensors["w"].offset
    bad = tmp_path / "bad.gguf"
    refused, start = 0, time.monotonic()
    for bit in range(0, 8 * end, 3):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        bad.write_bytes(changed)
        try:
            read_table(bad)
        except ValueError as error:
            assert "bad.gguf" in str(error)
            refused += 1
    assert refused > 300
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "truncated or damaged: 4 bytes wanted, 0 left"),
        (b"PK\x03\x04" + bytes(60), "does not start with GGUF"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(60), "version is 1, not 2 or 3"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(60), "big-endian"),
    ],
)
def test_other_files_are_refused(start, message, tmp_path):
    (tmp_path / "x.gguf").write_bytes(start)
    with pytest.raises(ValueError, match=f"x.gguf is not a readable GGUF file: .*{message}"):
        read_table(tmp_path / "x.gguf")


def test_a_part_of_a_split_model_is_refused(write_gguf):
    with pytest.raises(ValueError, match="one of 3 parts"):
        read_table(write_gguf({"split.count": 3}))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.gguf"):
        read_table(tmp_path / "absent.gguf")


def test_a_type_that_cannot_be_dequantised_is_named(write_gguf):
    table = read_table(write_gguf({}, {"w": np.ones(4, np.int32)}))
    with pytest.raises(ValueError, match="tensor w has unreadable type I32"):
        table.read("w")
