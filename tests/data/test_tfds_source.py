"""TFDS as a source of text: a data set really prepared in a temporary folder, and read without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compressjax.data.resolve import text_from
from compressjax.data.tfds_source import TfdsTexts, tfds_texts

TRAIN, TEST = 20, 5

# In a process of its own: TFDS registers every builder class it sees by name, and prints progress.
PREPARE = f"""
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {{"text": tfds.features.Text(), "title": tfds.features.Text(), "label": np.int32}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {{"train": self._generate_examples({TRAIN}), "test": self._generate_examples({TEST})}}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {{"text": f"document {{i}} \u00e9", "title": f"title {{i}}", "label": i}}

TinyTexts(data_dir=sys.argv[1], file_format=sys.argv[2]).download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    command = [sys.executable, "-c", PREPARE, str(folder), "array_record"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return folder


def test_every_document_is_read(prepared):
    texts = tfds_texts("tiny_texts", "train", data_dir=prepared)
    assert len(texts) == TRAIN
    # TFDS shuffles examples when it prepares them.
    assert sorted(texts) == sorted(f"document {i} é" for i in range(TRAIN))
    assert sorted(tfds_texts("tiny_texts", "test", data_dir=prepared)) == [f"document {i} é" for i in range(TEST)]


def test_access_is_random(prepared):
    texts = tfds_texts("tiny_texts:1.0.0", "train", data_dir=prepared)
    everything = list(texts)
    assert texts[7] == everything[7]
    assert texts[-1] == everything[-1]
    assert texts[3:6] == tuple(everything[3:6])
    assert texts[np.int64(2)] == everything[2]
    for index in (TRAIN, -TRAIN - 1):
        with pytest.raises(IndexError, match=f"{TRAIN} examples, got index"):
            texts[index]


def test_a_part_of_a_split_and_another_feature(prepared):
    part = tfds_texts("tiny_texts", "train[:25%]", feature="title", data_dir=prepared)
    assert len(part) == TRAIN // 4
    assert all(text.startswith("title ") for text in part)
    assert len(tfds_texts("tiny_texts", "train+test", data_dir=prepared)) == TRAIN + TEST


def test_examples_are_read_when_asked_for():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    texts = TfdsTexts(source=Counting([{"text": b"a"}, {"text": b"b"}, {"text": "c"}]), feature="text", name="counting")
    assert (len(texts), Counting.reads) == (3, 0)
    assert (texts[1], texts[2], Counting.reads) == ("b", "c", 2)


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(ValueError, match="broken, example 0: 'text' is not UTF-8"):
        TfdsTexts(source=[{"text": b"\xff"}], feature="text", name="broken")[0]


def test_text_from_joins_documents(prepared):
    joined = text_from("tfds:tiny_texts/test", data_dir=prepared)
    assert sorted(joined.split("\n\n")) == [f"document {i} é" for i in range(TEST)]
    assert text_from("tfds:tiny_texts:1.0.0/test", data_dir=prepared) == joined


@pytest.mark.parametrize(
    ("name", "split", "feature", "message"),
    [
        ("tiny_texts", "valid", "text", r"split must be one of \['test', 'train'\] of 'tiny_texts', got 'valid'"),
        ("tiny_texts", "train+valid", "text", "got 'train[+]valid'"),
        ("tiny_texts", "train[:x%]", "text", r"cannot understand the split 'train\[:x%\]' of 'tiny_texts'"),
        ("tiny_texts", "train[:0]", "text", r"split 'train\[:0\]' of 'tiny_texts' is empty"),
        ("tiny_texts", "train", "body", r"feature must be one of \['label', 'text', 'title'\]"),
        ("tiny_texts", "train", "label", "feature 'label' of 'tiny_texts' is .*, not text"),
    ],
)
def test_bad_names_are_refused(prepared, name, split, feature, message):
    with pytest.raises(ValueError, match=message):
        tfds_texts(name, split, feature=feature, data_dir=prepared)


@pytest.mark.parametrize("name", ["no_such_data_set", "tiny_texts:9.9.9", "tiny_texts/config", "Not A Name"])
def test_a_data_set_that_is_not_prepared_says_how_to_prepare_it(prepared, name):
    with pytest.raises(FileNotFoundError, match="download_and_prepare") as caught:
        tfds_texts(name, "train", data_dir=prepared)
    assert f"no prepared TFDS data set {name!r} in {prepared}" in str(caught.value)


def test_a_data_set_without_random_access_is_refused(tmp_path, prepared):
    """The same data set, its description saying that its files are TFRecords."""
    copy = tmp_path / "tiny_texts" / "1.0.0"
    copy.mkdir(parents=True)
    for file in (prepared / "tiny_texts" / "1.0.0").iterdir():
        content = file.read_bytes()
        if file.suffix == ".json":
            content = content.replace(b"array_record", b"tfrecord")
        (copy / file.name.replace("array_record", "tfrecord")).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read at random, prepare it as 'array_record'"):
        tfds_texts("tiny_texts", "train", data_dir=tmp_path)


def test_the_default_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="in the default folder of TFDS"):
        tfds_texts("tiny_texts_nobody_prepared", "train")
