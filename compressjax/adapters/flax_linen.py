"""Flax linen modules on compressed parameters, through method interception.

``nn.Dense``, ``nn.DenseGeneral`` and ``nn.Embed`` run on a compressed ``kernel`` or ``embedding``, inside ``nn.scan``
and ``nn.remat`` too; everything else of the module is untouched. Linen would compare a parameter with the shape its
initialiser gives, which a compressed leaf does not have, so the layers are computed here from the variables as they
are. Dtypes follow the layer's own ``promote_dtype`` with the leaf counted as ``param_dtype``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from compressjax.adapters.layer_products import is_compressed, linear, linear_general, refusal
from compressjax.ops import matmul_t, take


def linen_apply(module: nn.Module, **options: Any) -> Callable[..., Any]:
    """``apply_fn(params, *args, **kwargs)`` of a linen module, for dense and compressed parameters alike.

    Every product of the planned layers with a compressed weight goes through ``compressjax.ops``, so the function is
    what ``calibrate`` wants. Make it once and jit it: a new one is a new function to jit.

    Args:
      module: any linen module whose parameters are in the collection ``params``.
      **options: fixed keyword arguments for the module's ``apply`` (``method``, ``rngs``, ``mutable``).

    Returns:
      The function; its ``params`` is the nested dict ``module.init(...)["params"]``, with leaves where arrays were. A
      kernel of ``nn.DenseGeneral`` must be reshaped to the matrix ``[prod(in), prod(out)]`` before it is compressed.

    Raises:
      NotImplementedError: at a call, when a layer without a rule has a compressed parameter; names layer and path.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from compressjax.leaf import pack_affine
      >>> model = nn.Dense(2, use_bias=False)
      >>> codes = jnp.asarray([[0, 3], [1, 2]], jnp.uint8)
      >>> kernel = pack_affine(codes, jnp.ones((1, 2)), None, bits=2, group=-1, zero_kind="none")
      >>> print(jax.jit(linen_apply(model))({"kernel": kernel}, jnp.eye(2)))
      [[-2.  1.]
       [-1.  0.]]
    """

    def apply_fn(params, *args, **kwargs):
        return apply_compressed(module, {"params": params}, *args, **{**options, **kwargs})

    return apply_fn


def apply_compressed(module: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """``module.apply(variables, *args, **kwargs)`` where ``variables["params"]`` may hold compressed leaves.

    For modules with more collections than ``params``, such as ``batch_stats`` or ``cache``.

    Raises:
      NotImplementedError: as :func:`linen_apply`.
    """
    with nn.intercept_methods(_intercept):
        return module.apply(variables, *args, **kwargs)


def _intercept(next_fun, args, kwargs, context: nn.module.InterceptorContext):
    module, method = context.module, context.method_name
    if module.scope is None or module.is_initializing():
        return next_fun(*args, **kwargs)
    for kind, name, methods in _RULES:
        if isinstance(module, kind):
            weight = _own(module, name)
            if is_compressed(weight) and method in methods and _runs_code_of(kind, context):
                return methods[method](module, weight, *args, **kwargs)
    if _is_flax_layer(module) and _compressed_names(module):
        raise refusal(type(module).__name__, "/".join(module.path), _compressed_names(module))
    try:
        return next_fun(*args, **kwargs)
    except (ScopeParamShapeError, TypeError) as error:
        # A user's own module may well read leaves and call ops; only one that fails on them is refused.
        if names := _compressed_names(module):
            raise refusal(type(module).__name__, "/".join(module.path), names) from error
        raise


def _own(module, name):
    return nn.meta.unbox(module.get_variable("params", name))


def _compressed_names(module):
    own = module.variables.get("params", {})
    return sorted(name for name, value in own.items() if is_compressed(nn.meta.unbox(value)))


def _is_flax_layer(module):
    return type(module).__module__.startswith("flax.linen.")


def _runs_code_of(kind, context):
    """Whether the call runs the method as the layer ``kind`` has it: of an override, only its ``super()`` call."""
    code = context.orig_method.func
    return (code.__module__, code.__qualname__) == (kind.__module__, f"{kind.__qualname__}.{context.method_name}")


def _promoted(module: Any, inputs) -> tuple[Any, Any]:
    bias = _own(module, "bias") if module.use_bias else None
    stand_in = jnp.zeros((), module.param_dtype)
    inputs, _, bias = module.promote_dtype(inputs, stand_in, bias, dtype=module.dtype)
    return inputs, bias


def _dense(module: nn.Dense, kernel, inputs):
    if module.dot_general is not None or module.dot_general_cls is not None:
        raise NotImplementedError(
            f"Dense at {'/'.join(module.path)!r} has a dot_general of its own and a compressed kernel"
        )
    inputs, bias = _promoted(module, inputs)
    return linear(inputs, kernel, bias, module.precision)


def _dense_general(module: nn.DenseGeneral, kernel, inputs):
    if module.batch_dims or module.dot_general is not None or module.dot_general_cls is not None:
        raise NotImplementedError(
            f"DenseGeneral at {'/'.join(module.path)!r} has batch_dims or its own dot_general, and a compressed kernel"
        )
    inputs, bias = _promoted(module, inputs)
    axes = (module.axis,) if isinstance(module.axis, int) else module.axis
    features = (module.features,) if isinstance(module.features, int) else module.features
    return linear_general(inputs, kernel, bias, module.precision, axes, features)


def _skip_setup(module, weight):
    """The setup of Embed only fetches the embedding, with the shape check that a leaf fails."""


def _embed(module: nn.Embed, embedding, inputs):
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise ValueError(f"Embed at {'/'.join(module.path)!r} wants integer inputs, got {inputs.dtype}")
    return take(embedding, inputs).astype(module.dtype or module.param_dtype)


def _attend(module: nn.Embed, embedding, query):
    query, _ = module.promote_dtype(query, jnp.zeros((), module.param_dtype), dtype=module.dtype)
    return matmul_t(query, embedding)


_RULES: tuple[tuple[type[nn.Module], str, dict[str, Callable[..., Any]]], ...] = (
    (nn.Dense, "kernel", {"__call__": _dense}),
    (nn.DenseGeneral, "kernel", {"__call__": _dense_general}),
    (nn.Embed, "embedding", {"setup": _skip_setup, "__call__": _embed, "attend": _attend}),
)
