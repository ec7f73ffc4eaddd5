"""Text and JSON-lines files: what comes out, and what each kind of bad file says."""

import pytest

from compressjax.data.text_files import read_documents, read_jsonl, read_text


@pytest.fixture
def write(tmp_path):
    def inner(name: str, content: bytes | str):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return inner


def test_text_is_read_whole(write):
    assert read_text(write("a.txt", "\ufeffÄ first\r\nsecond\n")) == "Ä first\nsecond\n"


def test_plain_text_is_one_document(write):
    assert read_documents(write("a.txt", "one\n\ntwo")) == ("one\n\ntwo",)


def test_json_lines_are_documents(write):
    # U+2028 ends a line for str.splitlines but may stand inside a JSON string.
    path = write("a.JSONL", '{"text": "one\\ntwo"}\n\n{"text": "a\u2028b", "other": 1}\n')
    assert read_documents(path) == ("one\ntwo", "a\u2028b")
    assert [number for number, _ in read_jsonl(path)] == [1, 3]


def test_the_field_is_chosen(write):
    assert read_documents(write("a.jsonl", '{"text": "no", "body": "yes"}'), field="body") == ("yes",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "holds no text"),
        ("a.txt", " \n\t\n", "holds no text"),
        ("a.txt", b"ab\xff\xfe", "byte 2 cannot be decoded"),
        ("a.txt", b"ab\x00c", "NUL character at position 2"),
        ("a.jsonl", "", "holds no text"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n["a"]', "line 2: expected a JSON object, got list"),
        ("a.jsonl", '{"text": NaN}', "line 1: not valid JSON: NaN is not a JSON value"),
        ("a.jsonl", '{"text": "a", "score": -Infinity}', "line 1: not valid JSON: -Infinity"),
        ("a.jsonl", '{"body": "a"}', "line 1: no field 'text'; the line has 'body'"),
        ("a.jsonl", "{}", "line 1: no field 'text'; the line has none"),
        ("a.jsonl", '{"text": 1.5}', "line 1: field 'text' must be a non-blank string, got 1.5"),
        ("a.jsonl", '{"text": null}', "must be a non-blank string, got None"),
        ("a.jsonl", '{"text": "  "}', "must be a non-blank string"),
    ],
)
def test_bad_files_are_refused(write, name, content, message):
    path = write(name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [read_text, read_documents, lambda path: list(read_jsonl(path))])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="no file at .*absent.jsonl"):
        read(tmp_path / "absent.jsonl")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path)
