"""Flax nnx modules on compressed parameters, as a pure function of a plain dict.

The module is split once. Each call merges it with the given parameters into a fresh copy, in which the ``nnx.Linear``,
``nnx.LinearGeneral`` and ``nnx.Embed`` layers that hold a compressed weight are given a class that computes through
``compressjax.ops``; the user's own object is never changed. This is in place of filling the fields ``dot_general`` and
``promote_dtype``, which needs leaves that can be indexed like arrays and does not reach ``nnx.Embed``. Dtypes follow
the layer's own ``promote_dtype`` with the leaf counted as ``param_dtype``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from compressjax.adapters.layer_products import is_compressed, linear, linear_general, refusal
from compressjax.ops import matmul_t, take


def nnx_apply(module: nnx.Module, *, method: str = "__call__") -> tuple[Callable[..., Any], dict[str, Any]]:
    """A nnx module as ``(apply_fn, params)`` with ``apply_fn(params, *args, **kwargs)``.

    All state besides parameters (running statistics, random counters) is kept as it was at the split, and what a call
    changes in it is dropped: set the module to ``eval()`` first where that matters.

    Args:
      module: any nnx module; a shared parameter appears once, at its first path.
      method: which method the function calls.

    Returns:
      ``apply_fn`` and the parameters as plain nested dicts with string keys (``"layers/0/kernel"``), whose arrays may
      be replaced by compressed leaves. A kernel of ``nnx.LinearGeneral`` must be reshaped to the matrix
      ``[prod(in), prod(out)]`` before it is compressed. Dense parameters go back by ``nnx.update(module, params)`` when
      no key is a number, as those of ``nnx.List`` and ``nnx.Sequential`` are.

    Raises:
      ValueError: at a call, when ``params`` has not the paths of the module.
      NotImplementedError: at a call, when a layer without a rule has a compressed parameter; names layer and path.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from compressjax.leaf import pack_affine
      >>> apply_fn, params = nnx_apply(nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)))
      >>> codes = jnp.asarray([[0, 3], [1, 2]], jnp.uint8)
      >>> kernel = pack_affine(codes, jnp.ones((1, 2)), None, bits=2, group=-1, zero_kind="none")
      >>> print(jax.jit(apply_fn)({**params, "kernel": kernel}, jnp.eye(2)))
      [[-2.  1.]
       [-1.  0.]]
    """
    graphdef, state, rest = nnx.split(module, nnx.Param, ...)
    flat = nnx.to_flat_state(state)
    params = _nest({_names(path): variable.get_value() for path, variable in flat})
    # Shapes only: the closure must not keep the dense weights alive.
    blank = [(path, jax.eval_shape(lambda v=variable: v)) for path, variable in flat]

    def apply_fn(params, *args, **kwargs):
        values = _flatten(params, {_names(path) for path, _ in blank})
        filled = [(path, variable.replace(values[_names(path)])) for path, variable in blank]
        merged = nnx.merge(graphdef, nnx.from_flat_state(filled), rest)
        for path, part in list(nnx.iter_modules(merged)):
            _plan(part, "/".join(map(str, path)))
        return getattr(merged, method)(*args, **kwargs)

    return apply_fn, params


def _names(path) -> tuple[str, ...]:
    return tuple(map(str, path))


def _nest(flat):
    nested: dict[str, Any] = {}
    for (*folders, name), value in flat.items():
        here = nested
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = value
    return nested


def _flatten(params, wanted):
    flat = {}

    def walk(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, (*path, str(key)))
        else:
            flat[path] = node

    walk(params, ())
    if set(flat) != wanted:
        missing, extra = (
            ("/".join(p) for p in sorted(wanted - set(flat))),
            ("/".join(p) for p in sorted(set(flat) - wanted)),
        )
        raise ValueError(f"params do not fit the module: missing {list(missing)}, not in the module {list(extra)}")
    return flat


def _plan(part: nnx.Module, path: str):
    names = sorted(name for name, v in vars(part).items() if isinstance(v, nnx.Param) and is_compressed(v.get_value()))
    if not names:
        return
    planned = _PLANNED.get(type(part))
    if planned is not None and names == [planned.weight]:
        part.__class__ = planned
    elif any(cls.__module__.startswith("flax.nnx.nn.") for cls in type(part).__mro__):
        raise refusal(type(part).__name__, path, names)


def _promoted(layer, inputs):
    bias = None if layer.bias is None else layer.bias.get_value()
    stand_in = jnp.zeros((), layer.param_dtype)
    inputs, _, bias = layer.promote_dtype((inputs, stand_in, bias), dtype=layer.dtype)
    return inputs, bias


def _refuse_options(layer, out_sharding, plain_dot_general):
    if out_sharding is not None or layer.dot_general is not plain_dot_general or layer.preferred_element_type:
        raise NotImplementedError(
            f"{type(layer).__mro__[1].__name__} with a compressed kernel takes no out_sharding, dot_general or "
            "preferred_element_type"
        )


class _CompressedLinear(nnx.Linear):
    weight = "kernel"

    def __call__(self, inputs, out_sharding=None):
        _refuse_options(self, out_sharding, jax.lax.dot_general)
        inputs, bias = _promoted(self, inputs)
        return linear(inputs, self.kernel.get_value(), bias, self.precision)


class _CompressedLinearGeneral(nnx.LinearGeneral):
    weight = "kernel"

    def __call__(self, inputs, out_sharding=None):
        _refuse_options(self, out_sharding, None)
        if self.batch_axis or self.dot_general_cls is not None:
            raise NotImplementedError("LinearGeneral with a compressed kernel takes no batch_axis or dot_general_cls")
        inputs, bias = _promoted(self, inputs)
        return linear_general(inputs, self.kernel.get_value(), bias, self.precision, self.axis, self.out_features)


class _CompressedEmbed(nnx.Embed):
    weight = "embedding"

    def __call__(self, inputs, out_sharding=None):
        if out_sharding is not None:
            raise NotImplementedError("Embed with a compressed embedding takes no out_sharding")
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f"Embed wants integer inputs, got {inputs.dtype}")
        return take(self.embedding.get_value(), inputs).astype(self.dtype)

    def attend(self, query, out_sharding=None):
        if out_sharding is not None:
            raise NotImplementedError("Embed with a compressed embedding takes no out_sharding")
        query, _ = self.promote_dtype((query, jnp.zeros((), self.param_dtype)), dtype=self.dtype)
        return matmul_t(query, self.embedding.get_value())


_PLANNED = {
    nnx.Linear: _CompressedLinear,
    nnx.LinearGeneral: _CompressedLinearGeneral,
    nnx.Embed: _CompressedEmbed,
}
