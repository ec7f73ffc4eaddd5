"""Data-parallel training with workers side by side on one device.

Collectives act over a mapped axis of `jax.vmap`, so the numbers are those of real workers, and bytes on the wire follow
from `plan_bytes`, which the tests hold against compiled programs on real devices.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.distributed.l_greco import (
    LGreco,
    Plan,
    adapt,
    compress_gradients,
    gradient_table,
    plan_bytes,
    replan,
    uniform_plan,
    units_of,
)

AXIS = "workers"


class Run(NamedTuple):
    """What a training left.

    Attributes:
      params: trained.
      losses: training loss by step.
      bytes_per_step: compressed bytes per device and step, by period, without what is never compressed.
      plans: by period.
    """

    params: Any
    losses: np.ndarray
    bytes_per_step: list[float]
    plans: list[Plan]

    @property
    def last_bytes(self) -> float:
        """Of the last period."""
        return self.bytes_per_step[-1]


def train(
    loss: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    cfg: LGreco,
    batches: np.ndarray,
    *,
    adaptive: bool,
    plan: Plan | None = None,
) -> Run:
    """Trains on ``batches [steps, workers, B, T]``, whole periods.

    Args:
      loss: ``(params, windows) -> scalar``.
      params: initial.
      optimizer: of the averaged gradients.
      cfg: of the exchange; a plan is made anew after every period if ``adaptive``.
      batches: of all steps; their number is a multiple of the period.
      adaptive: whether plans change.
      plan: at first; None for uniform, () for no compression.

    Raises:
      ValueError: a number of steps that is no multiple of the period.
    """
    steps, workers = batches.shape[:2]
    if steps % cfg.period:
        raise ValueError(f"{steps} steps are no multiple of the period {cfg.period}")
    units = units_of(params, cfg)
    chosen = uniform_plan(units, cfg) if plan is None else plan
    sync = _many(functools.partial(compress_gradients(cfg, AXIS, chosen).init, params), workers)
    opt_state = optimizer.init(params)
    losses, sent, plans = [], [], []
    for period in batches.reshape(steps // cfg.period, cfg.period, *batches.shape[1:]):
        run = _period(loss, optimizer, cfg, chosen)
        params, opt_state, sync, values = run(params, opt_state, sync, jnp.asarray(period))
        losses.append(np.asarray(values))
        sent.append(plan_bytes(params, chosen, cfg, workers)[0])
        plans.append(chosen)
        if adaptive:
            read = functools.partial(gradient_table, cfg, AXIS, params)
            table = jax.tree.map(lambda a: np.asarray(a[0]), jax.jit(jax.vmap(read, axis_name=AXIS))(sync))
            chosen = adapt(cfg, units, table.errors, chosen).plan
            sync = jax.vmap(lambda s, p=params, c=chosen: replan(cfg, p, s, c))(sync)
    return Run(params, np.concatenate(losses), sent, plans)


def _many(function: Callable[[], Any], workers: int) -> Any:
    return jax.vmap(lambda _: function(), axis_name=AXIS)(jnp.arange(workers))


@functools.lru_cache(maxsize=64)
def _period(loss, optimizer, cfg: LGreco, plan: Plan):
    exchange = compress_gradients(cfg, AXIS, plan)

    def worker(params, opt_state, sync, batches):
        def step(carry, windows):
            params, opt_state, sync = carry
            value, grads = jax.value_and_grad(loss)(params, windows)
            mean, sync = exchange.update(grads, sync)
            updates, opt_state = optimizer.update(mean, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, sync), jax.lax.pmean(value, AXIS)

        return jax.lax.scan(step, (params, opt_state, sync), batches)

    def run(params, opt_state, sync, batches):
        mapped = jax.vmap(worker, in_axes=(None, None, 0, 1), axis_name=AXIS)
        (params, opt_state, sync), values = mapped(params, opt_state, sync, batches)
        params, opt_state, values = jax.tree.map(lambda a: a[0], (params, opt_state, values))
        return params, opt_state, sync, values

    return jax.jit(run)
