"""What each residual block is worth by the curvature of the loss around the original weights.

The loss near the original grows by ``1/2 tr(Eᵀ H E G)`` per matrix with the inputs' second moment H and that of the
outputs' gradients G (Martens and Grosse, 2015, arXiv 1503.05671), here with G's diagonal. Unlike the loss of a model
with few blocks, which says nothing once the model does not speak, this weighs the errors of all levels alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.calibration.records import Record
from compressjax.leaf.sign_lowrank import SignLowRank, with_loaded
from compressjax.ops import dense
from compressjax.select import weights


def curvature_gains(
    params: Any,
    stacks: Mapping[str, SignLowRank],
    inputs: Mapping[str, Record],
    fisher: Mapping[str, Record],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """By how much the estimated loss falls with each block.

    ``G_oo`` of an output is the sum over inputs of the squared gradients of its weights over that of ``H_ii``.

    Args:
      params: the original; kernels ``[L, in, out]`` at the paths of ``stacks``.
      stacks: by path, all blocks loaded, all with one number of levels; lead is ``[L]``.
      inputs: records with ``xtx`` by path.
      fisher: records with ``fisher`` by path.
      progress: called with (weights done, in all).

    Returns:
      ``[matrices, levels - 1]``, matrices numbered path by path, layers inside, as ``order_from_gains`` takes them.

    Raises:
      ValueError: a weight without the statistics, or stacks of different depths.
    """
    depths = {stack.slots.shape[-1] for stack in stacks.values()}
    if len(depths) != 1:
        raise ValueError(f"stacks must have one number of levels, got {sorted(depths)}")
    (levels,) = depths
    found, gains = weights(params), []
    for done, (path, stack) in enumerate(stacks.items(), 1):
        xtx = None if inputs.get(path) is None else inputs[path].xtx
        squares = None if fisher.get(path) is None else fisher[path].fisher
        if xtx is None or squares is None:
            raise ValueError(f"curvature_gains needs Hessian and Fisher statistics of {path}")
        errors = [_error(found[path], with_loaded(stack, level), xtx, squares) for level in range(1, levels + 1)]
        gains.append(-np.diff(np.stack([np.asarray(e, np.float64) for e in errors], axis=1), axis=1))
        if progress is not None:
            progress(done, len(stacks))
    return np.concatenate(gains)


@jax.jit
def _error(w, stack, xtx, fisher):
    """``[L]`` of ``1/2 sum_o G_oo e_oᵀ H e_o``, one layer after the other."""

    def one(args):
        error, h, squares = args
        outputs = jnp.sum(squares, axis=0) / jnp.maximum(jnp.trace(h), jnp.finfo(jnp.float32).tiny)
        return 0.5 * jnp.sum(error * jnp.matmul(h, error, precision="highest") * outputs[None])

    off = w.astype(jnp.float32) - dense(stack)
    return jax.lax.map(one, (off, xtx, fisher))
