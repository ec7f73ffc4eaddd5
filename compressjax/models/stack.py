"""Stacked blocks: one `jax.lax.scan` over parameters that lead with the layer axis.

A block is a linen module that maps a carry dict (``"x"`` the hidden state, plus whatever the model adds) to the next
hidden state and an extra output. The scan applies it to slices of the stacked tree, so the trace does not grow with
depth and a compressed leaf whose arrays lead with the layer axis is sliced like any other parameter.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from compressjax.leaf import by_layer
from compressjax.leaf.pools import split_pools
from compressjax.ops import logical_shape
from compressjax.select import replace, weights


def apply(module: nn.Module, params: Any, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
    """Runs a method of an unbound linen module on its parameters; there is no other state."""
    return module.apply({"params": params}, *args, method=method, **kwargs)


class BlockStack(nn.Module):
    """``depth`` equal blocks with stacked parameters.

    Attributes:
      make_block: returns an unbound linen module (``parent=None``) with ``__call__(carry) -> (x, extra)``.
      depth: number of blocks, L.
    """

    make_block: Callable[[], nn.Module]
    depth: int

    def __call__(self, x: jax.Array, carry: dict, per_layer: dict | None = None) -> tuple[jax.Array, Any]:
        """Runs all blocks.

        Args:
          x: hidden state ``[B, T, D]``.
          carry: entries that every block gets unchanged.
          per_layer: entries whose arrays lead with L; each block gets its slice.

        Returns:
          The last hidden state and the blocks' extra outputs, stacked.
        """
        block = self.make_block()
        if self.is_initializing():
            keys = jax.random.split(self.make_rng("params"), self.depth)
            stacked = jax.jit(jax.vmap(lambda key: block.init(key, carry | {"x": x})["params"]))(keys)
            for name, value in stacked.items():
                self.put_variable("params", name, value)
            return x, None

        # A scan slices what leads with the layer axis; what layers share is closed over.
        layers, join = split_pools(self.variables["params"])

        def body(hidden: jax.Array, inputs: tuple[Any, dict]) -> tuple[jax.Array, Any]:
            params, own = inputs
            return apply(block, join(params), carry | own | {"x": hidden})

        return jax.lax.scan(body, x, (layers, per_layer or {}), length=self.depth)


def stack_blocks(blocks: Sequence[Any]) -> Any:
    """One tree with a leading layer axis from the trees of all blocks.

    Weights that are compressed in one way everywhere become a plain stack, others a ``ByLayer`` leaf.

    Raises:
      ValueError: blocks that do not hold the same weights.
    """
    found = [weights(block) for block in blocks]
    for index, block in enumerate(found):
        if block.keys() != found[0].keys():
            other = sorted(block.keys() ^ found[0].keys())
            raise ValueError(f"block {index} and block 0 do not hold the same weights: {other}")
    stacked = {}
    for path in found[0]:
        layers = [block[path] for block in found]
        stacked[path] = by_layer(layers) if len(logical_shape(layers[0])) == 2 else jnp.stack(layers)
    return replace(blocks[0], stacked)


@dataclasses.dataclass(frozen=True)
class Advance:
    """A method of a block as the function that `Stage.advance` asks for; equal for equal blocks, so jit caches hold.

    Attributes:
      block: the block's module.
      method: name of a method ``carry -> carry`` that leaves the next weights' input under ``"h"``.
    """

    block: nn.Module
    method: str

    def __call__(self, block_params: Any, carry: dict) -> tuple[jax.Array, dict]:
        """``(params of one block, carry) -> (inputs [B, T, in], carry)``."""
        carry = apply(self.block, block_params, carry, method=self.method)
        return carry["h"], carry


def check_tokens(tokens: jax.Array, mask: jax.Array | None, max_positions: int) -> None:
    """Refuses tokens and masks that no model could mean.

    Raises:
      ValueError: tokens not ``[B, T]`` with T >= 1, longer than ``max_positions``, or a mask that is not bool
        ``[B, T]``.
      TypeError: tokens that are not integers.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens must have shape [batch, length >= 1], got {tuple(tokens.shape)}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got {tokens.dtype}")
    if tokens.shape[1] > max_positions:
        raise ValueError(f"{tokens.shape[1]} tokens exceed the context of {max_positions} positions")
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != jnp.bool_):
        raise ValueError(f"mask must be bool of shape {tuple(tokens.shape)}, got {mask.dtype} {tuple(mask.shape)}")
