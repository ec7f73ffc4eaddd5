"""``compress --budget``: the model has the size asked for, and a search can be stopped and gone on with."""

import json

import numpy as np
import pytest

from compressjax.checkpoint import load_model, open_model
from compressjax.checkpoint.native_shard import read_shard
from compressjax.cli import budget as module
from compressjax.cli.methods import parse_search
from compressjax.leaf import ByLayer, is_leaf
from compressjax.ops import nbits
from compressjax.select import weights
from compressjax.streaming import read_summary

LEVELS = ("--level", "rtn:bits=2,group=16", "--level", "rtn:bits=3,group=16", "--level", "rtn:bits=8,group=16")
EVOPRESS = "evopress:generations=3,offspring=4,survivors=2/1,tokens=32/64"


@pytest.fixture
def words(tiny, text):
    return ("compress", tiny, "--calibration", text, "--windows", 4, "--length", 32, "--embedding-bits", 8, *LEVELS)


def stored_bytes(folder):
    """Bytes of all arrays on disk."""
    shards = [read_shard(path) for path in sorted(folder.glob("*.safetensors"))]
    return sum(nbits(shard.get("params", shard)) for shard in shards) // 8


def bits_by_layer(folder):
    kernels = {}
    for index, path in enumerate(sorted(folder.glob("block-*.safetensors"))):
        for name, w in weights(read_shard(path)["params"]).items():
            if is_leaf(w):
                kernels[index, name] = w.bits
    return kernels


@pytest.mark.parametrize("search", ["dp", "best", "uniform", EVOPRESS])
def test_the_model_is_as_small_as_asked_for_and_hardly_smaller(command, words, tmp_path, search):
    out, budget = tmp_path / "out", 32_000
    ended = command(*words, "--budget", budget, "--search", search, "--out", out, "--json")
    assert ended.code == 0, ended.err
    assert stored_bytes(out) == ended.result["bytes"] <= budget
    assert ended.result["bytes"] > (0.8 if search == "uniform" else 0.95) * budget
    counts = ended.result["note"]["levels"]
    assert sum(counts.values()) == 21 == len(bits_by_layer(out))
    assert (len([c for c in counts.values() if c]) > 1) == (search != "uniform")
    model = load_model(out)
    assert any(isinstance(w, ByLayer) for w in weights(model.params).values()) == (search != "uniform")
    assert not module.record_path(out).exists()


def test_an_interrupted_search_keeps_its_best_and_another_goes_on(command, words, tmp_path, monkeypatch):
    out = tmp_path / "out"
    allocate, seen = module.allocate, []

    def interrupted(db, budget, cfg, fitness, *, start, progress):
        def after(generation):
            progress(generation)
            seen.append(generation.state)
            raise KeyboardInterrupt

        return allocate(db, budget, cfg, fitness, start=start, progress=after)

    monkeypatch.setattr(module, "allocate", interrupted)
    ended = command(*words, "--budget", 32_000, "--search", EVOPRESS, "--out", out, "--json")
    assert ended.code == 0 and ended.result["note"]["generations"] == 1
    assert "the best so far is written" in ended.err
    found = [{2: 0, 3: 1, 8: 2}[bits] for bits in bits_by_layer(out).values()]
    assert sorted(found) == sorted(seen[0].tolist())


def test_a_search_goes_on_from_its_record(command, words, tmp_path, monkeypatch):
    out = tmp_path / "out"
    starts, allocate = [], module.allocate

    def recorded(db, budget, cfg, fitness, *, start, progress):
        starts.append((start, cfg.generations, cfg.seed))

        def after(generation):
            progress(generation)
            if len(starts) == 1 and generation.number == 2:
                raise RuntimeError("power cut")

        return allocate(db, budget, cfg, fitness, start=start, progress=after)

    monkeypatch.setattr(module, "allocate", recorded)
    assert command(*words, "--budget", 32_000, "--search", EVOPRESS, "--out", out).code == 1
    kept = json.loads(module.record_path(out).read_text())
    ended = command(*words, "--budget", 32_000, "--search", EVOPRESS, "--out", out, "--json")
    assert ended.code == 0 and ended.result["note"]["generations"] == 3
    np.testing.assert_array_equal(starts[1][0], kept["state"])
    assert starts[0][1:] == (3, 0) and starts[1][1:] == (1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--budget", "9kB"), "budget 9kB is too small: at the lowest levels the model takes"),
        (("--budget", "many"), "budget must be a size such as 60MB"),
        (("--budget", "20kB", "--search", "luck"), "unknown method 'luck'"),
        (("--budget", "20kB", "--rules", "blocks/mlp/*=rtn:bits=3"), "--budget chooses for every matrix"),
        ((), "--level says what a matrix may get under a --budget"),
        (("--budget", "20kB", "--level", "rtn:bits=2,group=16"), "levels must rise in bits"),
    ],
)
def test_mistakes_end_with_a_message_and_nothing_on_disk(command, words, tmp_path, flags, message):
    ended = command(*words, *flags, "--out", tmp_path / "out")
    assert ended.code == 2 and message in ended.err
    assert not list(tmp_path.iterdir())


def test_methods_without_bits_want_their_levels(command, tiny, tmp_path):
    ended = command("compress", tiny, "--method", "svd", "--budget", "20kB", "--out", tmp_path / "out")
    assert ended.code == 2 and "SVD has no bits to choose from: name its levels with --level" in ended.err


def test_embedding_bits_are_stored(command, tiny, text, tmp_path):
    sizes = {}
    for bits in (32, 16, 4):
        ended = command(
            "compress", tiny, "--method", "rtn", "--group", 16, "--embedding-bits", bits, "--out", tmp_path / str(bits)
        )
        assert ended.code == 0, ended.err
        sizes[bits] = nbits(open_model(tmp_path / str(bits)).rest()["embed"])
    assert sizes[32] == 2 * sizes[16] == 32 * 256 * 32 and sizes[4] == (4 + 16 / 32) * 256 * 32
    assert read_summary(tmp_path / "4").bytes < read_summary(tmp_path / "16").bytes
    ended = command("compress", tiny, "--method", "rtn", "--embedding-bits", 9, "--out", tmp_path / "x")
    assert ended.code == 2 and "embedding-bits must be 2 to 8, 16 or 32, got 9" in ended.err


def test_tuples_are_joined_by_slashes():
    assert parse_search(EVOPRESS).tokens == (32, 64)
    with pytest.raises(ValueError, match="tokens must be of type int, got 'x'"):
        parse_search("evopress:tokens=1/x")
