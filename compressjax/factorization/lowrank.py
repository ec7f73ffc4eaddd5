"""The verb ``lowrank``."""

from collections.abc import Mapping
from typing import Any

import jax

from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo, compress


def lowrank(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Any:
    """Factorises the kernels of a parameter tree.

    Args:
      params: nested dicts of arrays; kernels are ``[in, out]`` or stacked ``[layers..., in, out]``.
      cfg: ``BitStack``, ... for every kernel, or a mapping of path patterns to configs (None leaves alone).
      stats: records by weight path from ``calibrate``, for methods that need data.
      rules: patterns that take precedence over ``cfg``; the first match wins.
      key: randomness for methods that use it.

    Returns:
      A tree of the same structure with compressed leaves where kernels were.

    Raises:
      ValueError: for a rule that matches nothing, missing statistics, NaN or infinite weights.
      NotImplementedError: for a config that no method has registered.

    >>> import jax.numpy as jnp
    >>> from compressjax.factorization import BitStack
    >>> from compressjax.ops import nbits
    >>> params = {"dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)}}
    >>> small = lowrank(params, BitStack(levels=2, rank=1, scale="none"))
    >>> nbits(params["dense"]["kernel"]), nbits(small["dense"]["kernel"])
    (65536, 7264)
    """
    return compress(params, cfg, stats=stats, rules=rules, key=key)[0]


def lowrank_with_info(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> tuple[Any, dict[str, MatrixInfo]]:
    """:func:`lowrank`, and what each method reports about the error of every matrix, by path."""
    return compress(params, cfg, stats=stats, rules=rules, key=key)
