"""How much each input of a weight matters, and folding that into the neighbouring weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.select import replace, weights

_NORM_READERS: Mapping[str, tuple[str, ...]] = {
    "attn_norm": ("attn/q", "attn/k", "attn/v"),
    "mlp_norm": ("mlp/gate", "mlp/up"),
}
_FEEDERS: Mapping[str, str] = {"mlp/down": "mlp/up", "attn/o": "attn/v"}  # linear in the outputs of


def activation_scale(stats: Record | None, kind: str, eps: float) -> jax.Array:
    """Size of every input over the calibration data, rescaled to a geometric mean of 1.

    "rownorm": ``sqrt(sum x²) + eps``; "rms": ``sqrt(mean x²) + eps``; "mean_abs": ``mean |x| + eps``. The geometric
    mean of 1 keeps half-precision factors in range and changes nothing else. The paper takes the norm within each
    calibration sequence and the mean over sequences; sums over all tokens weigh sequences by their energy instead.

    Args:
      stats: with ``count``, and ``xtx`` (``abs_sum`` for "mean_abs").
      kind: as above.
      eps: in the units of the input.

    Returns:
      float32 ``[in]``, positive.

    Raises:
      ValueError: the record lacks what ``kind`` reads.
    """
    field = "abs_sum" if kind == "mean_abs" else "xtx"
    sums = None if stats is None else getattr(stats, field)
    if stats is None or sums is None or stats.count is None:
        raise ValueError(f"BitStack.scale={kind!r} needs record.{field} and record.count")
    count = jnp.maximum(stats.count.astype(jnp.float32), 1.0)
    if kind == "mean_abs":
        size = sums / count
    else:
        squares = jnp.maximum(jnp.diagonal(sums), 0.0)
        size = jnp.sqrt(squares if kind == "rownorm" else squares / count)
    size = size.astype(jnp.float32) + eps
    return size / jnp.exp(jnp.mean(jnp.log(size)))


def fold_scales(params: Any, scales: Mapping[str, jax.Array]) -> Any:
    """A network of the same function whose weights carry their inputs' scales, so that none needs to be stored.

    Rows of a kernel are multiplied by ``s`` and what feeds it is divided by ``s``: the gain of the norm before q, k and
    v (or gate and up), which must then share one scale; the outputs of up for down; those of v for o, where the two
    have one size (with grouped queries several heads share a value, so there is nothing to divide).

    Args:
      params: a tree of our Llama with dense kernels, ``blocks`` stacked or single.
      scales: positive ``[*lead, in]`` by path of kernel ("blocks/mlp/down/kernel").

    Returns:
      The tree with changed kernels, biases and gains.

    Raises:
      ValueError: a path without a place to fold into, consumers of one norm with different scales, sizes that do not
        allow it, or a scale that is not finite and positive.
    """
    new = dict(weights(params))
    left = set(scales)
    for path, scale in scales.items():
        if path not in new:
            raise ValueError(f"scales: no weight at {path!r}")
        if not bool(jnp.all(jnp.isfinite(scale) & (scale > 0))):
            raise ValueError(f"scales: the scale of {path} must be finite and positive")
    for norm, readers in _NORM_READERS.items():
        gain = next((p for p in new if p.endswith(f"{norm}/scale")), None)
        if gain is None:
            continue
        base = gain.removesuffix(f"{norm}/scale")
        paths = [f"{base}{reader}/kernel" for reader in readers]
        named = [path for path in paths if path in scales]
        if not named:
            continue
        if len(named) != len(paths) or any(not jnp.array_equal(scales[p], scales[paths[0]]) for p in paths):
            raise ValueError(f"scales: {', '.join(paths)} read one norm and must share one scale")
        new[gain] = new[gain] / scales[paths[0]]
        for path in paths:
            new[path] = new[path] * scales[path][..., None]
        left -= set(paths)
    for reader, feeder in _FEEDERS.items():
        for path in [p for p in left if p.endswith(f"{reader}/kernel")]:
            base = path.removesuffix(f"{reader}/kernel")
            source = f"{base}{feeder}/kernel"
            if new[source].shape[-1] != new[path].shape[-2]:
                raise ValueError(
                    f"scales: {path} has {new[path].shape[-2]} inputs and {source} {new[source].shape[-1]} outputs, "
                    "so its scale cannot be folded (grouped queries); keep it with the weight"
                )
            new[path] = new[path] * scales[path][..., None]
            new[source] = new[source] / scales[path][..., None, :]
            bias = f"{base}{feeder}/bias"
            if bias in new:
                new[bias] = new[bias] / scales[path]
            left.discard(path)
    if left:
        raise ValueError(f"scales: nothing feeds {sorted(left)} that a scale could be folded into")
    return replace(params, new)
