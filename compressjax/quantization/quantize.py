"""The verb ``quantize``."""

from collections.abc import Mapping
from typing import Any

import jax

from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo, compress


def quantize(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Any:
    """Quantises the kernels of a parameter tree.

    Args:
      params: nested dicts of arrays; kernels are ``[in, out]`` or stacked ``[layers..., in, out]``.
      cfg: ``RTN``, ``GPTQ``, ... for every kernel, or a mapping of path patterns to configs (None leaves alone).
      stats: records by weight path from ``calibrate``, for methods that need data.
      rules: patterns that take precedence over ``cfg``; the first match wins.
      key: randomness for methods that use it.

    Returns:
      A tree of the same structure with compressed leaves where kernels were.

    Raises:
      ValueError: for a rule that matches nothing, missing statistics, NaN or infinite weights.
      NotImplementedError: for a config that no method has registered.

    >>> import jax.numpy as jnp
    >>> from compressjax.ops import nbits
    >>> params = {"dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)}}
    >>> from compressjax.quantization import RTN
    >>> small = quantize(params, RTN(bits=4, group=32))
    >>> nbits(params["dense"]["kernel"]), nbits(small["dense"]["kernel"])
    (65536, 9472)
    """
    return compress(params, cfg, stats=stats, rules=rules, key=key)[0]


def quantize_with_info(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> tuple[Any, dict[str, MatrixInfo]]:
    """:func:`quantize`, and what each method reports about the error of every matrix, by path."""
    return compress(params, cfg, stats=stats, rules=rules, key=key)
