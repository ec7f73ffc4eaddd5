"""Cases of the flush: every spec, all layers of a model in one launch, into a cache whose memory is reused."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from benchmarks.kernels.row import least_bytes, pass_case
from pallas_kernels.kv_append import kv_append
from pallas_kernels.kv_append import specs as named
from pallas_kernels.kv_append.config import choose_config, columns_of
from pallas_kernels.kv_append.xla import rounded
from pallas_kernels.proof.report import Case


def flush(spec: named.AppendSpec) -> Case:
    def call(held, x, at, keep=None, *, implementation):
        def one(held, x):
            return kv_append(held, x, at, spec.layout, keep=keep, implementation=implementation)

        return jax.vmap(one)(held, x)

    held, x, at, keep = spec.arguments()
    config = choose_config(x.shape[1:], x.dtype, spec.layout)
    columns = min(math.prod(columns_of(spec.layout, config.values)), spec.layout.side.width)
    case = pass_case(
        spec.name,
        kernel="kv_append",
        call=call,
        args=(held, x, at, *([] if keep is None else [keep])),
        step_bytes=spec.layout.span * columns * x.dtype.itemsize,
        valid=lambda args: (*args[:2], args[2] % jnp.int32(named.BLOCKS), *args[3:]),
    )

    def formula(held, x, at, keep=None):
        """One write for all layers; mapped over them it would also read what it replaces."""
        block = jax.vmap(lambda x: rounded(x, keep, spec.layout, held.scale.dtype))(x)
        put = jax.lax.dynamic_update_index_in_dim
        return jax.tree.map(lambda old, new: put(old, new, at, axis=1), held, block)

    read = least_bytes((x, at, keep), ())
    return dataclasses.replace(case, least_bytes=read + spec.written, in_place=spec.written, donate=(0,), xla=formula)


CASES = tuple(flush(spec) for spec in named.SPECS)
