"""The same transforms under `jax.pmap`.

Transports and transforms name their axis and nothing else, so they run inside `jax.pmap` as they do inside
`jax.shard_map`; what pmap needs besides is a state with a leading axis of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def pmap_init(tx: optax.GradientTransformation, params: Any, axis: str, devices: list[Any] | None = None) -> Any:
    """State of a transform for every device, with the leading axis that `jax.pmap` maps over.

    Args:
      tx: transform that may ask for ``axis`` in its init.
      params: parameters of one device, without a leading axis.
      axis: name that the pmapped step will use.
      devices: which; None for all local ones.
    """
    devices = jax.local_devices() if devices is None else devices
    many = jax.tree.map(lambda p: jnp.broadcast_to(p, (len(devices), *p.shape)), params)
    return jax.pmap(tx.init, axis_name=axis, devices=devices)(many)


def pmap_update(tx: optax.GradientTransformation, axis: str, devices: list[Any] | None = None) -> Any:
    """``(grads, state, params) -> (updates, state)`` over a leading axis of devices."""
    return jax.pmap(tx.update, axis_name=axis, devices=jax.local_devices() if devices is None else devices)
