"""What is fixed about a step, what it takes, and the check that arrays fit.

    m = b1 map_m[c_m] s_m + (1 - b1) g,    v = b2 map_v[c_v] s_v + (1 - b2) g^2
    d = m / (1 - b1^t) / (sqrt(v / (1 - b2^t) + eps_root) + eps)

and then each block of m and v is coded again: ``s = max |m|``, ``c`` the nearest value of the map to ``m / s``, ties to
the lower one. The step itself uses m and v as they are before that.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantize_pack.layout import FLOATS

MOST_BLOCK = 8192
_OP = "blockwise_adam"


class Moments(NamedTuple):
    """Both moments as bytes and scales.

    Attributes:
      m_codes, v_codes: uint8, of the parameter's shape.
      m_scale, v_scale: float32, largest magnitude of each block, see :meth:`AdamLayout.scale_shape`.
    """

    m_codes: jax.Array
    m_scale: jax.Array
    v_codes: jax.Array
    v_scale: jax.Array


class Hyper(NamedTuple):
    """Numbers of a step, Python floats or float32 scalars.

    Attributes:
      b1, b2: decays of the moments.
      correction1, correction2: ``1 - b1^t`` and ``1 - b2^t``.
      eps, eps_root: what is added to the root, and under it.
      rate, decay: learning rate and decoupled weight decay, for a step that changes parameters.
    """

    b1: jax.Array | float
    b2: jax.Array | float
    correction1: jax.Array | float
    correction2: jax.Array | float
    eps: jax.Array | float
    eps_root: jax.Array | float = 0.0
    rate: jax.Array | float = 1.0
    decay: jax.Array | float = 0.0

    def numbers(self) -> jax.Array:
        """float32 ``[10]``: the fields with ``1 - b1`` and ``1 - b2`` behind."""
        rest = (1 - self.b1, 1 - self.b2)  # of Python floats in double precision, as optax has it
        return jnp.stack([jnp.asarray(value, jnp.float32) for value in (*self, *rest)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamLayout:
    """How moments are stored.

    Attributes:
      block: values that share a scale, at most 8192.
      flat: whether the ravelled array is cut into blocks, and not its last axis.
      m_map, v_map: the 256 values of a code, ascending, with 0.
      keep_sign: a negative first moment never becomes 0 but the least negative value of its map.
      skip_nonfinite: where a gradient is not finite, nothing is changed and the moments become 0.
    """

    block: int
    flat: bool = False
    m_map: tuple[float, ...]
    v_map: tuple[float, ...]
    keep_sign: bool = True
    skip_nonfinite: bool = False

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"{_OP}: block must be at least 1, got {self.block}")
        for name in ("m_map", "v_map"):
            values = getattr(self, name)
            if len(values) != 256 or 0.0 not in values or not np.all(np.diff(values) >= 0):
                raise ValueError(f"{_OP}: {name} must be 256 ascending values with 0 among them")

    def rows(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Rows of an array of a shape, their length, and the values of a block."""
        size = math.prod(shape)
        last = size if self.flat or not shape else shape[-1]
        return size // max(last, 1), last, max(1, min(self.block, last))

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of an array of a shape."""
        rows, last, width = self.rows(shape)
        count = -(-last // width)
        return (rows * count,) if self.flat or not shape else (*shape[:-1], count)

    def zero(self, name: str) -> int:
        """Code of 0 in a map."""
        return getattr(self, name).index(0.0)


def middles(values: np.ndarray) -> np.ndarray:
    """Midpoints of neighbours, rounded down to float32: no float32 then falls on the wrong side of one."""
    exact = (values[1:].astype(np.float64) + values[:-1]) / 2
    rounded = exact.astype(np.float32)
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(-2)), rounded)


def tables(layout: AdamLayout) -> np.ndarray:
    """float32 ``[4, 256]``: values of m, midpoints of m, values of v, midpoints of v; the last midpoint is unused."""
    found = []
    for values in (layout.m_map, layout.v_map):
        exact = np.asarray(values, np.float32)
        found += [exact, np.append(middles(exact), np.float32(np.inf))]
    return np.stack(found)


def check_arrays(g: jax.Array, moments: Moments, p: jax.Array | None, layout: AdamLayout) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    for name, a in (("g", g), ("p", p)):
        if a is not None and a.dtype not in FLOATS:
            raise TypeError(f"{_OP}: {name} must be bfloat16, float16 or float32, got {a.dtype}")
    if p is not None and p.shape != g.shape:
        raise ValueError(f"{_OP}: p must have the shape {g.shape} of g, got {p.shape}")
    wanted = {"codes": (jnp.uint8, g.shape), "scale": (jnp.float32, layout.scale_shape(g.shape))}
    for name, a in moments._asdict().items():
        dtype, shape = wanted[name[2:]]
        if a.dtype != dtype or a.shape != shape:
            raise ValueError(
                f"{_OP}: {name} must be {jnp.dtype(dtype)} of shape {shape}, got {a.dtype} of shape {a.shape}"
            )
    if g.size >= 2**31:
        raise ValueError(f"{_OP}: g must have fewer than 2**31 values, got shape {g.shape}")
