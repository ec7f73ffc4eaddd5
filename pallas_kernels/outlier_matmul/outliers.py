"""Single weights in compressed sparse rows of the transposed matrix, and the check that the arrays fit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Outliers(NamedTuple):
    """Values of output ``o`` stand at ``starts[o]:starts[o+1]``; slots from ``starts[cols]`` on are empty.

    Attributes:
      starts: int32 ``[cols + 1]``.
      inputs: uint16 or int32 ``[capacity]``.
      values: float ``[capacity]``.
    """

    starts: jax.Array
    inputs: jax.Array
    values: jax.Array


def check_outliers(outliers: Outliers, cols: int) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    starts, inputs, values = outliers
    if starts.dtype != jnp.int32 or starts.shape != (cols + 1,):
        raise ValueError(
            f"outlier_matmul: starts must be int32 of shape {(cols + 1,)}, got {starts.dtype} of shape {starts.shape}"
        )
    if inputs.dtype not in (jnp.uint16, jnp.int32):
        raise TypeError(f"outlier_matmul: inputs must be uint16 or int32, got {inputs.dtype}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"outlier_matmul: values must be floating point, got {values.dtype}")
    if inputs.ndim != 1 or inputs.shape != values.shape or inputs.shape[0] < 1:
        raise ValueError(
            "outlier_matmul: inputs and values must be of one shape [capacity >= 1], got "
            f"{inputs.shape} and {values.shape}"
        )
