"""A decoder handed over part by part: what both writers of checkpoints share."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from compressjax.checkpoint.names import Module, NameMap, block_modules, rest_modules
from compressjax.exchange.scheme import check_dense
from compressjax.leaf import is_leaf
from compressjax.models.config import LlamaConfig


class DecoderParts(abc.ABC):
    """Takes every block of a decoder, in any order, and the rest.

    Args:
      cfg: architecture.
      names: what the format calls the modules.
    """

    def __init__(self, cfg: LlamaConfig, names: NameMap):
        self._cfg = cfg
        self._tensor_names = names
        self._added: set[int | None] = set()

    def add_block(self, index: int, block: dict) -> None:
        """Writes one decoder block.

        Args:
          index: its number, from 0.
          block: its parameters without the layer axis; kernels are arrays or affine leaves.

        Raises:
          IndexError: no such block.
          ValueError: added before, or a leaf the format cannot hold; names its path.
        """
        if not 0 <= index < self._cfg.num_layers:
            raise IndexError(f"block {index} of a model with {self._cfg.num_layers} blocks")
        self._add(index, block_modules(self._cfg), block)

    def add_rest(self, rest: dict) -> None:
        """Writes embedding, last norm and, unless tied, the output head; raises as :meth:`add_block`."""
        self._add(None, rest_modules(self._cfg), rest)

    def add_stacked(self, params: dict) -> None:
        """Writes a whole model whose blocks are stacked along a leading axis."""
        self.add_rest({key: value for key, value in params.items() if key != "blocks"})
        # Slicing on the host: on a device, every layer number would be compiled anew.
        hosted = jax.tree.map(np.asarray, params["blocks"])
        for index in range(self._cfg.num_layers):
            self.add_block(index, jax.tree.map(lambda stacked, index=index: stacked[index], hosted))

    def check_complete(self) -> None:
        """``ValueError`` when blocks or the rest are missing."""
        missing = [i for i in (*range(self._cfg.num_layers), None) if i not in self._added]
        if missing:
            named = ", ".join("the rest" if i is None else f"block {i}" for i in missing[:6])
            raise ValueError(f"the export is incomplete, {len(missing)} parts were not added: {named}")

    def _add(self, index: int | None, modules: Sequence[Module], tree: dict) -> None:
        if index in self._added:
            raise ValueError(f"{'the rest' if index is None else f'block {index}'} was added before")
        for module in modules:
            prefix = self._tensor_names.prefix(module.path, index)
            for name, value in module_parameters(module, tree):
                if not (name == "kernel" and is_leaf(value)):
                    check_dense(value, f"{prefix} ({module.path}/{name})")
                self._parameter(module, prefix, name, value)
        self._added.add(index)

    @abc.abstractmethod
    def _parameter(self, module: Module, prefix: str, name: str, value: Any) -> None:
        """Writes one parameter: an array, or a compressed leaf where ``name`` is "kernel"."""


def check_parameters(params: dict, cfg: LlamaConfig, check: Callable[[Any, str], Any]) -> None:
    """Calls ``check(leaf, path)`` on every compressed kernel, stacked, and refuses compressed leaves elsewhere.

    Raises:
      ValueError: from ``check``; a parameter that is missing or of another shape.
    """
    blocks, rest = params["blocks"], {key: value for key, value in params.items() if key != "blocks"}
    for modules, tree, where in ((block_modules(cfg), blocks, "blocks/"), (rest_modules(cfg), rest, "")):
        for module in modules:
            for name, value in module_parameters(module, tree):
                path = f"{where}{module.path}/{name}"
                if name == "kernel" and is_leaf(value):
                    check(value, path)
                else:
                    check_dense(value, path)


def module_parameters(module: Module, tree: dict) -> Iterator[tuple[str, Any]]:
    """Name and value of each parameter of a module, in the tree it belongs to.

    Raises:
      ValueError: a parameter is missing or has another shape than the configuration says; names its path.
    """
    node: Any = tree
    for key in module.path.split("/"):
        node = node.get(key, {})
    weight = {"linear": "kernel", "norm": "scale", "embedding": "embedding"}[module.kind]
    for name in (weight, *(("bias",) if module.bias else ())):
        if name not in node:
            raise ValueError(f"params: {module.path}/{name} is missing, the configuration asks for it")
        wanted = (module.inputs, module.outputs) if name in ("kernel", "embedding") else (module.outputs,)
        value = node[name]
        shape = value.shape if hasattr(value, "shape") else None
        if shape is not None and tuple(shape[-len(wanted) :]) != wanted:
            raise ValueError(f"params: {module.path}/{name} should end in shape {wanted}, got {tuple(shape)}")
        yield name, value
