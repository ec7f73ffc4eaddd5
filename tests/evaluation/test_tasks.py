"""Question files: each layout, and what a malformed line says."""

import json

import pytest

from compressjax.evaluation.tasks import LastWord, MultipleChoice, read_last_words, read_multiple_choice

GOOD = {"query": "q", "choices": ["a", "b"], "gold": 1}


@pytest.fixture
def write(tmp_path):
    def inner(*rows):
        path = tmp_path / "task.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return inner


def test_multiple_choice(write):
    rows = [GOOD, {"query": "r\nAnswer:", "choices": ["A", "B", "C"], "gold": 0, "extra": None}]
    assert read_multiple_choice(write(*rows)) == (
        MultipleChoice(("q\nAnswer:",) * 2, ("a", "b"), 1),
        MultipleChoice(("r\nAnswer:",) * 3, ("A", "B", "C"), 0),
    )


def test_the_suffix_is_chosen(write):
    assert read_multiple_choice(write(GOOD), suffix="")[0].contexts == ("q", "q")


def test_schema(write):
    row = {"context_options": ["so Ann", "so Bob"], "continuation": "won.", "gold": 0}
    assert read_multiple_choice(write(row)) == (MultipleChoice(("so Ann", "so Bob"), ("won.", "won."), 0),)


def test_last_words(write):
    assert read_last_words(write({"context": "to be or not to", "continuation": "be"})) == (
        LastWord("to be or not to", "be"),
    )


def test_a_limit_reads_no_further(write):
    path = write(GOOD, GOOD, {"query": 1})
    assert len(read_multiple_choice(path, limit=2)) == 2
    with pytest.raises(ValueError, match="line 3"):
        read_multiple_choice(path, limit=3)
    for read in (read_multiple_choice, read_last_words):
        with pytest.raises(ValueError, match="limit must be at least 1 question, got 0"):
            read(path, limit=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": None}, "query must be a non-blank string, got None"),
        ({"query": " "}, "query must be a non-blank string"),
        ({"choices": ["a"]}, "choices must be a list of at least two strings"),
        ({"choices": "ab"}, "choices must be a list of at least two strings, got 'ab'"),
        ({"choices": ["a", ""]}, "choices must hold non-blank strings, got ''"),
        ({"choices": ["a", 2]}, "choices must hold non-blank strings, got 2"),
        ({"gold": 2}, "gold must be an integer from 0 to 1, got 2"),
        ({"gold": -1}, "gold must be an integer from 0 to 1, got -1"),
        ({"gold": "1"}, "gold must be an integer from 0 to 1, got '1'"),
        ({"gold": True}, "gold must be an integer from 0 to 1, got True"),
        ({"context_options": ["a", "b"]}, "continuation must be a non-blank string, got None"),
    ],
)
def test_a_malformed_line_is_named(write, changes, message):
    path = write(GOOD, GOOD | changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_multiple_choice(path)
    assert f"{path}, line 2: " in str(caught.value)


def test_a_broken_line_is_named(write):
    path = write(GOOD)
    path.write_text(path.read_text() + "{broken\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        read_multiple_choice(path)
    with pytest.raises(ValueError, match="line 1: context must be a non-blank string, got None"):
        read_last_words(write(GOOD))


def test_every_shared_file_is_read(shared_data):
    counts = {"arc_easy": 2376, "piqa": 1838, "copa": 100, "winogrande": 1267, "commonsense_qa": 1221, "boolq": 3270}
    for name, count in counts.items():
        items = read_multiple_choice(shared_data / "lm_eval" / f"{name}.jsonl")
        assert len(items) == count
        assert not any(context.endswith("\nAnswer:\nAnswer:") for item in items for context in item.contexts)
    assert len(read_last_words(shared_data / "lm_eval" / "lambada_openai.jsonl")) == 5153
