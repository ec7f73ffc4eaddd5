"""Error feedback: what a message left out is added to the next vector.

    v = x + e,    send C(v),    e <- v - C(v)

so that sent and remembered together are always the sum of what was asked: ``sum C(v_t) + e_T = sum x_t``.

Papers: Seide et al., 2014; Stich et al., 2018, arXiv 1809.07599; Karimireddy et al., 2019, arXiv 1901.09847.
"""

from collections.abc import Callable

import jax

from compressjax.distributed.transports import Mean


def with_feedback(
    exchange: Callable[[jax.Array], Mean], x: jax.Array, memory: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One exchange with a worker's memory.

    Args:
      exchange: a transport with everything but the vector given.
      x: float32 ``[d]``.
      memory: float32 ``[d]``, this worker's own; zero at first.

    Returns:
      The mean over workers, and the memory for the next step.
    """
    v = x + memory
    result = exchange(v)
    return result.mean, v - result.own
