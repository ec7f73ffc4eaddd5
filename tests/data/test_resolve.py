"""Texts by the names the command line takes."""

import importlib.util

import pytest

from compressjax.data.resolve import NAMED_TEXTS, text_from
from compressjax.data.topics import topics_text


def test_topics_are_text():
    text = text_from("topics")
    assert text == topics_text()
    assert len(text) > 200_000
    assert "assert" in text


@pytest.mark.skipif(importlib.util.find_spec("gensim") is None, reason="gensim is not installed")
def test_wikipedia_parts():
    whole, train, test = (text_from(name) for name in ("wikipedia", "wikipedia:train", "wikipedia:test"))
    assert whole == train + "\n\n" + test
    assert len(train) > len(test) > 500_000


def test_files(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("some text\n", encoding="utf-8")
    lines.write_text('{"body": "one"}\n{"body": "two"}\n', encoding="utf-8")
    assert text_from(str(plain)) == "some text\n"
    assert text_from(str(lines), field="body") == "one\n\ntwo"


def test_a_file_named_like_a_text_is_reached_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "topics").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert text_from("./topics") == "mine"
    assert text_from("topics") != "mine"


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        text_from(str(tmp_path / "wikipedio"))
    assert all(name in str(caught.value) for name in NAMED_TEXTS)


@pytest.mark.parametrize("spec", ["tfds:", "tfds:name", "tfds:name/", "tfds:/train"])
def test_an_incomplete_tfds_name_is_refused(spec):
    with pytest.raises(ValueError, match="expected 'tfds:<name>/<split>'"):
        text_from(spec)
