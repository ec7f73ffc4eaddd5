"""Training steps on a mesh whose gradients L-GreCo exchanges, one compiled step per plan."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, PartitionSpec

from compressjax.distributed.l_greco.config import LGreco, Plan
from compressjax.distributed.l_greco.tables import Table
from compressjax.distributed.l_greco.transform import (
    SyncState,
    compress_gradients,
    gradient_table,
    replan,
    state_specs,
)


def init_sync(cfg: LGreco, params: Any, mesh: Mesh, axis: str, plan: Plan | None = None) -> SyncState:
    """State of the exchange on a mesh, memories on their workers.

    Raises:
      ValueError: the mesh has no such axis, or the plan does not fit the parameters.
    """
    _check_axis(mesh, axis)
    make = jax.shard_map(
        compress_gradients(cfg, axis, plan).init,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=state_specs(axis),
        check_vma=False,
    )
    return jax.jit(make)(params)


def data_parallel_steps(
    loss: Callable[[Any, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    cfg: LGreco,
    mesh: Mesh,
    axis: str,
) -> Callable[[Plan | None], Callable[..., Any]]:
    """Steps by plan, each compiled once and kept.

    Args:
      loss: ``(params, batch) -> scalar``, the mean over a local batch.
      optimizer: of the averaged gradients, alike on all workers.
      cfg: of the exchange.
      mesh: with the workers' axis.
      axis: its name; the batch is cut along its first axis.

    Returns:
      ``plan -> step``, with ``step(params, opt_state, sync, batch) -> (params, opt_state, sync, mean loss)``; the first
      three are donated.

    Raises:
      ValueError: the mesh has no such axis.
    """
    _check_axis(mesh, axis)

    @functools.cache
    def build(plan: Plan | None):
        exchange = compress_gradients(cfg, axis, plan)

        def local(params, opt_state, sync, batch):
            value, grads = jax.value_and_grad(loss)(params, batch)
            mean, sync = exchange.update(grads, sync)
            updates, opt_state = optimizer.update(mean, opt_state, params)
            params = optax.apply_updates(params, updates)
            return params, opt_state, sync, jax.lax.pmean(value, axis)

        alike, cut = PartitionSpec(), PartitionSpec(axis)
        mapped = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(alike, alike, state_specs(axis), cut),
            out_specs=(alike, alike, state_specs(axis), alike),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=(0, 1, 2))

    return build


def table_on(cfg: LGreco, params: Any, sync: SyncState, mesh: Mesh, axis: str) -> Table:
    """The table of errors of what was gathered, alike on all processes."""
    read = jax.shard_map(
        functools.partial(gradient_table, cfg, axis),
        mesh=mesh,
        in_specs=(PartitionSpec(), state_specs(axis)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(read)(params, sync)


def replan_on(cfg: LGreco, params: Any, sync: SyncState, plan: Plan, mesh: Mesh, axis: str) -> SyncState:
    """`replan` on a mesh, memories left on their workers."""
    fit = jax.shard_map(
        lambda params, sync: replan(cfg, params, sync, plan),
        mesh=mesh,
        in_specs=(PartitionSpec(), state_specs(axis)),
        out_specs=state_specs(axis),
        check_vma=False,
    )
    return jax.jit(fit)(params, sync)


def _check_axis(mesh: Mesh, axis: str) -> None:
    if axis not in mesh.axis_names:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, none called {axis!r}")
