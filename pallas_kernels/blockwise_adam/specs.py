"""Named steps at real shapes: layers of three models, directions and moved parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.blockwise_adam.layout import AdamLayout, Hyper, Moments
from pallas_kernels.specs import layer


def dynamic_map(*, signed: bool) -> tuple[float, ...]:
    """The map of Dettmers et al. (2022, arXiv 2110.02861): midpoints of ever more cells in seven decades, 0 and 1."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade if signed else decade + 1) + 1)
        middle = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values.extend(middle)
        if signed:
            values.extend(-middle)
    return tuple(map(float, np.sort(np.asarray(values)).astype(np.float32)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamSpec:
    """A step of one layer's weight."""

    title: str
    shape: tuple[int, ...]
    layout: AdamLayout
    grad_dtype: str = "float32"
    param_dtype: str | None = None

    @property
    def name(self) -> str:
        """Layer, blocks, gradient, and the parameter's dtype or "direction" in one word."""
        axis = "flat" if self.layout.flat else "last"
        return f"{self.title}-b{self.layout.block}-{axis}-{self.grad_dtype}-{self.param_dtype or 'direction'}"

    def arguments(self) -> tuple:
        """Shapes of the gradient, the moments, the numbers, and the parameter where there is one."""
        scale = jax.ShapeDtypeStruct(self.layout.scale_shape(self.shape), jnp.float32)
        codes = jax.ShapeDtypeStruct(self.shape, jnp.uint8)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        moments = Moments(codes, scale, codes, scale)  # pyright: ignore[reportArgumentType]
        hyper = Hyper(*[number] * len(Hyper._fields))  # pyright: ignore[reportArgumentType]
        p = () if self.param_dtype is None else (jax.ShapeDtypeStruct(self.shape, self.param_dtype),)
        return (jax.ShapeDtypeStruct(self.shape, self.grad_dtype), moments, hyper, *p)


def spec(title: str, *, param: str | None, grad: str = "float32", block: int = 256, flat: bool = False) -> AdamSpec:
    """A spec of a named layer."""
    at = layer(title)
    layout = AdamLayout(block=block, flat=flat, m_map=dynamic_map(signed=True), v_map=dynamic_map(signed=False))
    return AdamSpec(title=title, shape=(at.inputs, at.outputs), layout=layout, grad_dtype=grad, param_dtype=param)


SPECS: tuple[AdamSpec, ...] = (
    *(spec(title, param=param) for title in ("Llama-3-8B/gate", "Qwen3-0.6B/gate") for param in (None, "float32")),
    spec("Llama-3-8B/gate", param="bfloat16", grad="bfloat16"),
    *(spec("SmolLM2-135M/q", param=param) for param in (None, "float32")),  # 576 outputs: the last block is short
    spec("SmolLM2-135M/gate", param="float32", flat=True),
    spec("Qwen3-0.6B/gate", param="float32", block=2048, flat=True),
)
