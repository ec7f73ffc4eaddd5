"""Cases of Adam's step with moments in 8 bits: every spec."""

import jax
import jax.numpy as jnp

from benchmarks.kernels.row import pass_case
from pallas_kernels.blockwise_adam import Hyper, blockwise_adam
from pallas_kernels.blockwise_adam import specs as named
from pallas_kernels.blockwise_adam.config import choose_config
from pallas_kernels.proof.report import Case

_CODES = 2  # bytes of both moments of a value


def step(spec: named.AdamSpec) -> Case:
    def call(g, moments, hyper, p=None, *, implementation):
        return blockwise_adam(g, moments, hyper, spec.layout, p=p, implementation=implementation)

    def valid(args):
        """Numbers of a third step, and scales that are not negative."""
        g, moments, _, *p = args
        scales = {name: jnp.abs(getattr(moments, name)) for name in ("m_scale", "v_scale")}
        hyper = Hyper(0.9, 0.999, 1 - 0.9**3, 1 - 0.999**3, 1e-8, 0.0, 1e-3, 0.1)
        return g, moments._replace(**scales), jax.tree.map(jnp.float32, hyper), *p

    args = spec.arguments()
    values = choose_config(spec.shape, spec.layout).values
    width = spec.layout.rows(spec.shape)
    even = width[1] % width[2] == 0  # a row that ends inside a block is read value by value
    each = _CODES + args[0].dtype.itemsize + sum(a.dtype.itemsize for a in args[3:])
    return pass_case(
        spec.name,
        kernel="blockwise_adam",
        call=call,
        args=args,
        step_bytes=values * each if even else 0,
        valid=valid,
    )


CASES = tuple(step(spec) for spec in named.SPECS)
