"""Gradients clipped to a percentile of their own recent norms.

    c = the p-th percentile of the last H norms,    g <- g min(1, c / |g|)

Tensor by tensor, so that no threshold has to be tuned. Source: the optimizers of Dettmers et al., 2022,
arXiv 2110.02861, as their documentation describes the option.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class PercentileClippingState(NamedTuple):
    """Recent norms.

    Attributes:
      count: int32, steps taken.
      norms: for every tensor, float32 ``[history]``.
    """

    count: jax.Array
    norms: Any


def percentile_clipping(percentile: int = 5, history: int = 100) -> optax.GradientTransformation:
    """Clips each gradient's norm to a percentile of that tensor's last norms, its own included.

    Args:
      percentile: 0 to 100; 100 clips nothing, since the own norm is among those remembered.
      history: number of norms remembered. At the first step all of them are the first norm.

    Returns:
      An optax transform.

    Raises:
      ValueError: an argument out of range.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be in 0..100, got {percentile}")
    if history < 1:
        raise ValueError(f"history must be at least 1, got {history}")
    rank = min(percentile * history // 100, history - 1)

    def init(params):
        norms = jax.tree.map(lambda p: jnp.zeros((history,), jnp.float32), params)
        return PercentileClippingState(jnp.zeros((), jnp.int32), norms)

    def update(updates, state, params=None):
        del params

        def remember(g, norms):
            norm = jnp.linalg.norm(g.astype(jnp.float32).reshape(-1))
            return jnp.where(state.count == 0, norm, norms.at[state.count % history].set(norm))

        def clip(g, norms):
            norm = norms[state.count % history]
            limit = jnp.sort(norms)[rank]
            return (g.astype(jnp.float32) * jnp.where(norm > limit, limit / norm, 1.0)).astype(g.dtype)

        norms = jax.tree.map(remember, updates, state.norms)
        clipped = jax.tree.map(clip, updates, norms)
        return clipped, PercentileClippingState(state.count + 1, norms)

    return optax.GradientTransformation(init, update)
