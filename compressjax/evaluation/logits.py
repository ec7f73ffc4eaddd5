"""What evaluation asks of a model: a function from parameters and tokens to logits."""

import dataclasses
from typing import Any, Protocol, cast

import flax.linen as nn
import jax


class LogitsFn(Protocol):
    """``(params, tokens int32 [B, T], mask bool [B, T] or None) -> logits [B, T, V]``.

    Position t holds the distribution of token t + 1 given tokens 0 to t. It must be hashable and pure: evaluation
    compiles it once per shape and finds the compiled program again by equality, so pass the same object each time.
    """

    def __call__(self, params: Any, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits ``[B, T, V]``; see the class."""
        ...


@dataclasses.dataclass(frozen=True)
class LinenLogits:
    """A flax linen decoder as a `LogitsFn`; equal for equal modules, so compiled programs are found again.

    Attributes:
      module: called as ``module.apply({"params": params}, tokens)``, with ``mask=mask`` when there is one.
    """

    module: nn.Module

    def __call__(self, params: Any, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits ``[B, T, V]`` of ``tokens [B, T]``."""
        extra: dict[str, Any] = {} if mask is None else {"mask": mask}
        return cast(jax.Array, self.module.apply({"params": params}, tokens, **extra))
