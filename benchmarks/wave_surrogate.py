"""Surrogates of the wave solver: data, training and what a network gets wrong."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.wave_solver import simulate
from compressjax.factorization.tensor_conv import ConvStack

NODES = 32
GAP = 4  # solver steps between frames
AHEAD = 4  # frames that are predicted
FRAMES = 16


class Waves(NamedTuple):
    """Pairs of input and target, ``simulations * starts`` of them, those of one simulation together.

    Attributes:
      inputs: ``[N, n, n, 3]``: the field now, a frame ago, and the speed.
      targets: ``[N, n, n, AHEAD]``: the frames that follow.
    """

    inputs: jax.Array
    targets: jax.Array


def waves(simulations: int, starts: int, seed: int) -> Waves:
    """Pulses at random places in a square of two layers; every simulation has its own speeds and its own pulse.

    Args:
      simulations: number of simulations.
      starts: moments taken from each.
      seed: of places, widths, speeds and moments.
    """
    rng = np.random.default_rng(seed)
    line = np.linspace(0, 1, NODES)
    x, y = np.meshgrid(line, line, indexing="ij")
    place, width = rng.uniform(0.2, 0.8, (2, simulations, 1, 1)), rng.uniform(0.06, 0.12, (simulations, 1, 1))
    pulse = np.exp(-((x[None] - place[0]) ** 2 + (y[None] - place[1]) ** 2) / (2 * width**2))
    middle = (line[1:] + line[:-1]) / 2
    over = middle[None, :, None] > rng.uniform(0.3, 0.7, (simulations, 1, 1))
    slow, fast = rng.uniform(0.5, 0.75, (simulations, 1, 1)), rng.uniform(0.75, 1.0, (simulations, 1, 1))
    speed = np.broadcast_to(np.where(over, fast, slow), (simulations, NODES - 1, NODES - 1))
    fields = simulate(
        jnp.asarray(pulse, jnp.float32),
        jnp.zeros((simulations, NODES, NODES)),
        jnp.asarray(speed**2, jnp.float32),
        dt=0.5 / (NODES - 1),
        steps=GAP * (FRAMES + AHEAD),
    )[::GAP]
    moments = np.stack([rng.choice(np.arange(1, FRAMES), starts, replace=False) for _ in range(simulations)]).ravel()
    which = np.repeat(np.arange(simulations), starts)
    frames = fields[moments[:, None] + np.arange(-1, AHEAD + 1)[None], which[:, None]]
    frames = jnp.moveaxis(frames, 1, -1) / jnp.std(fields)
    at_nodes = jnp.asarray(np.pad(speed, ((0, 0), (0, 1), (0, 1)), mode="edge")[which], jnp.float32)
    return Waves(jnp.concatenate([frames[..., 1::-1], at_nodes[..., None]], axis=-1), frames[..., 2:])


def predicted(net: ConvStack, params, inputs: jax.Array) -> Any:
    """The frames ahead, ``[N, n, n, AHEAD]``."""
    return net.apply({"params": params}, inputs)


def surrogate_loss(net: ConvStack, params, batch: Waves) -> jax.Array:
    """Mean squared error."""
    return jnp.mean((predicted(net, params, batch.inputs) - batch.targets) ** 2)


def train(net: ConvStack, data: Waves, key: jax.Array, *, steps: int, batch: int = 16, rate: float = 2e-3):
    """Parameters after Adam with a cosine rate, and the loss of every step; batches are drawn at random.

    Args:
      net: the network.
      data: training pairs.
      key: of the start and the batches.
      steps, batch, rate: of the optimiser.
    """
    start, order = jax.random.split(key)
    params = net.init(start, data.inputs[:1])["params"]
    held = optax.adam(rate).init(params)
    schedule = optax.cosine_decay_schedule(rate, steps)
    losses = []
    # Steps are calls of one compiled function, for convolutions inside a compiled loop are many times slower on CPUs.
    for i, part in enumerate(jax.random.split(order, steps)):
        at = jax.random.randint(part, (batch,), 0, len(data.inputs))
        params, held, loss = _step(net, params, held, Waves(*(a[at] for a in data)), jnp.float32(schedule(i)))
        losses.append(loss)
    return params, jnp.stack(losses)


@functools.partial(jax.jit, static_argnames="net", donate_argnums=(1, 2))
def _step(net, params, held, batch, rate):
    loss, grads = jax.value_and_grad(surrogate_loss, argnums=1)(net, params, batch)
    updates, held = optax.adam(rate).update(grads, held, params)
    return optax.apply_updates(params, updates), held, loss


@functools.partial(jax.jit, static_argnames="net")
def relative_error(net: ConvStack, params, data: Waves) -> jax.Array:
    """``|prediction - target| / |target|`` over all pairs, fields and frames together."""

    miss = predicted(net, params, data.inputs) - data.targets
    return jnp.sqrt(jnp.sum(miss**2) / jnp.sum(data.targets**2))
