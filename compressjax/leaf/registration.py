"""How a dataclass becomes a compressed leaf."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax

from compressjax.ops.size import nbits, size, stored_bits
from compressjax.ops.to_dense import dense, logical_shape

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def leaf(*, static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen pytree dataclass whose fields named in ``static`` are hashable metadata.

    It registers the exact size (all arrays the leaf stores) and the parameter count from the logical shape; the leaf's
    own file registers ``matmul``, ``dense``, ``logical_shape`` and what else makes sense. Such a class has no array
    protocol on purpose: a ``jnp`` call that nobody planned fails instead of densifying.

    Args:
      static: field names that are metadata; all others are arrays, ``None`` or leaves.
    """

    def decorate(cls: type[T]) -> type[T]:
        frozen: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        data = [f.name for f in dataclasses.fields(frozen) if f.name not in static]
        jax.tree_util.register_dataclass(frozen, data_fields=data, meta_fields=list(static))
        nbits.register(frozen)(stored_bits)
        size.register(frozen)(_parameters)
        return frozen

    return decorate


def _parameters(w):
    total = 1
    for extent in logical_shape(w):
        total *= extent
    return total


def is_leaf(value: Any) -> bool:
    """Whether ``value`` is a compressed weight (not an array, not a container)."""
    return not isinstance(value, (dict, list, tuple, jax.Array)) and dense.knows(value) and not _is_array(value)


def _is_array(value):
    return hasattr(value, "__array__") or isinstance(value, jax.ShapeDtypeStruct)
