"""Functions run on four virtual devices, one row of the input each."""

import functools

import jax
from jax.sharding import AxisType, PartitionSpec

WORKERS = 4


def workers_mesh():
    return jax.make_mesh((WORKERS,), ("workers",), axis_types=(AxisType.Auto,))


def on_workers(function, *, out_specs=PartitionSpec("workers")):
    """``function(row)`` on each of the rows ``[4, ...]``; results are stacked again."""

    @functools.wraps(function)
    def local(rows):
        return jax.tree.map(lambda a: a[None], function(rows[0]))

    spec = PartitionSpec("workers")
    return jax.jit(jax.shard_map(local, mesh=workers_mesh(), in_specs=spec, out_specs=out_specs, check_vma=False))
