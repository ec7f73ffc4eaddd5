"""Named products at real shapes: one weight in a hundred apart, as SpQR and SqueezeLLM keep them."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.specs import AffineSpec
from pallas_kernels.affine_matmul.specs import spec as affine_spec
from pallas_kernels.codebook_matmul.specs import CodebookSpec
from pallas_kernels.codebook_matmul.specs import spec as codebook_spec
from pallas_kernels.outlier_matmul.outliers import Outliers


@dataclasses.dataclass(frozen=True)
class OutlierSpec:
    """A packed product with ``capacity`` outliers."""

    base: AffineSpec | CodebookSpec
    capacity: int

    @property
    def name(self) -> str:
        """Name of the packed product and the number of outliers."""
        return f"{self.base.name}-{self.capacity}-outliers"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, tuple[jax.ShapeDtypeStruct | None, ...], Outliers]:
        """Shapes of x, the packed matrix and the outliers."""
        x, *base = self.base.arguments()
        assert x is not None  # activations always exist
        wide = jnp.uint16 if self.base.layout.rows <= 2**16 else jnp.int32
        outliers = Outliers(
            jax.ShapeDtypeStruct((self.base.layout.cols + 1,), jnp.int32),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((self.capacity,), wide),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((self.capacity,), jnp.float16),  # pyright: ignore[reportArgumentType]
        )
        return x, tuple(base), outliers


def _one_in_a_hundred(base: AffineSpec | CodebookSpec) -> OutlierSpec:
    return OutlierSpec(base, base.layout.rows * base.layout.cols // 100)


SPECS: tuple[OutlierSpec, ...] = (
    *(
        _one_in_a_hundred(affine_spec(title, m, bits=bits, zero_kind="real"))
        for title in ("Llama-3-8B/q", "Qwen3-0.6B/down", "SmolLM2-135M/gate")
        for bits in (3, 4)
        for m in (1, 16, 512)
    ),
    *(_one_in_a_hundred(codebook_spec("Llama-3-8B/q", m, levels=8)) for m in (1, 16)),
)
