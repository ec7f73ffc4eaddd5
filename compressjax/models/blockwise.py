"""What a model made of equal blocks tells the block-sequential driver."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax


class Stage(NamedTuple):
    """One step inside a block, up to the input that its weights read.

    Attributes:
      weights: paths, inside the block's params, of the weights that read this input (they share one Hessian).
      advance: ``(block_params, carry) -> (inputs, carry)`` with inputs ``[B, T, in]``. It may use the weights of
        earlier stages, never those of its own or later ones, so each stage sees what the earlier ones became.
    """

    weights: tuple[str, ...]
    advance: Callable[[Any, dict], tuple[jax.Array, dict]]


class Blockwise(Protocol):
    """A model the driver can walk block by block.

    ``embed`` turns a batch of tokens ``[B, T]`` into the hidden state ``[B, T, D]``; every block maps hidden state
    to hidden state through its ``stages`` and then ``finish``; ``head`` maps the last hidden state to logits.
    ``rest`` is the parameter tree without ``blocks``; ``carry`` starts as ``{"x": hidden}``.
    """

    @property
    def num_blocks(self) -> int: ...

    @property
    def stages(self) -> tuple[Stage, ...]: ...

    def embed(self, rest: Any, tokens: jax.Array) -> jax.Array: ...

    def finish(self, block_params: Any, carry: dict) -> jax.Array: ...

    def head(self, rest: Any, hidden: jax.Array) -> jax.Array: ...
