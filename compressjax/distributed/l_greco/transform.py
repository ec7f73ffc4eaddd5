"""L-GreCo as an optax transform: local gradients in, their compressed mean out."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from compressjax.distributed.l_greco.config import LGreco, Plan
from compressjax.distributed.l_greco.exchange import powersgd, qsgd, topk
from compressjax.distributed.l_greco.tables import Table, error_table
from compressjax.distributed.l_greco.units import Unit, checked_plan, uniform_plan, units_of
from compressjax.distributed.transports import exact_mean


class SyncState(NamedTuple):
    """State of the exchange.

    Attributes:
      step: int32, steps done.
      memory: what this worker has yet to send of each compressed array, ``[1, *shape]``; () without error feedback.
      gathered: sums of what the compressor saw since the window before the next adaptation began, ``[1, *shape]``.
      warm: right factors ``[1, cols, rank]`` of "powersgd", one per unit, alike on all workers.
    """

    step: jax.Array
    memory: tuple[jax.Array, ...]
    gathered: tuple[jax.Array, ...]
    warm: tuple[jax.Array, ...]


def compress_gradients(cfg: LGreco, axis_name: str, plan: Plan | None = None) -> optax.GradientTransformation:
    """Averages gradients over a named axis, compressed by a plan.

    Call ``init`` and ``update`` inside `jax.shard_map` or `jax.pmap`, with gradients that were not summed over the
    axis: take the gradient of the local batch's loss. Over further axes that shard parameters (FSDP), each shard
    compresses its own part. A plan is static: a new one is a new transform with the same state, through `replan`.

    Args:
      cfg: family, levels and period.
      axis_name: of the workers.
      plan: level of every unit; None for the uniform base level, ``()`` for no compression, as during a warm-up.

    Returns:
      A transform; its state goes on under any plan.

    Raises:
      ValueError: at init or update, a plan that does not fit the gradients.
      TypeError: gradients that are not real and floating.

    Warns:
      UserWarning: the axis has one worker, so nothing is sent and nothing compressed.
    """

    def resolved(tree) -> tuple[tuple[Unit, ...], Plan]:
        units = units_of(tree, cfg)
        return units, checked_plan(uniform_plan(units, cfg) if plan is None else plan, units, cfg)

    def init(params) -> Any:
        units, chosen = resolved(params)
        zeros = tuple(jnp.zeros((1, *leaf.shape), jnp.float32) for leaf in _compressed(params, units))
        return SyncState(
            step=jnp.zeros((), jnp.int32),
            memory=zeros if cfg.error_feedback else (),
            gathered=zeros,
            warm=_fitted((), units, chosen, cfg, jax.random.key(cfg.seed)),
        )

    def update(updates, state, params=None) -> Any:
        del params
        units, chosen = resolved(updates)
        if jax.lax.axis_size(axis_name) == 1:
            warnings.warn(f"axis {axis_name!r} has one worker: gradients pass uncompressed", stacklevel=2)
            return updates, state._replace(step=state.step + 1)
        leaves, structure = jax.tree.flatten(updates)
        touched = sorted({unit.leaf for unit in units})
        wide = {i: leaves[i].astype(jnp.float32) for i in touched}
        if cfg.error_feedback and chosen:
            wide = {i: wide[i] + state.memory[at][0] for at, i in enumerate(touched)}
        gathered = _gather(cfg, state, [wide[i] for i in touched])
        dense = [i for i in range(len(leaves)) if i not in wide or not chosen]
        summed = _dense_means([leaves[i].astype(jnp.float32) for i in dense], axis_name)
        out = dict(zip(dense, summed, strict=True))
        state = state._replace(step=state.step + 1, gathered=gathered)
        if chosen:
            matrices = _matrices(wide, units)
            if cfg.family == "powersgd":
                result = powersgd(matrices, tuple(q[0] for q in state.warm), units, chosen, axis_name)
            else:
                exchange = topk if cfg.family == "topk" else qsgd
                key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
                result = exchange(matrices, units, chosen, cfg, axis_name, key)
            out |= _leaves(result.means, units, wide)
            if cfg.error_feedback:
                left = _leaves(result.left, units, wide)
                state = state._replace(memory=tuple(left[i][None] for i in touched))
            state = state._replace(warm=tuple(q[None] for q in result.warm))
        means = [out[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, means), state

    return optax.GradientTransformation(init, update)


def state_specs(axis_name: str, *, shard_axes: tuple[str, ...] = ()) -> SyncState:
    """Partition specs of a state for `jax.shard_map`: memories are each worker's own, the rest is alike on all.

    Args:
      axis_name: of the workers.
      shard_axes: of the mesh, over which parameters are cut; every shard has memories and factors of its own.
    """
    own, alike = PartitionSpec((axis_name, *shard_axes)), PartitionSpec()
    warm = PartitionSpec(shard_axes) if shard_axes else alike
    return SyncState(step=alike, memory=own, gathered=own, warm=warm)  # pyright: ignore[reportArgumentType]


def gradient_table(
    cfg: LGreco, axis_name: str, params: Any, state: SyncState, *, shard_axes: tuple[str, ...] = ()
) -> Table:
    """The table of errors of what was gathered, alike on all workers; inside `jax.shard_map`, once per period.

    Only the table itself is averaged over workers, root of the mean of squares, not the gradients. Over ``shard_axes``,
    which cut parameters into parts, squared errors add up.
    """
    units = units_of(params, cfg)
    touched = sorted({unit.leaf for unit in units})
    mean = {i: state.gathered[at][0] / cfg.acc_steps for at, i in enumerate(touched)}
    table = error_table(_matrices(mean, units), units, cfg)

    def combined(x, power):
        squares = jax.lax.pmean(x**power, axis_name)
        return (jax.lax.psum(squares, shard_axes) if shard_axes else squares) ** (1.0 / power)

    return Table(combined(table.errors, 1 if cfg.error == "l2sq" else 2), combined(table.norms, 2))


def replan(cfg: LGreco, params: Any, state: SyncState, plan: Plan) -> SyncState:
    """The state for a new plan: memories stay, right factors of "powersgd" keep the columns they have in common.

    New columns are drawn alike on all workers. The reference draws all columns anew.

    Raises:
      ValueError: a plan that does not fit the parameters.
    """
    units = units_of(params, cfg)
    key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
    return state._replace(warm=_fitted(state.warm, units, checked_plan(plan, units, cfg), cfg, key))


def _fitted(warm, units, plan: Plan, cfg: LGreco, key: jax.Array) -> tuple[jax.Array, ...]:
    if cfg.family != "powersgd" or not plan:
        return warm if cfg.family == "powersgd" else ()
    out = []
    for i, (unit, level) in enumerate(zip(units, plan, strict=True)):
        fresh = jax.random.normal(jax.random.fold_in(key, i), (unit.cols, int(cfg.levels[level])))
        old = warm[i][:, :, : fresh.shape[1]] if warm else fresh[None, :, :0]
        # Shards, if any, lead; each draws the same columns.
        new = jnp.broadcast_to(fresh, (old.shape[0], *fresh.shape))
        out.append(jnp.concatenate([old, new[:, :, old.shape[2] :]], axis=2))
    return tuple(out)


def _gather(cfg: LGreco, state: SyncState, seen: list[jax.Array]) -> tuple[jax.Array, ...]:
    place = state.step % cfg.period
    first = cfg.period - cfg.acc_steps

    def add(total, x):
        return jnp.where(place == first, x[None], jnp.where(place > first, total + x[None], total))

    return tuple(add(total, x) for total, x in zip(state.gathered, seen, strict=True))


def _dense_means(arrays: list[jax.Array], axis_name: str) -> list[jax.Array]:
    """Means of what is not compressed, in one collective."""
    if not arrays:
        return []
    flat = exact_mean(jnp.concatenate([a.reshape(-1) for a in arrays]), axis_name)
    out, at = [], 0
    for a in arrays:
        out.append(flat[at : at + a.size].reshape(a.shape))
        at += a.size
    return out


def _compressed(tree: Any, units: tuple[Unit, ...]) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [leaves[i] for i in sorted({unit.leaf for unit in units})]


def _matrices(leaves: dict[int, jax.Array], units: tuple[Unit, ...]) -> list[jax.Array]:
    shaped = {unit.leaf: leaves[unit.leaf].reshape(-1, unit.rows, unit.cols) for unit in units}
    return [shaped[unit.leaf][unit.layer] for unit in units]


def _leaves(matrices: list[jax.Array], units: tuple[Unit, ...], like: dict[int, jax.Array]) -> dict[int, jax.Array]:
    parts: dict[int, list[jax.Array]] = {}
    for unit, matrix in zip(units, matrices, strict=True):
        parts.setdefault(unit.leaf, []).append(matrix)
    return {i: jnp.stack(layers).reshape(like[i].shape) for i, layers in parts.items()}
