"""Block sizes of the product on Hopper, and why a product does not fit that kernel."""

import dataclasses

from pallas_kernels.hopper_blocks import OUTPUTS, PREFILL_ROWS, SHARED, check_blocks, widest_blocks
from pallas_kernels.w4ax_matmul.layout import W4AxLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class MosaicConfig:
    """How the product is cut.

    Attributes:
      block_m: rows of activations of one program: 64 or 128. The sums of a block of inputs and those of all blocks
        together take a thread as many registers, so 256 would not fit.
      warpgroups: that multiply, 64 outputs each: 1 or 2. One more loads.
      stages: blocks of inputs in flight.
    """

    block_m: int
    warpgroups: int
    stages: int

    def __post_init__(self):
        check_blocks(self.block_m, (64, 128), self.warpgroups, self.stages)

    @property
    def block_n(self) -> int:
        """Outputs of one program."""
        return OUTPUTS * self.warpgroups

    def shared_bytes(self, layout: W4AxLayout, itemsize: int) -> int:
        """Bytes of shared memory: the ring of steps, and what is stored of a result of ``itemsize`` bytes a value."""
        step = self.block_m * layout.block + 4 * self.block_m + self.block_n * (layout.half + 4)
        return self.stages * step + itemsize * OUTPUTS * self.block_n


def mosaic_config(m: int, layout: W4AxLayout) -> MosaicConfig:
    """Block sizes by rule: the widest blocks that still fill the multiprocessors, and up to four steps in flight."""
    warpgroups, block_m = widest_blocks(m, layout.cols, ((2, 128), (1, 128), (2, 64)))
    stages = (MosaicConfig(block_m=block_m, warpgroups=warpgroups, stages=stages) for stages in (4, 3, 2))
    return next(config for config in stages if config.shared_bytes(layout, 4) <= SHARED)


def misfit(m: int, layout: W4AxLayout, config: MosaicConfig | None = None) -> str | None:
    """Reason why ``m`` rows of activations cannot be multiplied with a matrix of this layout, or None.

    Args:
      m: rows of activations.
      layout: of the matrix.
      config: block sizes; those of the rule when None.
    """
    chosen = config or mosaic_config(m, layout)
    shared = chosen.shared_bytes(layout, 4)
    for bad, what in (
        (m < PREFILL_ROWS, f"it is for at least {PREFILL_ROWS} rows of activations, got {m}"),
        (layout.block < 64, f"block must be 64, 128 or 256, got {layout.block}"),
        (
            layout.cols % chosen.block_n != 0,
            f"cols must be a multiple of the {chosen.block_n} of a block, got {layout.cols}",
        ),
        (shared > SHARED, f"{chosen.stages} stages take {shared} bytes of shared memory, and there are {SHARED}"),
    ):
        if bad:
            return what
    return None
