"""Texts of a prepared TensorFlow Datasets data set, read at random without TensorFlow.

Data sets stored as ``array_record`` (or ``parquet``) are read through `tfds.data_source`, which needs numpy only:
https://www.tensorflow.org/datasets/data_source
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, overload


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TfdsTexts(Sequence[str]):
    """One text feature of one split; examples are read when asked for.

    Attributes:
      source: random-access examples, each a dict.
      feature: name of the text feature.
      name: how messages call the data set.
    """

    source: Sequence[dict[str, Any]]
    feature: str
    name: str

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """The text of an example, or the texts of a slice.

        Raises:
          IndexError: no such example.
          ValueError: the example's text is not UTF-8.
        """
        if isinstance(index, slice):
            return tuple(self[position] for position in range(*index.indices(len(self))))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples, got index {index}")
        value = self.source[position][self.feature]
        try:
            return value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name}, example {position}: {self.feature!r} is not UTF-8 ({error})") from None


def tfds_texts(
    name: str, split: str, *, feature: str = "text", data_dir: str | os.PathLike[str] | None = None
) -> TfdsTexts:
    """Opens a data set that is already prepared on this machine; nothing is downloaded.

    Args:
      name: as TFDS names it, ``name``, ``name/config`` or ``name/config:version``.
      split: as TFDS writes it, ``"train"``, ``"train[:10%]"`` or ``"train+test"``.
      feature: a feature of type ``Text``.
      data_dir: where data sets lie; None for the place TFDS uses.

    Returns:
      A sequence of texts; ``texts[i]`` reads one example.

    Raises:
      FileNotFoundError: no data set of that name is prepared.
      ValueError: unknown split or feature, a feature that is not text, a data set stored without random access
        (``tfrecord``), or an empty split.
    """
    import tensorflow_datasets as tfds  # takes over a second, and most runs read other text
    from tensorflow_datasets.core import read_only_builder, registered

    where = f"in {os.fspath(data_dir)}" if data_dir is not None else "in the default folder of TFDS"
    try:
        # Not tfds.builder, which may ask a bucket on the network about a data set that is not prepared.
        # Any, because TFDS decorates what it returns in ways that type checkers cannot follow.
        builder: Any = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (registered.DatasetNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"no prepared TFDS data set {name!r} {where}; prepare one with: "
            f"tfds.builder({name!r}, file_format='array_record').download_and_prepare()"
        ) from error
    splits = builder.info.splits
    features = builder.info.features or {}
    if feature not in features:
        raise ValueError(f"feature must be one of {sorted(features)} of {name!r}, got {feature!r}")
    if not isinstance(features[feature], tfds.features.Text):
        raise ValueError(f"feature {feature!r} of {name!r} is {features[feature]}, not text")
    if not {part.partition("[")[0] for part in split.split("+")} <= set(splits):
        raise ValueError(f"split must be one of {sorted(splits)} of {name!r}, got {split!r}")
    try:
        empty = splits[split].num_examples == 0
    except ValueError as error:
        raise ValueError(f"cannot understand the split {split!r} of {name!r}: {error}") from error
    if empty:
        raise ValueError(f"split {split!r} of {name!r} is empty")
    try:
        source = builder.as_data_source(split)
    except NotImplementedError as error:
        raise ValueError(f"{name!r} cannot be read at random, prepare it as 'array_record': {error}") from error
    return TfdsTexts(source=source, feature=feature, name=f"{name}/{split}")
