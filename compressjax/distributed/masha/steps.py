"""One iteration of MASHA1 and MASHA2, inside `jax.shard_map` over the workers' axis.

With a snapshot w, ``z_bar = tau z + (1 - tau) w`` and ``z_half = prox(z_bar - gamma F(w))``, every worker sends its
difference ``F_m(z_half) - F_m(w)`` compressed:

    MASHA1    g = Q_s(mean Q_m(difference)),                            z <- prox(z_bar - gamma (F(w) + g))
    MASHA2    g = C_s(e + mean C_m(e_m + gamma difference)), memories,  z <- z_half - g

and with probability p, by a coin all share, the snapshot becomes z and ``F_m(w)`` is exchanged in full. The difference
vanishes at the solution, so the compression's noise does too, and convergence is linear.

Paper: Beznosikov et al., 2021, arXiv 2110.03313. No reference implementation is public; written from the algorithms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from compressjax.distributed.compressor import Compressor, message_like, tree_bytes
from compressjax.distributed.masha.config import Masha
from compressjax.distributed.transports import (
    Mean,
    all_gather_mean,
    chunk_length,
    exact_mean,
    sharded_mean,
    shared_mask_mean,
)

Operator = Callable[[Any, Any], Any]


class MashaState(NamedTuple):
    """State of an iteration, d entries in all.

    Attributes:
      z, w: iterate and snapshot, trees alike on all workers.
      mean: ``[d]``, F(w), alike on all workers.
      local: ``[1, d]``, F_m(w), this worker's own.
      memory: ``[1, d]``, what this worker has yet to send (MASHA2); () for MASHA1.
      served: ``[1, chunk]``, the same of the chunk it serves (MASHA2, "sra"), or ``[1, d]``; () for MASHA1.
      step: int32.
    """

    z: Any
    w: Any
    mean: jax.Array
    local: jax.Array
    memory: Any
    served: Any
    step: jax.Array


class Metrics(NamedTuple):
    """What an iteration did.

    Attributes:
      refreshed: bool, whether the snapshot was renewed.
      uplink_bytes: float32, bytes a worker sends to a server by the algorithm: its message, and the full vector at a
        refresh. What the program's collectives move is read from it with `wire_bytes`.
      residual: float32, ``|g|``, the norm of the exchanged difference.
      half: the half point, a tree; its average over iterations is what converges for operators that are only monotone.
    """

    refreshed: jax.Array
    uplink_bytes: jax.Array
    residual: jax.Array
    half: Any


def state_specs(axis: str) -> MashaState:
    """Partition specs of a state for `jax.shard_map`."""
    own, alike = PartitionSpec(axis), PartitionSpec()
    return MashaState(alike, alike, alike, own, own, own, alike)  # pyright: ignore[reportArgumentType]


def masha1_init(cfg: Masha, operator: Operator, z0: Any, batch: Any) -> MashaState:
    """State at a point, after one full exchange of the operator there.

    Args:
      cfg: unbiased compressors.
      operator: F_m, ``(z, batch) -> tree like z``, of this worker's data.
      z0: tree of one floating dtype, alike on all workers.
      batch: this worker's data.

    Raises:
      ValueError: a compressor that is not unbiased, more participants than workers, or z0 of mixed dtypes.
    """
    d, workers = _length(z0), jax.lax.axis_size(cfg.axis)
    _check_workers(cfg, workers)
    pieces = chunk_length(d, workers) if cfg.transport == "sra" else d
    for name, compressor in (("up", cfg.up), ("down", cfg.answer)):
        if compressor.unbiased(pieces) is None:
            raise ValueError(f"MASHA1 needs unbiased compressors; Masha.{name}={compressor} is biased: use MASHA2")
    return _state(cfg, operator, z0, batch, (), ())


def masha2_init(cfg: Masha, operator: Operator, z0: Any, batch: Any) -> MashaState:
    """State at a point with empty memories; arguments as `masha1_init`, with contractive compressors.

    Raises:
      ValueError: a proximal step, a compressor that is not contractive, more participants than workers.
    """
    d, workers = _length(z0), jax.lax.axis_size(cfg.axis)
    _check_workers(cfg, workers)
    if cfg.prox is not None:
        raise ValueError("MASHA2 has no proximal step: its analysis needs h = 0")
    if cfg.transport == "shared_mask":
        raise ValueError("MASHA2 takes 'sra' or 'allgather': random entries scaled for their mean are not contractive")
    pieces = chunk_length(d, workers) if cfg.transport == "sra" else d
    for name, compressor in (("up", cfg.up), ("down", cfg.answer)):
        if compressor.contractive(pieces) is None:
            raise ValueError(f"MASHA2 needs contractive compressors; Masha.{name}={compressor} is not: use MASHA1")
    dtype = jax.tree.leaves(z0)[0].dtype
    return _state(cfg, operator, z0, batch, jnp.zeros((1, d), dtype), jnp.zeros((1, pieces), dtype))


def masha1_step(
    cfg: Masha, operator: Operator, state: MashaState, batch: Any, *, minibatch: Any = None
) -> tuple[MashaState, Metrics]:
    """One iteration of MASHA1.

    Args:
      cfg: as the state was made with.
      operator: F_m.
      state: from `masha1_init` or a step.
      batch: this worker's data, for the full pass at a refresh and, without ``minibatch``, for the differences.
      minibatch: part of it drawn for this step; the difference is taken on it at both points.

    Returns:
      The next state and what was done.
    """
    keys = _keys(cfg, state)
    tau, gamma = 1.0 - cfg.p, cfg.gamma
    z, unravel = ravel_pytree(state.z)
    w, _ = ravel_pytree(state.w)
    bar = tau * z + (1.0 - tau) * w
    half = _prox(cfg, unravel, bar - gamma * state.mean)
    difference = _difference(operator, state, unravel(half), batch, minibatch)
    present, scale = _participation(cfg, keys[0])
    g = _exchange(cfg, jnp.where(present, difference, jnp.zeros_like(difference)), keys[1], scale, None).mean
    new = _prox(cfg, unravel, bar - gamma * (state.mean + g))
    return _finish(cfg, operator, state, unravel(new), g, unravel(half), batch, keys[2], (state.memory, state.served))


def masha2_step(
    cfg: Masha, operator: Operator, state: MashaState, batch: Any, *, minibatch: Any = None
) -> tuple[MashaState, Metrics]:
    """One iteration of MASHA2; arguments as `masha1_step`.

    The step size lies inside the memories, so that a change of it does not disturb them.
    """
    keys = _keys(cfg, state)
    tau, gamma = 1.0 - cfg.p, cfg.gamma
    z, unravel = ravel_pytree(state.z)
    w, _ = ravel_pytree(state.w)
    half = tau * z + (1.0 - tau) * w - gamma * state.mean
    difference = _difference(operator, state, unravel(half), batch, minibatch)
    present, scale = _participation(cfg, keys[0])
    v = state.memory[0] + gamma * difference
    sent = jnp.where(present, v, jnp.zeros_like(v))
    result = _exchange(cfg, sent, keys[1], scale, state.served[0])
    memory = jnp.where(present, v - result.own, state.memory[0])
    served = state.served[0] if result.server_error is None else result.server_error
    new = unravel(half - result.mean)
    memories = (memory[None], served[None])
    return _finish(cfg, operator, state, new, result.mean, unravel(half), batch, keys[2], memories)


def _length(z0: Any) -> int:
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(z0)}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise ValueError(f"z0 must have one floating dtype, got {sorted(map(str, dtypes))}")
    return sum(leaf.size for leaf in jax.tree.leaves(z0))


def _check_workers(cfg: Masha, workers: int) -> None:
    if cfg.participate is not None and cfg.participate > workers:
        raise ValueError(f"Masha.participate={cfg.participate} exceeds the {workers} workers")


def _state(cfg: Masha, operator: Operator, z0: Any, batch: Any, memory: Any, served: Any) -> MashaState:
    local = ravel_pytree(operator(z0, batch))[0]
    return MashaState(
        z0, z0, exact_mean(local, cfg.axis), local[None], memory, served, jnp.zeros((), jnp.int32)
    )  # fmt: skip


def _keys(cfg: Masha, state: MashaState) -> jax.Array:
    return jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), state.step), 3)


def _prox(cfg: Masha, unravel: Callable[[jax.Array], Any], z: jax.Array) -> jax.Array:
    return z if cfg.prox is None else ravel_pytree(cfg.prox(unravel(z), cfg.gamma))[0]


def _difference(operator: Operator, state: MashaState, half: Any, batch: Any, minibatch: Any) -> jax.Array:
    if minibatch is None:
        return ravel_pytree(operator(half, batch))[0] - state.local[0]
    return ravel_pytree(operator(half, minibatch))[0] - ravel_pytree(operator(state.w, minibatch))[0]


def _participation(cfg: Masha, key: jax.Array) -> tuple[jax.Array, float]:
    """Whether this worker sends, and what the mean over all has to be multiplied by."""
    workers = jax.lax.axis_size(cfg.axis)
    if cfg.participate is None:
        return jnp.asarray(True), 1.0
    rank = jax.random.permutation(key, workers)[jax.lax.axis_index(cfg.axis)]
    return rank < cfg.participate, workers / cfg.participate


def _exchange(cfg: Masha, x: jax.Array, key: jax.Array, scale: float, served: jax.Array | None) -> Mean:
    if cfg.transport == "sra":
        return sharded_mean(cfg.up, cfg.answer, x, cfg.axis, key, server_error=served, scale=scale)
    up_key, down_key = jax.random.split(key)
    if cfg.transport == "allgather":
        gathered = all_gather_mean(cfg.up, x, cfg.axis, up_key)
    else:
        gathered = shared_mask_mean(cfg.up, x, cfg.axis, up_key)  # pyright: ignore[reportArgumentType]
    total = gathered.mean * scale + (0.0 if served is None else served)
    # Every worker plays the server, with the same key and so the same bits.
    answer = cfg.answer.decode(cfg.answer.encode(total, down_key), x.shape[0], down_key)
    return Mean(answer, gathered.own, total - answer)


def _finish(cfg, operator, state, new, g, half, batch, key, memories) -> tuple[MashaState, Metrics]:
    coin = jax.random.bernoulli(key, cfg.p)

    def refresh(_):
        local = ravel_pytree(operator(new, batch))[0]
        return new, exact_mean(local, cfg.axis), local[None]

    # The coin is the same on all workers, so all of them enter the branch with the collective or none does.
    w, mean, local = jax.lax.cond(coin, refresh, lambda _: (state.w, state.mean, state.local), None)
    bytes_sent = _uplink_bytes(cfg.up, g) + coin.astype(jnp.float32) * (g.size * g.dtype.itemsize)
    memory, served = memories
    following = MashaState(new, w, mean, local, memory, served, state.step + 1)
    return following, Metrics(coin, bytes_sent, jnp.linalg.norm(g).astype(jnp.float32), half)


def _uplink_bytes(up: Compressor, g: jax.Array) -> float:
    return float(tree_bytes(message_like(up, g.shape[0], g.dtype)))
