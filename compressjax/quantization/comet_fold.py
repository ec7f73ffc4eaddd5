"""Moving a leaf's input permutation into the weights that write its input, so that nothing is gathered at run time.

If ``p`` permutes what ``down`` reads, ``down(h)`` with its gather equals ``down`` without it on ``h[p]``, and ``h[p]``
comes free by permuting the output columns of whatever wrote ``h``. That needs every writer to be linear up to a
function that treats channels alike, and no other reader: true of gate and up before down, true of v before o as long
as channels stay inside their head, and untrue of the residual stream.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.leaf import W4Ax
from compressjax.select import replace, weights

_WRITERS = {"down": ("gate", "up"), "o": ("v",)}


def fold_permutation(params: Any, consumer: str, *, heads: tuple[int, int] | None = None) -> Any:
    """Folds the permutation of one leaf into the weights before it; outputs stay the same bit for bit.

    Args:
      params: tree of dicts in the layout of our Llama, ``blocks`` stacked or one block's own tree.
      consumer: path of a :class:`W4Ax` leaf called "down" (folded into "gate" and "up" beside it) or "o" (into "v").
      heads: query and key heads ``(H, K)``; needed for "o".

    Returns:
      The tree with the leaf's ``perm`` gone and the writers' outputs, biases too, in its order.

    Raises:
      KeyError: no such path.
      TypeError: when a writer is neither dense nor a :class:`W4Ax` leaf.
      ValueError: when there is nothing to fold, or it cannot be folded: the input has other readers, or the
        permutation moves channels across heads or differently in the query heads of one key head.
    """
    found = weights(params)
    if consumer not in found:
        raise KeyError(f"params have no weight at {consumer!r}; weights are {sorted(found)}")
    leaf = found[consumer]
    if not isinstance(leaf, W4Ax) or leaf.perm is None:
        raise ValueError(f"{consumer} has no permutation to fold")
    *parent, name, key = consumer.split("/")
    if name not in _WRITERS:
        raise ValueError(
            f"the permutation of {consumer} cannot be folded: its input is the residual stream or has other readers; "
            f"only {sorted(_WRITERS)} can"
        )
    order = leaf.perm
    if name == "o":
        if heads is None:
            raise ValueError(f"folding the permutation of {consumer} into v needs heads=(query heads, key heads)")
        order = _order_inside_heads(np.asarray(order), consumer, *heads)
    new: dict[str, Any] = {consumer: dataclasses.replace(leaf, perm=None)}
    for writer in _WRITERS[name]:
        base = "/".join((*parent, writer))
        path = f"{base}/{key}"
        if path not in found:
            raise ValueError(f"the permutation of {consumer} cannot be folded: there is no {path}")
        new[path] = _permute_outputs(found[path], order, path)
        if f"{base}/bias" in found:
            new[f"{base}/bias"] = jnp.take_along_axis(found[f"{base}/bias"], order.astype(jnp.int32), axis=-1)
    return replace(params, new)


def _permute_outputs(w, order, path):
    index = order.astype(jnp.int32)[..., None, :]
    if isinstance(w, jax.Array):
        return jnp.take_along_axis(w, index, axis=-1)
    if isinstance(w, W4Ax):
        codes, scale = (jnp.take_along_axis(a, index, axis=-1) for a in (w.codes, w.scale))
        return dataclasses.replace(w, codes=codes, scale=scale)
    raise TypeError(f"outputs of {path}, stored as {type(w).__name__}, cannot be permuted: fold before compressing it")


def _order_inside_heads(perm, consumer, query_heads, key_heads):
    """The order of v's outputs ``[*lead, K d]`` that a permutation of o's inputs ``[*lead, H d]`` amounts to."""
    width = perm.shape[-1]
    if query_heads < 1 or key_heads < 1 or width % query_heads or query_heads % key_heads:
        raise ValueError(
            f"heads must be (H, K) with K dividing H and H dividing the {width} inputs of {consumer}, "
            f"got {(query_heads, key_heads)}"
        )
    size, shared = width // query_heads, query_heads // key_heads
    split = perm.astype(np.int64).reshape(*perm.shape[:-1], query_heads, size)
    first = np.arange(query_heads)[:, None] * size
    inside = split - first
    if np.any((inside < 0) | (inside >= size)):
        raise ValueError(f"the permutation of {consumer} cannot be folded: it moves channels from one head to another")
    grouped = inside.reshape(*perm.shape[:-1], key_heads, shared, size)
    if np.any(grouped != grouped[..., :1, :]):
        raise ValueError(
            f"the permutation of {consumer} cannot be folded: query heads that share a key head are permuted "
            "differently"
        )
    own = grouped[..., 0, :] + np.arange(key_heads)[:, None] * size
    return jnp.asarray(own.reshape(*perm.shape[:-1], key_heads * size), jnp.int32)
