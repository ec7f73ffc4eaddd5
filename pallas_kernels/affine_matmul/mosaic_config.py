"""Block sizes of the product on Hopper, and why a product does not fit that kernel."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.hopper_blocks import OUTPUTS, PREFILL_ROWS, SHARED, check_blocks, widest_blocks

_DEPTH = 16  # of one wgmma on 16-bit operands
_STEP_ACTIVATIONS = 32 * 1024  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class MosaicConfig:
    """How the product is cut.

    Attributes:
      block_m: rows of activations of one program: 64, 128 or 256.
      warpgroups: that multiply, 64 outputs each: 1 or 2. One more loads.
      parts: steps that one packed tile is cut into; each reads the tile's words and takes its share of the fields.
      stages: steps in flight.
    """

    block_m: int
    warpgroups: int
    parts: int
    stages: int

    def __post_init__(self):
        check_blocks(self.block_m, (64, 128, 256), self.warpgroups, self.stages)
        if self.parts not in (1, 2, 4, 8, 16):
            raise ValueError(f"MosaicConfig.parts must be 1, 2, 4, 8 or 16, got {self.parts}")

    @property
    def block_n(self) -> int:
        """Outputs of one program."""
        return OUTPUTS * self.warpgroups


def mosaic_config(m: int, layout: AffineLayout) -> MosaicConfig:
    """Block sizes by rule: the widest blocks that still fill the multiprocessors, up to 32 KB of activations a step."""
    warpgroups, block_m = widest_blocks(m, layout.cols, ((2, 256), (2, 128), (1, 128)))
    parts = max(2, 2 * block_m * layout.tile // _STEP_ACTIVATIONS)
    while parts > 1 and not _steps_share_groups(layout, parts):
        parts //= 2
    words = 4 * layout.packing.words * OUTPUTS * warpgroups
    step = 2 * block_m * layout.tile // parts + words
    stored = 2 * OUTPUTS * OUTPUTS * warpgroups
    return MosaicConfig(
        block_m=block_m, warpgroups=warpgroups, parts=parts, stages=max(2, min(4, (SHARED - stored) // step))
    )


def _steps_share_groups(layout: AffineLayout, parts: int) -> bool:
    """Whether a step of ``tile / parts`` rows holds whole fields and whole groups, or lies in one group."""
    rows = layout.tile // parts
    return rows % layout.packing.run == 0 and (
        layout.groups == 1 or rows % layout.group == 0 or layout.group % rows == 0
    )


def misfit(
    m: int, dtype: Any, scale_dtype: Any, layout: AffineLayout, config: MosaicConfig | None = None
) -> str | None:
    """Reason why ``m`` rows of activations cannot be multiplied with a matrix of this layout, or None.

    Args:
      m: rows of activations.
      dtype, scale_dtype: of the activations and of the scale.
      layout: of the matrix.
      config: block sizes; those of the rule when None.
    """
    run, dtype, scale_dtype = layout.packing.run, jnp.dtype(dtype), jnp.dtype(scale_dtype)
    chosen = config or mosaic_config(m, layout)
    for bad, what in (
        (m < PREFILL_ROWS, f"it is for at least {PREFILL_ROWS} rows of activations, got {m}"),
        (dtype not in (jnp.bfloat16, jnp.float16), f"x must be bfloat16 or float16, got {dtype.name}"),
        (
            scale_dtype not in (jnp.bfloat16, jnp.float16, jnp.float32),
            f"scale must be bfloat16, float16 or float32, got {scale_dtype.name}",
        ),
        (layout.bits not in (2, 4, 8), f"codes must have 2, 4 or 8 bits, one plane of words, got {layout.bits}"),
        (
            run % _DEPTH != 0,
            f"{layout.bits} bits at tile {layout.tile} give runs of {run} rows, a wgmma takes {_DEPTH} at a time",
        ),
        (layout.rows % layout.tile != 0, f"rows must be a multiple of tile {layout.tile}, got {layout.rows}"),
        (
            layout.cols % chosen.block_n != 0,
            f"cols must be a multiple of the {chosen.block_n} of a block, got {layout.cols}",
        ),
        (
            layout.groups > 1 and layout.group % run != 0,
            f"group must be a multiple of the {run} rows of a run, got {layout.group}",
        ),
        (
            not _steps_share_groups(layout, chosen.parts),
            f"steps of {layout.tile}/{chosen.parts} rows cross groups of {layout.group} or cut a run of {run}",
        ),
    ):
        if bad:
            return what
    return None
