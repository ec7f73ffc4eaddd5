"""Materialising compressed weights, always on request and never silently."""

from typing import Any

import jax

from compressjax.dispatch import verb


@verb(on="w")
def dense(w: Any) -> Any:
    """The dense float32 weight that ``w`` stands for, or a whole tree with every leaf materialised.

    Args:
      w: a compressed leaf, an array (returned as it is), or a dict, list or tuple of them.

    Returns:
      An array ``[*leading, in, out]``, or a tree of the same structure.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="w")
def logical_shape(w: Any) -> tuple[int, ...]:
    """Shape of the dense weight that ``w`` stands for, leading stack axes included."""
    raise NotImplementedError("run by the rule of its argument's type")


@dense.register(jax.Array)
def _dense_array(w):
    return w


@dense.register(dict)
def _dense_dict(w):
    return {key: dense(value) for key, value in w.items()}


@dense.register(list)
@dense.register(tuple)
def _dense_sequence(w):
    return type(w)(dense(value) for value in w)


@logical_shape.register(jax.Array)
def _logical_shape_array(w):
    return tuple(w.shape)
