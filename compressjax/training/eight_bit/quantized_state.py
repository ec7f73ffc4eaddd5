"""Any optax transform with its state stored in 8 bits.

At each step the state is decoded to float32, the transform runs on it unchanged, and only what is carried to the next
step is rounded: the update itself sees the fresh moments.

Paper: Dettmers et al., 2022, arXiv 2110.02861. The reference writes each optimizer anew; this wraps optax's.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.training.eight_bit.blockwise import BlockQ, dequantize_blockwise, quantize_blockwise, scale_shape
from compressjax.training.eight_bit.code_maps import code_map
from compressjax.training.eight_bit.state_policy import KEEP, StatePolicy, leaf_name


class QuantizedState(NamedTuple):
    """State of a transform, large fields as `BlockQ`.

    Attributes:
      inner: the transform's own state, with `BlockQ` in place of the arrays that the policy names.
      key: of random rounding, advanced at every step; None without it.
    """

    inner: Any
    key: jax.Array | None


def quantized_state(
    inner: optax.GradientTransformation, policy: StatePolicy | None = None, *, key: jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps a transform so that its state is stored in 8 bits.

    Gradients and parameters reach ``inner`` in float32 whatever their dtype, and updates come back in the gradients'.

    Args:
      inner: any transform whose state keeps one value per parameter in named fields, as optax's do.
      policy: what is stored how; None for `StatePolicy()`.
      key: for the fields the policy rounds at random.

    Returns:
      A transform with the same updates, up to the rounding of the states it carries.

    Raises:
      ValueError: random rounding without a key; at an update, a state that does not fit the gradients.
      TypeError: at init, a policy that gives a map to a leaf of integers.
    """
    policy = StatePolicy() if policy is None else policy
    if policy.stochastic and key is None:
        raise ValueError(f"StatePolicy.stochastic={sorted(policy.stochastic)} needs a key")
    inner = optax.with_extra_args_support(inner)

    def init(params) -> Any:
        state = inner.init(_in_float32(params))
        return QuantizedState(_encode_first(state, policy), key if policy.stochastic else None)

    def update(updates, state, params=None, **extra) -> Any:
        wide = _in_float32(updates)
        good = jax.tree.map(jnp.isfinite, wide) if policy.skip_nonfinite else None
        if good is not None:
            wide = _where(good, wide)
        _check_fit(updates, state.inner)
        decoded = _decode(state.inner, policy)
        wide, fresh = inner.update(wide, decoded, None if params is None else _in_float32(params), **extra)
        if good is not None:
            wide = _where(good, wide)
            fresh = _where_alike(good, fresh, policy)
        used, following = (None, None) if state.key is None else jax.random.split(state.key)
        narrow = jax.tree.map(lambda new, old: new.astype(old.dtype), wide, updates)
        return narrow, QuantizedState(_encode_again(fresh, state.inner, policy, used), following)

    return optax.GradientTransformationExtraArgs(init, update)


def decoded_state(state: QuantizedState, policy: StatePolicy | None = None) -> Any:
    """The inner transform's state in float32, as the next step will see it."""
    return _decode(state.inner, StatePolicy() if policy is None else policy)


def state_nbytes(state: Any) -> int:
    """Bytes of all arrays of an optimizer state, codes, scales and what stayed in float32 alike."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))


def state_shardings(state: Any, params: Any, shardings: Any) -> Any:
    """Where a state's leaves lie when the parameters are sharded: codes and scales as their parameter.

    Args:
      state: an optimizer state, or its shapes from ``jax.eval_shape(tx.init, params)``.
      params: the parameters or their shapes.
      shardings: a ``NamedSharding`` for each parameter.

    Returns:
      A tree of the state's structure, for ``jax.jit(tx.init, out_shardings=...)``: the parameter's sharding for leaves
      of its shape and for codes; the same axes for scales in mode "last" where they divide, replicated otherwise.
    """
    shapes = _shapes(params)
    places = dict(zip(shapes, jax.tree.leaves(shardings), strict=True))
    alone = jax.sharding.NamedSharding(next(iter(places.values())).mesh, jax.sharding.PartitionSpec())

    def place(path, leaf):
        owner = _owner(leaf_name(path), shapes, leaf.shape)
        where = alone if owner is None else places[owner]
        if not isinstance(leaf, BlockQ):
            return where
        return BlockQ(where, _scale_sharding(where, leaf), leaf.block_size, leaf.axis_mode)  # pyright: ignore[reportArgumentType]

    return jax.tree_util.tree_map_with_path(place, state, is_leaf=_is_block)


def _scale_sharding(where, leaf: BlockQ):
    axes = tuple(where.spec)
    divides = leaf.axis_mode == "last"
    for size, axis in zip(leaf.absmax.shape, axes, strict=False):
        names = axis if isinstance(axis, tuple) else (axis,)
        parts = math.prod(where.mesh.shape[name] for name in names if name is not None)
        divides = divides and size % parts == 0
    spec = jax.sharding.PartitionSpec(*axes) if divides else jax.sharding.PartitionSpec()
    return jax.sharding.NamedSharding(where.mesh, spec)


def _is_block(leaf: Any) -> bool:
    return isinstance(leaf, BlockQ)


def _in_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _where(good: Any, tree: Any) -> Any:
    return jax.tree.map(lambda ok, x: jnp.where(ok, x, jnp.zeros_like(x)), good, tree)


def _where_alike(good: Any, state: Any, policy: StatePolicy) -> Any:
    """Zeros in the fields of the state where the gradient of the same path was not finite."""
    shapes = _shapes(good)
    masks = dict(zip(shapes, jax.tree.leaves(good), strict=True))

    def clean(path, x):
        owner = None if policy.field_of(path) is None else _owner(leaf_name(path), shapes, x.shape)
        return x if owner is None else jnp.where(masks[owner], x, jnp.zeros_like(x))

    return jax.tree_util.tree_map_with_path(clean, state)


def _check_fit(updates: Any, state: Any) -> None:
    """Gradients of the shapes that the state was made for; optax itself would broadcast."""
    shapes = _shapes(updates)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_block)[0]:
        if not isinstance(leaf, BlockQ):
            continue
        name = leaf_name(path)
        owner = _owner(name, shapes)
        if owner is None:
            raise ValueError(f"the optimizer state has {name!r}, but the gradients have only {sorted(shapes)}")
        if shapes[owner] != leaf.shape:
            raise ValueError(f"the optimizer state at {name!r} has shape {leaf.shape}, its gradient {shapes[owner]}")
        expected = scale_shape(leaf.shape, leaf.block_size, leaf.axis_mode)
        if leaf.absmax.shape != expected:
            raise ValueError(f"the scales at {name!r} have shape {leaf.absmax.shape}, expected {expected}")


def _encode_first(state: Any, policy: StatePolicy) -> Any:
    def encode(path, leaf):
        chosen = policy.map_for(path, leaf.size)
        if chosen == KEEP:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"the policy stores {leaf_name(path)!r} as {chosen!r}, but it holds {leaf.dtype}")
        return quantize_blockwise(leaf, code_map(chosen), policy.block_size, axis_mode=policy.axis_mode)

    return jax.tree_util.tree_map_with_path(encode, state)


def _encode_again(fresh: Any, stored: Any, policy: StatePolicy, key: jax.Array | None) -> Any:
    """``fresh`` with `BlockQ` wherever the stored state has them."""
    number = itertools.count()

    def encode(path, old, new):
        if not isinstance(old, BlockQ):
            return new
        random = policy.field_of(path) in policy.stochastic
        return quantize_blockwise(
            new,
            _map_of(path, old, policy),
            old.block_size,
            axis_mode=old.axis_mode,
            key=jax.random.fold_in(key, next(number)) if key is not None and random else None,
            keep_sign=policy.keep_sign,
        )

    return jax.tree_util.tree_map_with_path(encode, stored, fresh, is_leaf=_is_block)


def _decode(state: Any, policy: StatePolicy) -> Any:
    def decode(path, leaf):
        if not isinstance(leaf, BlockQ):
            return leaf
        return dequantize_blockwise(
            leaf, _map_of(path, leaf, policy), floor_zeros=policy.field_of(path) in policy.floor_zeros
        )

    return jax.tree_util.tree_map_with_path(decode, state, is_leaf=_is_block)


def _map_of(path: tuple, leaf: BlockQ, policy: StatePolicy) -> np.ndarray:
    chosen = policy.map_for(path, leaf.codes.size)
    if chosen == KEEP:
        raise ValueError(f"the optimizer state has codes at {leaf_name(path)!r}, which the policy keeps in float32")
    return code_map(chosen)


def _owner(name: str, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...] | None = None) -> str | None:
    """The parameter that a leaf of the state belongs to: the longest path its name ends with, of its shape if given."""
    fit = [key for key in shapes if not key or name.endswith("/" + key)]
    return max((key for key in fit if shape is None or shapes[key] == shape), key=len, default=None)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {leaf_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
