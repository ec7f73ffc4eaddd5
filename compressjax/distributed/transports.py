"""The mean over workers of compressed vectors, on the collectives that carry the messages.

All run inside `jax.shard_map`, or `jax.pmap`, over a named axis with M workers; all give every worker the same bits.
A worker's message is drawn with ``fold_in(key, worker)``, so that every worker can decode every message.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.distributed.compressor import Compressor, from_bytes, message_like, to_bytes
from compressjax.distributed.sparse import RandK


class Mean(NamedTuple):
    """What a worker has after an exchange.

    Attributes:
      mean: float32 ``[d]``, the mean of the decoded messages, alike on all workers.
      own: float32 ``[d]``, this worker's own message decoded, for its error memory.
      server_error: float32 ``[chunk]``, what the second compression of the sharded exchange left out of this worker's
        chunk; None elsewhere.
    """

    mean: jax.Array
    own: jax.Array
    server_error: jax.Array | None = None


def exact_mean(x: jax.Array, axis: str) -> jax.Array:
    """``psum(x) / M``, uncompressed."""
    return jax.lax.psum(x, axis) / jax.lax.axis_size(axis)


def all_gather_mean(compressor: Compressor, x: jax.Array, axis: str, key: jax.Array) -> Mean:
    """Every worker sends its message to all: ``(M - 1)`` messages on the wire per worker.

    Args:
      compressor: of the messages.
      x: float32 ``[d]``.
      axis: name of the workers' axis.
      key: alike on all workers.
    """
    d, workers, me = x.shape[0], jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    like = message_like(compressor, d, x.dtype)
    own_key = jax.random.fold_in(key, me)
    message = compressor.encode(x, own_key)
    received = jax.lax.all_gather(to_bytes(message), axis)

    def add(total, item):
        buffer, worker = item
        return total + compressor.decode(from_bytes(buffer, like), d, jax.random.fold_in(key, worker)), None

    # One after the other, in the same order everywhere: the same bits on all workers, and memory for one vector.
    total, _ = jax.lax.scan(add, jnp.zeros_like(x), (received, jnp.arange(workers)))
    return Mean(total / workers, compressor.decode(message, d, own_key))


def chunk_length(d: int, workers: int) -> int:
    """Entries of the vector that one worker serves in `sharded_mean`."""
    return -(-d // workers)


def sharded_mean(
    up: Compressor,
    down: Compressor,
    x: jax.Array,
    axis: str,
    key: jax.Array,
    *,
    server_error: jax.Array | None = None,
    scale: float = 1.0,
) -> Mean:
    """Each worker serves 1/M of the entries: messages of chunks all-to-all, means compressed again and all-gathered.

    Per worker ``2 (M - 1) / M`` messages go over the wire, however many workers there are. The owner of a chunk decodes
    its own second message like everyone else, so that all workers hold the same bits.

    Args:
      up, down: compressors of the workers' chunks and of the served means.
      x: float32 ``[d]``.
      axis: name of the workers' axis.
      key: alike on all workers.
      server_error: float32 ``[chunk_length(d, M)]`` added to this worker's served mean before it is compressed.
      scale: of the mean, before that addition; M / b where only b workers sent something.
    """
    d, workers, me = x.shape[0], jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    chunk = chunk_length(d, workers)
    up_key, down_key = jax.random.split(key)
    rows = jnp.pad(x, (0, chunk * workers - d)).reshape(workers, chunk)
    ids = jnp.arange(workers)

    def drawn(sender, chunk_id):
        return jax.random.fold_in(jax.random.fold_in(up_key, sender), chunk_id)

    like = message_like(up, chunk, x.dtype)
    sent = jax.vmap(lambda row, c: to_bytes(up.encode(row, drawn(me, c))))(rows, ids)
    own = jax.vmap(lambda buffer, c: up.decode(from_bytes(buffer, like), chunk, drawn(me, c)))(sent, ids)
    received = jax.lax.all_to_all(sent, axis, split_axis=0, concat_axis=0)
    served = jax.vmap(lambda buffer, w: up.decode(from_bytes(buffer, like), chunk, drawn(w, me)))(received, ids)
    total = jnp.mean(served, axis=0) * scale
    total = total if server_error is None else total + server_error
    answer = down.encode(total, jax.random.fold_in(down_key, me))
    answered = message_like(down, chunk, x.dtype)
    everyone = jax.lax.all_gather(to_bytes(answer), axis)
    parts = jax.vmap(
        lambda buffer, w: down.decode(from_bytes(buffer, answered), chunk, jax.random.fold_in(down_key, w))
    )(everyone, ids)
    return Mean(parts.reshape(-1)[:d], own.reshape(-1)[:d], total - parts[me])


def shared_mask_mean(compressor: RandK, x: jax.Array, axis: str, key: jax.Array) -> Mean:
    """All workers keep the same random entries, so the values themselves are summed: ``2 (M - 1) / M`` messages.

    Raises:
      TypeError: for a compressor whose messages cannot be added.
    """
    if not isinstance(compressor, RandK):
        raise TypeError(f"only messages of RandK can be added up, got {type(compressor).__name__}")
    values = compressor.encode(x, key)
    mean = compressor.decode(exact_mean(values, axis), x.shape[0], key)
    return Mean(mean, compressor.decode(values, x.shape[0], key))
