"""``fit``: from words to a model of a given size."""

import pytest

from compressjax.cli.sizes import bytes_of
from compressjax.factorization import open_store

FLAGS = ("--levels", 3, "--rank", 2, "--windows", 4, "--length", 32, "--sort-windows", 2, "--sort-length", 16)


@pytest.mark.parametrize(
    "text, size", [("60MB", 60_000_000), ("1.5 kib", 1536), ("700", 700), ("2GiB", 2**31), ("0.25kB", 250)]
)
def test_sizes_are_read(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "60 bananas", "0", "1e3"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="memory must be a size such as 60MB"):
        bytes_of(text)


@pytest.fixture(scope="module")
def fitted(tiny, text, tmp_path_factory):
    """The folder of a store, to be made by the first test that runs the command."""
    return tmp_path_factory.mktemp("fit") / "store"


def test_fit_decomposes_stores_and_resizes(command, tiny, text, fitted):
    words = ("fit", tiny, "--store", fitted, *FLAGS, "--calibration", text, "--json")
    first = command(*words, "--memory", "40kB")
    assert first.code == 0, first.err
    again = command(
        *words,
        "--memory",
        "31kB",
        "40kB",
        "31kB",
        "--text",
        text,
        "--eval-windows",
        2,
    )
    assert again.code == 0, again.err
    assert "Decomposing" not in again.err
    small, large, back = again.result["sizes"]
    assert first.result["sizes"][0]["bytes"] == large["bytes"] > small["bytes"] == back["bytes"]
    assert small["bytes"] <= 31_000 and large["bytes"] <= 40_000
    assert large["read"] == back["dropped"] > 0 == back["read"] == large["dropped"]
    assert large["bytes_read"] == large["bytes"] - small["bytes"]
    assert sum(large["matrices_by_blocks"].values()) == 21
    assert large["other_bytes"] == small["other_bytes"]
    assert small["perplexity"] == back["perplexity"]
    assert small["block_bytes"] + small["other_bytes"] == small["bytes"]


def test_fit_prints_a_table(command, tiny, text, fitted):
    asked = ("--prompt", "The", "--max-new-tokens", 4)
    ended = command("fit", tiny, "--store", fitted, *FLAGS, "--calibration", text, "--memory", "35kB", *asked)
    assert ended.code == 0, ended.err
    assert len(ended.out.rstrip("\n").rpartition("\n")[2]) > 0
    assert "In memory" in ended.out and "Bits per weight" in ended.out and "Blocks: matrices" in ended.out
    other = command("fit", tiny, "--store", fitted, "--memory", "35kB", "--json")
    assert other.code == 0 and "flags that say otherwise are not used" in other.err


def test_too_little_memory_says_how_much_is_needed(command, tiny, text, fitted):
    words = ("fit", tiny, "--store", fitted, *FLAGS, "--calibration", text)
    assert command(*words, "--memory", "35kB").code == 0
    ended = command(*words, "--memory", "9kB")
    assert ended.code == 2 and "9,000 bytes are not enough: with one block per matrix the model takes" in ended.err


def test_mistakes_are_named(command, tiny, text, fitted, make_model, tmp_path):
    words = ("fit", tiny, "--store", fitted, *FLAGS, "--calibration", text)
    assert command(*words, "--memory", "35kB").code == 0
    other = make_model(tmp_path / "other", seed=3)
    ended = command("fit", other, "--store", fitted, "--memory", "35kB")
    assert ended.code == 2 and "holds another model than" in ended.err
    ended = command("fit", tiny, "--store", other, *FLAGS, "--calibration", text, "--memory", "35kB")
    assert ended.code == 2 and "exists and is no store" in ended.err
    ended = command(*words[:3], tmp_path / "new", *FLAGS, "--embedding-bits", 9, "--memory", "35kB")
    assert ended.code == 2 and "embedding-bits must be 2 to 8, 16 or 32, got 9" in ended.err
    ended = command(*words, "--memory", "lots")
    assert ended.code == 2 and "memory must be a size such as 60MB" in ended.err


@pytest.mark.slow
def test_blocks_can_be_sorted_one_evaluation_each(command, make_model, text, tmp_path):
    model = make_model(tmp_path / "one", num_hidden_layers=1)
    words = ("fit", model, "--store", tmp_path / "store", *FLAGS[2:], "--levels", 2, "--calibration", text, "--json")
    ended = command(*words, "--sort", "levelwise", "--memory", "20kB")
    assert ended.code == 0, ended.err
    store = open_store(tmp_path / "store")
    assert sorted(store.order.tolist()) == list(range(7)) and store.about["settings"]["sort"] == "levelwise"
