"""A model on disk, read one block at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from compressjax.checkpoint.fingerprint import fingerprint
from compressjax.checkpoint.names import Module, NameMap, block_modules, rest_modules
from compressjax.models.config import LlamaConfig


class ParameterReader(Protocol):
    """How one checkpoint format yields the parameters of a module whose tensors start with ``prefix``.

    Arrays are numpy float32, already in our layout: kernels ``[inputs, outputs]``, rotary rows half-split. A format
    that stores compressed weights may return a compressed leaf as the kernel.
    """

    def kernel(self, prefix: str, module: Module) -> Any:
        """Float32 ``[inputs, outputs]``, or a compressed leaf of that shape."""
        ...

    def bias(self, prefix: str, module: Module) -> Any:
        """Float32 ``[outputs]``."""
        ...

    def scale(self, prefix: str, module: Module) -> Any:
        """Float32 ``[outputs]``."""
        ...

    def embedding(self, prefix: str, module: Module) -> Any:
        """Float32 ``[inputs, outputs]``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelSource:
    """A decoder on disk. Opening reads tables only; each call of ``block`` or ``rest`` reads just what it returns.

    Attributes:
      name: short name for reports.
      path: the file or folder.
      files: every file that defines the model.
      config: architecture.
      names: the format's name map.
      reader: the format's reader.
      chat_template: Jinja template, or None.
      eos_ids: token ids that end a generation, the main one first; empty if none is stated.
      bos_id: id of the beginning-of-sequence token, or None. Whether it is prepended is the tokenizer's business.
      make_tokenizer: builds the tokenizer, or returns None when the model ships none.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    config: LlamaConfig
    names: NameMap
    reader: ParameterReader
    chat_template: str | None
    eos_ids: tuple[int, ...]
    bos_id: int | None
    make_tokenizer: Callable[[], Tokenizer | None]

    @property
    def num_blocks(self) -> int:
        """Number of decoder blocks."""
        return self.config.num_layers

    @property
    def eos_id(self) -> int | None:
        """The main id that ends a generation."""
        return self.eos_ids[0] if self.eos_ids else None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, built at first use; no truncation and no padding.

        Raises:
          ValueError: it is damaged, of an unknown kind, or has ids beyond the embedding's rows.
        """
        tokenizer = self.make_tokenizer()
        if tokenizer is not None:
            largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
            if largest >= self.config.vocab_size:
                raise ValueError(
                    f"{self.path}: the tokenizer has ids up to {largest}, the embedding {self.config.vocab_size} rows"
                )
        return tokenizer

    def block(self, index: int) -> dict:
        """Parameters of one block, without the leading layer axis: ``{"attn": {"q": {"kernel": [D, H*hd]}}, ...}``.

        Raises:
          IndexError: no such block.
          ValueError: a weight is damaged, NaN or infinite.
        """
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of a model with {self.num_blocks} blocks")
        return self._read(block_modules(self.config), functools.partial(self.names.prefix, block=index))

    def rest(self) -> dict:
        """Parameters outside the blocks: ``embed``, ``final_norm`` and, unless tied, ``head``.

        Raises:
          ValueError: a weight is damaged, NaN or infinite.
        """
        return self._read(rest_modules(self.config), self.names.prefix)

    def fingerprint(self) -> str:
        """Identity of the model's files, see ``compressjax.checkpoint.fingerprint``."""
        return fingerprint(self.files)

    def _read(self, modules: Iterable[Module], prefix_of: Callable[[str], str]) -> dict:
        tree: dict = {}
        for module in modules:
            node = tree
            for key in module.path.split("/"):
                node = node.setdefault(key, {})
            prefix = prefix_of(module.path)
            if module.kind == "norm":
                node["scale"] = self.reader.scale(prefix, module)
            elif module.kind == "embedding":
                node["embedding"] = self.reader.embedding(prefix, module)
            else:
                node["kernel"] = self.reader.kernel(prefix, module)
                if module.bias:
                    node["bias"] = self.reader.bias(prefix, module)
        return tree
