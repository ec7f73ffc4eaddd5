"""Leaving out whole attention or feed-forward parts of blocks: which, at a given number of each.

A left-out part adds nothing to the residual stream. As items, parts are named "blocks/3/attn"; level 0 is gone, level 1
is kept, so the search over levels (``exchange`` with groups by name) swaps a kept part for a dropped one of its kind.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from compressjax.allocation.database import LevelDatabase, checked_state
from compressjax.leaf import by_layer, is_leaf, low_rank
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Block, Llama
from compressjax.models.stack import apply
from compressjax.ops import logical_shape, nbits
from compressjax.select import replace, weights

PARTS: Mapping[str, str] = MappingProxyType({"attn": "o", "mlp": "down"})
"""Parts of a decoder block, and the weight through which each reaches the residual stream."""


def depth_database(params: Any) -> LevelDatabase:
    """Parts of a decoder's blocks, all attention first, with the bits of their kernels and biases as cost."""
    blocks = params["blocks"]
    names, cost = [], []
    for part, last in PARTS.items():
        layers = logical_shape(blocks[part][last]["kernel"])[0]
        names += [f"blocks/{layer}/{part}" for layer in range(layers)]
        cost += [(0, nbits(blocks[part]) // layers)] * layers
    return LevelDatabase(names=tuple(names), levels=("dropped", "kept"), cost=np.asarray(cost, np.int64))


def random_drops(db: LevelDatabase, dropped: int, rng: np.random.Generator) -> np.ndarray:
    """A choice that drops so many parts of each kind, at random.

    Raises:
      ValueError: fewer parts of a kind than that.
    """
    kinds = np.asarray([name.rpartition("/")[2] for name in db.names])
    state = np.ones(len(kinds), np.int64)
    for kind in PARTS:
        members = np.flatnonzero(kinds == kind)
        if not 0 <= dropped <= len(members):
            raise ValueError(f"dropped must be 0 to {len(members)}, the number of {kind} parts, got {dropped}")
        state[rng.choice(members, dropped, replace=False)] = 0
    return state


def mute_parts(params: Any, state: jax.Array) -> Any:
    """The model with the dropped parts silent; the choice may be traced, so one program serves every candidate.

    Args:
      params: of a decoder, kernels dense and stacked.
      state: int ``[parts]``, in the order of :func:`depth_database`; 0 drops.
    """
    new, first = {}, 0
    for part, last in PARTS.items():
        module = params["blocks"][part][last]
        layers = module["kernel"].shape[0]
        keep = jax.lax.slice_in_dim(state, first, first + layers)
        first += layers
        for name, value in module.items():
            gate = keep.reshape(-1, *[1] * (value.ndim - 1)).astype(value.dtype)
            new[f"blocks/{part}/{last}/{name}"] = value * gate
    return replace(params, new)


def drop_parts(params: Any, state: ArrayLike) -> Any:
    """The model without the dropped parts: their kernels take no memory and no time.

    A dropped kernel is a ``LowRank`` leaf of rank 0, so the model runs as any other. Biases of the last weight become
    zero.

    Raises:
      ValueError: not a choice.
    """
    chosen = checked_state(depth_database(params), np.asarray(state))
    new, first = {}, 0
    for part, last in PARTS.items():
        layers = logical_shape(params["blocks"][part][last]["kernel"])[0]
        keep = chosen[first : first + layers]
        first += layers
        for path, value in weights(params["blocks"][part]).items():
            full = f"blocks/{part}/{path}"
            if path.endswith("/kernel"):
                new[full] = by_layer([_one(value, at) if kept else _absent(value) for at, kept in enumerate(keep)])
            elif path == f"{last}/bias":
                new[full] = value * keep[:, None].astype(value.dtype)
    return replace(params, new)


def part_cosines(cfg: LlamaConfig, params: Any, tokens: jax.Array) -> np.ndarray:
    """Mean cosine between the residual stream before and after each part (ShortGPT, arXiv 2403.03853, eq. 1).

    The part whose cosine is largest changes least and is the first that the baseline drops.

    Args:
      cfg: the model.
      params: its parameters, dense.
      tokens: int ``[N, T]``.

    Returns:
      float64 ``[parts]`` in the order of :func:`depth_database`.
    """
    return np.asarray(_cosines(cfg, params, jnp.asarray(tokens)), np.float64).mean(axis=0)


def _one(value: Any, at: int) -> Any:
    return jax.tree.map(lambda a: a[at], value)


def _absent(value: Any) -> Any:
    rows, cols = logical_shape(value)[-2:]
    dtype = jnp.float32 if is_leaf(value) else value.dtype
    return low_rank(jnp.zeros((rows, 0), dtype), jnp.zeros((0, cols), dtype))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.mean((a * b).sum(axis=-1) / jnp.maximum(norms, 1e-12))


@functools.partial(jax.jit, static_argnums=0)
def _cosines(cfg, params, tokens):
    block = Block(cfg, parent=None)

    def layer(x, own):
        carry = apply(block, own, {"x": x}, method="attention_in")
        carry = apply(block, own, carry, method="attention_out")
        carry = apply(block, own, carry, method="mlp_in")
        middle = carry["x"]
        after = apply(block, own, apply(block, own, carry, method="mlp_act"), method="finish")
        return after, (_cosine(x, middle), _cosine(middle, after))

    def of_window(window):
        x = apply(Llama(cfg), params, window[None], method="lookup")
        _, cosines = jax.lax.scan(layer, x, params["blocks"])
        return jnp.concatenate(cosines)

    return jax.lax.map(of_window, tokens)
