"""Options of decoupleQ."""

import dataclasses
from typing import Literal

from compressjax.training.block_tuning import BlockTuning

# The reference's LLaMA recipe: plain Adam at a constant absolute rate, one sequence at a time, four passes.
PAPER_TUNING = BlockTuning(epochs=4, lr=1e-5, lr_unit="absolute", schedule="constant", b2=0.99, eps=2e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoupleQ:
    """Alternating integer and floating parts (Guo et al., 2024, arXiv 2404.12759).

    Attributes:
      bits: code width, 1 to 8.
      group: inputs that share a scale and a real zero; -1 for all; must divide the inputs.
      sym: no zero; only with one group for all inputs.
      max_iters: rounds of the alternation, >= 1; 1 is GPTQ on min-max grids.
      solver: integer step: "gptq", or "pgd", projected gradient descent with rounding input by input, whose cost grows
        with the cube of the inputs.
      pgd_iters: Adam steps before the first rounding ("pgd").
      round_iters: Adam steps after each input's rounding ("pgd").
      lr: Adam's rate, in units of the weights ("pgd").
      shrink_steps, max_shrink: fineness and depth of the search for a shrunken range, one factor per output.
      shrink_stride: the search tries every so many steps and then halves the distance around the best; a power of two.
        1 is the reference's full search.
      polish: rounds of coordinate descent over the integers after each sweep (QuantEase, Behdin et al., 2023, arXiv
        2309.01885; "gptq" only). The reference has none.
      alpha: how far the weight is first moved towards the one that gives the uncompressed network's outputs on the
        compressed one's inputs, 0 to 1; needs calibration block by block. The reference has 0.
      damp: damping relative to the mean Hessian diagonal; once in the objective and once more in the factor.
      order: visiting order of the integer step: "act" (falling Hessian diagonal) or "none".
      stop_rate: stop once a step improves less than this share of the outputs.
      block: inputs swept between two updates of the rest; changes speed only.
      out_chunk: outputs whose scales and zeros are solved for at once; changes memory only.
      tuning: the block stage, run by the block-sequential driver; None for none.
      scale_dtype: storage dtype of scales and zeros; every step works on stored values.
    """

    bits: int = 2
    group: int = 64
    sym: bool = False
    max_iters: int = 4
    solver: Literal["gptq", "pgd"] = "gptq"
    pgd_iters: int = 200
    round_iters: int = 5
    lr: float = 1e-3
    shrink_steps: int = 200
    max_shrink: float = 0.8
    shrink_stride: int = 8
    polish: int = 0
    alpha: float = 0.0
    damp: float = 0.01
    order: Literal["act", "none"] = "act"
    stop_rate: float = 1e-4
    block: int = 32
    out_chunk: int = 256
    tuning: BlockTuning | None = PAPER_TUNING
    scale_dtype: str = "float16"

    def __post_init__(self):
        if self.bits not in range(1, 9):
            raise ValueError(f"DecoupleQ.bits must be in 1..8, got {self.bits}")
        if self.group != -1 and self.group < 2:
            raise ValueError(f"DecoupleQ.group must be -1 (all inputs) or >= 2, got {self.group}")
        if self.sym and (self.group != -1 or self.bits < 2):
            raise ValueError(
                f"DecoupleQ.sym=True needs group=-1 and bits >= 2, got group {self.group} and bits {self.bits}"
            )
        for field, low in (
            ("max_iters", 1),
            ("pgd_iters", 0),
            ("round_iters", 0),
            ("polish", 0),
            ("shrink_steps", 1),
            ("stop_rate", 0),
            ("block", 1),
            ("out_chunk", 1),
        ):
            if getattr(self, field) < low:
                raise ValueError(f"DecoupleQ.{field} must be >= {low}, got {getattr(self, field)}")
        if not self.lr > 0 or not self.damp > 0:
            raise ValueError(f"DecoupleQ.lr and damp must be > 0, got {self.lr} and {self.damp}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"DecoupleQ.alpha must be in [0, 1], got {self.alpha}")
        if not 0 < self.max_shrink < 1:
            raise ValueError(f"DecoupleQ.max_shrink must be in (0, 1), got {self.max_shrink}")
        stride = self.shrink_stride
        if stride < 1 or stride & (stride - 1):
            raise ValueError(f"DecoupleQ.shrink_stride must be a power of two >= 1, got {stride}")
        for field, allowed in (
            ("solver", ("gptq", "pgd")),
            ("order", ("act", "none")),
            ("scale_dtype", ("float16", "bfloat16", "float32")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"DecoupleQ.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if self.tuning is not None and not isinstance(self.tuning, BlockTuning):
            raise TypeError(f"DecoupleQ.tuning must be a BlockTuning or None, got {type(self.tuning).__name__}")
