"""The verb ``sparsify``."""

from collections.abc import Mapping
from typing import Any

import jax

from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo, compress


def sparsify(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Any:
    """Prunes the kernels of a parameter tree; the walk is that of ``quantize``, and each takes the other's configs.

    Recovery that needs a block's inputs runs in ``sequential.quantize_blockwise``, not here.

    Args:
      params: nested dicts of arrays; kernels are ``[in, out]`` or stacked ``[layers..., in, out]``.
      cfg: ``GQSA``, ``NM``, ... for every kernel, or a mapping of path patterns to configs (None leaves alone).
      stats: records by weight path from ``calibrate``.
      rules: patterns that take precedence over ``cfg``; the first match wins.
      key: randomness for methods that use it.

    Returns:
      A tree of the same structure with compressed leaves where kernels were.

    Raises:
      ValueError: for a rule that matches nothing, missing statistics, NaN or infinite weights.
      NotImplementedError: for a config that no method has registered.

    >>> import jax.numpy as jnp
    >>> from compressjax.calibration import Hessian, measure
    >>> from compressjax.ops import nbits
    >>> from compressjax.sparsity import GQSA
    >>> params = {"dense": {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)}}
    >>> stats = {"dense/kernel": measure(Hessian(), jax.random.normal(jax.random.key(0), (200, 64)))}
    >>> small = sparsify(params, GQSA(scope="row"), stats=stats)
    >>> nbits(params["dense"]["kernel"]), nbits(small["dense"]["kernel"])
    (65536, 5888)
    """
    return compress(params, cfg, stats=stats, rules=rules, key=key)[0]


def sparsify_with_info(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> tuple[Any, dict[str, MatrixInfo]]:
    """:func:`sparsify`, and what each method reports about the error of every matrix, by path."""
    return compress(params, cfg, stats=stats, rules=rules, key=key)
