"""Options of GPTQ."""

import dataclasses
from typing import Literal

from compressjax.quantization.rtn import check_grid_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Second-order one-shot quantisation (Frantar et al., 2022, arXiv 2210.17323), with its later extensions.

    Attributes:
      bits: code width, 2 to 8.
      group: inputs that share a grid; -1 for all; the last group is short when it does not divide the inputs.
      sym: symmetric grid without a stored zero.
      order: visiting order: "none" (left to right), "act" (falling Hessian diagonal), "group_aware" (GAR).
      static_groups: fit all grids on the given weights before the sweep; otherwise each group's grid is fitted when
        the sweep reaches it, on weights already compensated. "act" without static groups stores a group index per
        input (32 bits each, and slow to run).
      grid: "minmax", "mse" (shrunken range with the least ``|ŵ - w|^mse_norm``), or "hessian": the shrunken range
        with the least ``(ŵ - w)² / U_ii²``, the error as the sweep will weigh it.
      mse_norm, mse_steps, mse_max_shrink: exponent ("mse"), fineness and depth of that search.
      damp, damp_step: damping relative to the mean Hessian diagonal, and by how much it rises when a factor fails.
      block: inputs swept between two updates of the rest; changes speed only. The paper has 128; the smaller block
        stays in a CPU core's cache.
      asymmetric: use inputs of the uncompressed network too. "gptaq" (Li et al., 2025, arXiv 2504.02692) adds their
        term to every step; "target" first moves the weight to the exact minimiser and then runs plain GPTQ.
      alpha: how far "gptaq" or "target" go; 0 is plain GPTQ. Their usual values are 0.25 and 1.
      foem_beta: first-order term of FOEM, 0.1 to 0.25 where used; 0 leaves it out.
      levels: "uniform" grids; "ternary" {low, 0, high} per group; "kmeans" tables of ``2**bits`` levels per group.
      refits: rounds of solving for the table under the full Hessian at fixed codes and sweeping again ("kmeans").
      dead_inputs: what becomes of the weights of inputs that never fired in calibration: "round" rounds them to the
        nearest level, "zero" drops them as the paper's code does. Little or narrow calibration data leaves inputs
        unfired that later fire.
      min_tokens: fewer calibration tokens than this share of the inputs' width means round-to-nearest.
      scale_dtype: storage dtype of scales and tables; the sweep uses the stored values.
    """

    bits: int = 4
    group: int = 128
    sym: bool = False
    order: Literal["none", "act", "group_aware"] = "act"
    static_groups: bool = True
    grid: Literal["minmax", "mse", "hessian"] = "minmax"
    mse_norm: float = 2.4
    mse_steps: int = 100
    mse_max_shrink: float = 0.8
    damp: float = 0.01
    damp_step: float = 0.01
    block: int = 32
    asymmetric: Literal["none", "gptaq", "target"] = "none"
    alpha: float = 0.25
    foem_beta: float = 0.0
    levels: Literal["uniform", "ternary", "kmeans"] = "uniform"
    refits: int = 2
    dead_inputs: Literal["round", "zero"] = "round"
    min_tokens: float = 0.0
    scale_dtype: str = "float16"

    def __post_init__(self):
        check_grid_fields(self)
        for field, allowed in (
            ("order", ("none", "act", "group_aware")),
            ("grid", ("minmax", "mse", "hessian")),
            ("asymmetric", ("none", "gptaq", "target")),
            ("dead_inputs", ("round", "zero")),
            ("levels", ("uniform", "ternary", "kmeans")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"GPTQ.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if not self.damp > 0 or self.damp_step < 0:
            raise ValueError(f"GPTQ.damp must be > 0 and damp_step >= 0, got {self.damp} and {self.damp_step}")
        for field, low in (("block", 1), ("alpha", 0), ("foem_beta", 0), ("refits", 0), ("min_tokens", 0)):
            if getattr(self, field) < low:
                raise ValueError(f"GPTQ.{field} must be >= {low}, got {getattr(self, field)}")
        if self.levels != "uniform" and not self.static_groups:
            raise ValueError(f"GPTQ.levels={self.levels!r} needs static_groups=True")
        if self.levels != "uniform" and self.sym:
            raise ValueError(f"GPTQ.levels={self.levels!r} has no symmetric form: leave sym=False")
        if self.levels == "ternary" and self.bits != 2:
            raise ValueError(f"GPTQ.levels='ternary' stores 2-bit codes: bits must be 2, got {self.bits}")
