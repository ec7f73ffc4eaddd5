"""A function that is one equation of a traced program, however many operations it takes.

Tracing costs by the equation, and a model traces the formula of its weights once per shape. Such a function is traced
when the program is lowered instead; under differentiation and ``vmap`` its own operations appear, so both are those of
the formula.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core
import numpy as np
from jax.interpreters import ad, batching, mlir


def one_equation(
    name: str, formula: Callable[..., jax.Array], shape_of: Callable[..., Sequence[int]], dtype_of: Callable[..., Any]
) -> Callable[..., jax.Array]:
    """The function ``formula`` as a primitive.

    Args:
      name: what a printed program calls it.
      formula: arrays and static keywords to one array; its keywords must be hashable.
      shape_of: avals and the same keywords to the result's shape, without tracing anything.
      dtype_of: keywords to the result's dtype.

    Returns:
      A function of the same arguments.
    """
    primitive = jax.extend.core.Primitive(name)

    @functools.partial(jax.jit, static_argnames="static")
    def run(*operands, static):
        return formula(*operands, **dict(static))

    def aval(*operands, **static):
        shape = tuple(shape_of(*operands, **static))
        return operands[0].update(shape=shape, dtype=np.dtype(dtype_of(**static)), weak_type=False)

    def tangent(primals, tangents, **static):
        filled = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(functools.partial(formula, **static), primals, filled)

    def batched(operands, dims, **static):
        return jax.vmap(functools.partial(formula, **static), in_axes=dims)(*operands), 0

    primitive.def_impl(lambda *operands, **static: run(*operands, static=tuple(sorted(static.items()))))
    primitive.def_abstract_eval(aval)
    ad.primitive_jvps[primitive] = tangent
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(formula, multiple_results=False))

    def bind(*operands, **static):
        return primitive.bind(*_alike(operands), **static)

    return functools.wraps(formula)(bind)


def _alike(operands):
    """Inside shard_map, operands that vary over the same mesh axes, as those of a primitive must."""
    varying = [jax.typeof(operand).manual_axis_type.varying for operand in operands]
    every = frozenset().union(*varying)
    if all(own == every for own in varying):
        return operands
    return [
        jax.lax.pcast(operand, tuple(every - own), to="varying") if every - own else operand
        for operand, own in zip(operands, varying, strict=True)
    ]
