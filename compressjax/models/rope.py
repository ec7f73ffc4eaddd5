"""Rotary position embedding (Su et al., 2021, "RoFormer") in the half-split layout of Llama.

Channel ``i`` of a head is paired with channel ``i + head_dim / 2``, and the pair is turned by
``position * theta ** (-2 i / head_dim)``. Angles are always float32 and are formed by a broadcast product, never by a
matrix product, so that the matmul precision of the backend cannot reach them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.models.config import RopeScaling


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Returns the angle per position of every channel pair, in radians, float32 ``[head_dim / 2]``.

    "linear" divides all of them by ``factor``. "llama3" (Llama 3.1) looks at the wavelength ``2 pi / f`` against the
    original context ``n``: waves shorter than ``n / high_freq_factor`` stay, those longer than ``n / low_freq_factor``
    are divided by ``factor``, and between them ``f`` moves linearly in ``n / wavelength``.

    Args:
      head_dim: even number of channels.
      theta: rotary base.
      scaling: how the context was stretched.
    """
    frequency = float(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequency.astype(np.float32)
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    turns = scaling.original_max_positions * frequency / (2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (frequency * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def rotary_angles(
    positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine of the angles of ``positions int [B, T]``, each float32 ``[B, T, head_dim / 2]``."""
    frequency = jnp.asarray(rotary_frequencies(head_dim, theta, scaling))
    angles = positions.astype(jnp.float32)[..., None] * frequency[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the channel pairs of ``x [B, T, heads, head_dim]`` by the angles of `rotary_angles`, in float32.

    Returns an array of the shape and dtype of ``x``.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
