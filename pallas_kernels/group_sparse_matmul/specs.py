"""Named products at real shapes: half of the groups stored, as GQSA has them."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.group_sparse_matmul.layout import GroupSparseLayout, StoredGroups
from pallas_kernels.specs import layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSparseSpec:
    """A product of ``m`` rows of activations with one layer."""

    title: str
    m: int
    layout: GroupSparseLayout
    dtype: str = "bfloat16"
    scale_dtype: str = "float16"

    @property
    def name(self) -> str:
        """Layer, kind of weight and rows in one word."""
        lay = self.layout
        kind = f"w{lay.bits}g{lay.group}-{'ell' if lay.equal else 'bsr'}-{lay.zero_kind}"
        return f"{self.title}-{kind}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, StoredGroups]:
        """Shapes of x and the stored groups."""
        lay = self.layout
        groups = lay.rows // lay.group
        zero = (
            jax.ShapeDtypeStruct(lay.stored, self.scale_dtype)
            if lay.zero_kind == "real"
            else jax.ShapeDtypeStruct((*lay.stored[:-1], lay.zero_words), jnp.uint32)
        )
        stored = StoredGroups(
            jax.ShapeDtypeStruct((lay.words, *lay.stored), jnp.uint32),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct(lay.stored, self.scale_dtype),  # pyright: ignore[reportArgumentType]
            zero,  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct(lay.stored, jnp.uint8 if groups <= 256 else jnp.uint16),  # pyright: ignore[reportArgumentType]
            None if lay.equal else jax.ShapeDtypeStruct((lay.cols + 1,), jnp.int32),  # pyright: ignore[reportArgumentType]
        )
        return jax.ShapeDtypeStruct((self.m, lay.rows), self.dtype), stored


def spec(
    title: str, m: int, *, bits: int = 4, group: int = 16, equal: bool = True, real: bool = False
) -> GroupSparseSpec:
    """A spec of a named layer that stores half of its groups."""
    at = layer(title)
    kept = at.inputs // group // 2
    layout = GroupSparseLayout(
        bits=bits,
        group=group,
        rows=at.inputs,
        cols=at.outputs,
        kept=kept if equal else kept * at.outputs,
        equal=equal,
        zero_kind="real" if real else "int",
    )
    return GroupSparseSpec(title=title, m=m, layout=layout)


SPECS: tuple[GroupSparseSpec, ...] = (
    *(spec("Llama-3-8B/q", m, equal=equal) for equal in (True, False) for m in (1, 8)),
    *(spec("Qwen3-0.6B/down", 1, equal=equal) for equal in (True, False)),
    spec("SmolLM2-135M/gate", 1, equal=False),
    spec("Llama-3-8B/q", 1, bits=2),
    spec("Llama-3-8B/q", 1, group=64, real=True),
)
