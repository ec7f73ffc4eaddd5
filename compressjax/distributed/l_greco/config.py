"""What L-GreCo compresses with, between which limits, and how often it looks again."""

import dataclasses
import math
import re
from typing import Literal

import numpy as np

Plan = tuple[int, ...]
"""A level, an index into `LGreco.levels`, for every unit; ``()`` compresses nothing."""

_BASES = {"powersgd": 4.0, "topk": 0.01, "qsgd": 4.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LGreco:
    """Layer-wise adaptive gradient compression.

    Once per period every layer's error at every level is measured on accumulated gradients, and dynamic programming
    finds the plan of fewest bytes whose errors add up to no more than those of the uniform base level.

    Paper: Markov et al., 2022, arXiv 2210.17357.

    Attributes:
      family: "powersgd" (levels are ranks), "topk" (densities), "qsgd" (bits, min-max buckets as in CGX).
      base: the uniform level to match: rank 4 (32 for transformers in the paper), density 0.01, 4 bits; None for these.
      lo, hi: range of ranks around the base; densities reach from a tenth of the base to ten times it.
      grid: number of levels; None for every rank, 17 densities, 2 to 8 bits. The base is always one of them.
      alpha: multiplies the budget.
      bins: resolution of the budget in the dynamic programme.
      period: steps between adaptations.
      acc_steps: steps before an adaptation over which gradients are accumulated.
      warmup: steps without any compression.
      error: "l2" adds norms, "l2sq" their squares, which keeps one large gradient from taking the whole budget.
      min_elems: smaller weights, vectors and weights that would not halve go uncompressed, in one sum.
      error_feedback: what was not sent is added to the next gradient; None for all families but "qsgd".
      svd: "exact" singular values for the table of ranks, or ``svd_iters`` steps of subspace iteration ("power").
      svd_iters: of "power".
      bucket: of "qsgd".
      stochastic: rounds codes of "qsgd" at random.
      stacked: regular expressions of weights whose first axis counts layers, each a unit of its own. Other arrays of
        more than two axes are taken as matrices ``[product of all but the last, last]``.
      seed: of warm starts and random rounding.
    """

    family: Literal["powersgd", "topk", "qsgd"] = "powersgd"
    base: float | None = None
    lo: float = 0.5
    hi: float = 2.0
    grid: int | None = None
    alpha: float = 1.0
    bins: int = 10_000
    period: int = 100
    acc_steps: int = 10
    warmup: int = 1000
    error: Literal["l2", "l2sq"] = "l2"
    min_elems: int = 1024
    error_feedback: bool | None = None
    svd: Literal["exact", "power"] = "exact"
    svd_iters: int = 5
    bucket: int = 512
    stochastic: bool = False
    stacked: tuple[str, ...] = (r"(^|/)blocks/",)
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (("family", tuple(_BASES)), ("error", ("l2", "l2sq")), ("svd", ("exact", "power"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"LGreco.{name} must be one of {allowed}, got {getattr(self, name)!r}")
        base = _BASES[self.family] if self.base is None else float(self.base)
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "stacked", tuple(self.stacked))
        if self.error_feedback is None:
            object.__setattr__(self, "error_feedback", self.family != "qsgd")
        fits = {
            "powersgd": base >= 1 and base == int(base),
            "topk": 0 < base <= 1,
            "qsgd": 2 <= base <= 8 and base == int(base),
        }
        if not fits[self.family]:
            allowed = {"powersgd": "a whole rank >= 1", "topk": "a density in (0, 1]", "qsgd": "2 to 8 whole bits"}
            raise ValueError(f"LGreco.base must be {allowed[self.family]} for {self.family}, got {base}")
        if not (0 < self.lo <= 1 <= self.hi and math.isfinite(self.hi)):
            raise ValueError(f"LGreco.lo must be in (0, 1] and hi >= 1, got {self.lo} and {self.hi}")
        if not self.alpha > 0:
            raise ValueError(f"LGreco.alpha must be > 0, got {self.alpha}")
        for name, least in (("bins", 1), ("period", 1), ("acc_steps", 1), ("warmup", 0), ("min_elems", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"LGreco.{name} must be >= {least}, got {getattr(self, name)}")
        if self.acc_steps > self.period:
            raise ValueError(f"LGreco.acc_steps must be at most period={self.period}, got {self.acc_steps}")
        if self.grid is not None and self.grid < 1:
            raise ValueError(f"LGreco.grid must be None or >= 1, got {self.grid}")
        if self.bucket < 32 or self.bucket % 32:
            raise ValueError(f"LGreco.bucket must be a positive multiple of 32, got {self.bucket}")
        for pattern in self.stacked:
            re.compile(pattern)

    @property
    def levels(self) -> tuple[float, ...]:
        """Ranks, densities or bits, from fewest bytes to most."""
        assert self.base is not None  # set on construction
        if self.family == "powersgd":
            every = np.arange(max(1, math.floor(self.base * self.lo)), math.ceil(self.base * self.hi) + 1)
        elif self.family == "qsgd":
            every = np.arange(2, 9)
        else:
            half = (17 if self.grid is None else self.grid) // 2
            steps = np.arange(-half, half + 1) / max(half, 1)
            return tuple(sorted({float(min(1.0, self.base * 10.0**step)) for step in steps}))
        if self.grid is not None and self.grid < len(every):
            every = every[np.unique(np.linspace(0, len(every) - 1, self.grid).round().astype(int))]
        return tuple(float(level) for level in sorted({*every.tolist(), self.base}))

    @property
    def base_level(self) -> int:
        """Index of the base among the levels."""
        assert self.base is not None
        return int(np.argmin(np.abs(np.asarray(self.levels) - self.base)))

    def adaptation_due(self, steps_done: int) -> bool:
        """Whether a plan should be made anew after so many steps."""
        return steps_done % self.period == 0 and steps_done >= max(self.period, self.warmup)
