"""A text by the short name that the command line takes."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from compressjax.data.text_files import read_documents
from compressjax.data.tfds_source import tfds_texts
from compressjax.data.topics import topics_text
from compressjax.data.wikipedia import calibration_text, evaluation_text, wikipedia_text

NAMED_TEXTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "wikipedia": wikipedia_text,
        "wikipedia:train": calibration_text,
        "wikipedia:test": evaluation_text,
        "topics": topics_text,
    }
)
"""Names that `text_from` understands besides files and TFDS data sets."""

_TFDS = "tfds:"


def text_from(spec: str, *, field: str = "text", data_dir: str | os.PathLike[str] | None = None) -> str:
    """The text a name stands for; documents are joined with a blank line between.

    Args:
      spec: "wikipedia" (all articles), "wikipedia:train", "wikipedia:test", "topics", "tfds:<name>/<split>" for a
        prepared TensorFlow Datasets data set, or the path of a text or ``.jsonl`` file. A file that bears one of
        these names is reached as ``./wikipedia``.
      field: the text's field in JSON lines, or its feature in a TFDS data set.
      data_dir: where TFDS data sets lie.

    Raises:
      FileNotFoundError: no such file, data set or package; the message says what would help.
      ValueError: an incomplete "tfds:" name, or a text that cannot be read, is empty or is not text.
    """
    if spec in NAMED_TEXTS:
        return NAMED_TEXTS[spec]()
    if spec.startswith(_TFDS):
        name, slash, split = spec.removeprefix(_TFDS).rpartition("/")
        if not (name and slash and split):
            raise ValueError(f"expected 'tfds:<name>/<split>', got {spec!r}")
        return "\n\n".join(tfds_texts(name, split, feature=field, data_dir=data_dir))
    try:
        return "\n\n".join(read_documents(spec, field=field))
    except FileNotFoundError:
        known = ", ".join(NAMED_TEXTS)
        raise FileNotFoundError(f"no text {spec!r}: neither a file nor one of {known}, tfds:<name>/<split>") from None
