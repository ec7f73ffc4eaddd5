"""The mean of compressed matrices over workers: all units in two collectives, whatever their levels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.distributed.compressor import Parts
from compressjax.distributed.l_greco.config import LGreco, Plan
from compressjax.distributed.l_greco.orthonormal import orthonormal
from compressjax.distributed.l_greco.units import Unit, count_kept
from compressjax.distributed.rounded import MinMax
from compressjax.distributed.sparse import TopK
from compressjax.distributed.transports import all_gather_mean, sharded_mean


class Exchanged(NamedTuple):
    """Results per unit.

    Attributes:
      means: ``[rows, cols]`` each, alike on all workers.
      left: what this worker has yet to send.
      warm: right factors ``[cols, rank]`` of the next step ("powersgd"), else ().
    """

    means: list[jax.Array]
    left: list[jax.Array]
    warm: tuple[jax.Array, ...]


def groups_of(units: tuple[Unit, ...], plan: Plan) -> list[list[int]]:
    """Units of the same shape and level together: one batched operation serves them."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, (unit, level) in enumerate(zip(units, plan, strict=True)):
        groups.setdefault((unit.rows, unit.cols, level), []).append(i)
    return list(groups.values())


def powersgd(v: list[jax.Array], warm: tuple[jax.Array, ...], units, plan: Plan, axis: str) -> Exchanged:
    """One step of subspace iteration on the mean, both factors summed over workers.

        Q <- orth(Q),  P = sum v Q,  P <- orth(P),  Q = mean v' P,  mean ~ P Q'

    Paper: Vogels et al., 2019, arXiv 1905.13727. The memory is ``v - P Q'`` with the averaged product, as there.
    """
    groups = groups_of(units, plan)
    stacks = [jnp.stack([v[i] for i in members]) for members in groups]
    q = [orthonormal(jnp.stack([warm[i] for i in members])) for members in groups]
    p = [orthonormal(a) for a in _summed([stack @ right for stack, right in zip(stacks, q, strict=True)], axis)]
    q = _summed([jnp.swapaxes(stack, 1, 2) @ left for stack, left in zip(stacks, p, strict=True)], axis)
    q = [right / jax.lax.axis_size(axis) for right in q]
    means: list = [None] * len(units)
    kept: list = [None] * len(units)
    for members, left, right in zip(groups, p, q, strict=True):
        product = left @ jnp.swapaxes(right, 1, 2)
        for place, i in enumerate(members):
            means[i], kept[i] = product[place], right[place]
    return Exchanged(means, [x - mean for x, mean in zip(v, means, strict=True)], tuple(kept))


def topk(v: list[jax.Array], units, plan: Plan, cfg: LGreco, axis: str, key: jax.Array) -> Exchanged:
    """Largest entries of every unit, all messages in one gather of bytes."""
    groups = groups_of(units, plan)
    first = [(units[members[0]], plan[members[0]]) for members in groups]
    runs = [
        (TopK(k=count_kept(unit, level, cfg)), unit.size, len(members))
        for (unit, level), members in zip(first, groups, strict=True)
    ]
    order = [i for members in groups for i in members]
    flat = jnp.concatenate([v[i].reshape(-1) for i in order])
    result = all_gather_mean(Parts(tuple(runs)), flat, axis, key)
    means, own = (_apart(x, order, units) for x in (result.mean, result.own))
    return Exchanged(means, [x - sent for x, sent in zip(v, own, strict=True)], ())


def qsgd(v: list[jax.Array], units, plan: Plan, cfg: LGreco, axis: str, key: jax.Array) -> Exchanged:
    """Few bits for every entry: chunks to their owners, which round the mean again and gather it."""
    workers = jax.lax.axis_size(axis)
    groups = groups_of(units, plan)
    runs, pieces = [], []
    for members in groups:
        unit = units[members[0]]
        chunk = -(-unit.size // workers)
        coded = MinMax(bits=int(cfg.levels[plan[members[0]]]), bucket=cfg.bucket, stochastic=cfg.stochastic)
        runs.append((coded, chunk, len(members)))
        rows = jnp.stack([v[i].reshape(-1) for i in members])
        # Filled up with the last entry, which widens no range.
        rows = jnp.pad(rows, ((0, 0), (0, chunk * workers - unit.size)), mode="edge")
        pieces.append(jnp.swapaxes(rows.reshape(len(members), workers, chunk), 0, 1).reshape(workers, -1))
    coded = Parts(tuple(runs))
    result = sharded_mean(coded, coded, jnp.concatenate(pieces, axis=1).reshape(-1), axis, key)

    def per_unit(x):
        out: list = [None] * len(units)
        table, at = x.reshape(workers, -1), 0
        for members, (_, chunk, count) in zip(groups, runs, strict=True):
            part = table[:, at : at + chunk * count].reshape(workers, count, chunk)
            at += chunk * count
            for place, i in enumerate(members):
                unit = units[i]
                out[i] = part[:, place].reshape(-1)[: unit.size].reshape(unit.rows, unit.cols)
        return out

    own = per_unit(result.own)
    return Exchanged(per_unit(result.mean), [x - sent for x, sent in zip(v, own, strict=True)], ())


def _summed(arrays: list[jax.Array], axis: str) -> list[jax.Array]:
    """Sums over workers, in one collective."""
    total = jax.lax.psum(jnp.concatenate([a.reshape(-1) for a in arrays]), axis)
    out, at = [], 0
    for a in arrays:
        out.append(total[at : at + a.size].reshape(a.shape))
        at += a.size
    return out


def _apart(flat: jax.Array, order: list[int], units: tuple[Unit, ...]) -> list[jax.Array]:
    out: list = [None] * len(units)
    at = 0
    for i in order:
        out[i] = flat[at : at + units[i].size].reshape(units[i].rows, units[i].cols)
        at += units[i].size
    return out
