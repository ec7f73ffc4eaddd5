"""Options of SpQR."""

import dataclasses
import math
from typing import Literal

# The relative threshold of the reference's recommended command.
_DEFAULT_THRESHOLD = 0.2
# Room when only a threshold is given: at that threshold about 2 % of a decoder's weights are outliers.
_DEFAULT_CAPACITY = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpQR:
    """Sparse-Quantized Representation (Dettmers et al., 2023, arXiv 2306.03078).

    Attributes:
      bits: code width, 1 to 8; 3 or 4 in the paper.
      group: inputs that share a scale and a zero; the last group is short when it does not divide the inputs.
      stat_bits: width of the codes of scales and zeros, 1 to 8; None keeps both in float16.
      stat_group: outputs whose scales (and whose zeros) share a grid.
      outlier_threshold: a weight is an outlier when keeping it saves more than this times the mean over inputs of
        ``var(w_i) / U_ii²``: the higher, the fewer. ``inf`` for none. None: 0.2, unless ``outlier_share`` is given.
      outlier_share: wanted share of outliers instead, in (0, 0.2]; the threshold is then found by bisection.
      capacity: share of the weights that there is room for as outliers, in (0, 1]; room that stays empty is stored
        all the same until ``leaf.outliers.trim_outliers`` cuts it off. When more are found, those with the largest
        excess stay. None: ``outlier_share``, or 0.02.
      order: "act" visits inputs by falling Hessian diagonal, "spearman" puts inputs with like-ranked weights next to
        each other, "identity" keeps them. Anything but "identity" stores the order.
      damp, damp_step: damping relative to the mean Hessian diagonal, and by how much it rises when a factor fails.
      sym: symmetric grids, zero at the middle; only with ``stat_bits=None``, for a constant zero has no statistics.
      loo: find the outliers of a group before its grid is fitted, by leaving one out; without it a grid spans all.
      round_zero: integer zeros. The range of a group then includes 0, which the reference does not ask for, so that
        the zero is a code; with ``stat_bits >= bits`` those codes are stored as they are.
      bisections: steps of the search for ``outlier_share``.
      share_outputs: outputs, evenly spaced runs of ``stat_group``, on which that search looks.
      value_dtype: storage type of outliers.
    """

    bits: int = 3
    group: int = 16
    stat_bits: int | None = 3
    stat_group: int = 16
    outlier_threshold: float | None = None
    outlier_share: float | None = None
    capacity: float | None = None
    order: Literal["act", "identity", "spearman"] = "act"
    damp: float = 1.0
    damp_step: float = 0.01
    sym: bool = False
    loo: bool = True
    round_zero: bool = False
    bisections: int = 8
    share_outputs: int = 64
    value_dtype: str = "float16"

    def __post_init__(self):
        if self.bits not in range(1, 9):
            raise ValueError(f"SpQR.bits must be in 1..8, got {self.bits}")
        if self.stat_bits is not None and self.stat_bits not in range(1, 9):
            raise ValueError(f"SpQR.stat_bits must be in 1..8, or None, got {self.stat_bits}")
        low = 2 if self.loo else 1
        if self.group < low:
            why = "leaving one out of a group needs two" if self.loo else "a group has at least one input"
            raise ValueError(f"SpQR.group must be >= {low} ({why}), got {self.group}")
        for field in ("stat_group", "bisections", "share_outputs"):
            if getattr(self, field) < 1:
                raise ValueError(f"SpQR.{field} must be >= 1, got {getattr(self, field)}")
        if self.outlier_threshold is not None and not self.outlier_threshold > 0:
            raise ValueError(f"SpQR.outlier_threshold must be > 0, got {self.outlier_threshold}")
        if self.outlier_threshold is not None and self.outlier_share is not None:
            raise ValueError(
                "SpQR.outlier_threshold and SpQR.outlier_share exclude each other, got "
                f"{self.outlier_threshold} and {self.outlier_share}"
            )
        if self.outlier_share is not None and not 0 < self.outlier_share <= 0.2:
            raise ValueError(f"SpQR.outlier_share must be in (0, 0.2], got {self.outlier_share}")
        if self.capacity is not None and not 0 < self.capacity <= 1:
            raise ValueError(f"SpQR.capacity must be in (0, 1], got {self.capacity}")
        if self.order not in ("act", "identity", "spearman"):
            raise ValueError(f"SpQR.order must be 'act', 'identity' or 'spearman', got {self.order!r}")
        if not self.damp > 0 or self.damp_step < 0:
            raise ValueError(f"SpQR.damp must be > 0 and damp_step >= 0, got {self.damp} and {self.damp_step}")
        if self.sym and self.stat_bits is not None:
            raise ValueError(
                f"SpQR.sym=True has no zeros to take statistics of: stat_bits must be None, got {self.stat_bits}"
            )
        if self.sym and self.round_zero:
            raise ValueError("SpQR.sym=True has its zero at the middle of the range: round_zero must be False")
        if self.value_dtype not in ("float16", "bfloat16", "float32"):
            raise ValueError(f"SpQR.value_dtype must be float16, bfloat16 or float32, got {self.value_dtype!r}")

    @property
    def tau(self) -> float:
        """The relative threshold where it is not searched for."""
        return _DEFAULT_THRESHOLD if self.outlier_threshold is None else self.outlier_threshold

    @property
    def has_outliers(self) -> bool:
        """Whether an overlay is stored at all."""
        return self.outlier_share is not None or math.isfinite(self.tau)

    def slots(self, weights: int) -> int:
        """Number of outliers that a matrix of so many weights has room for."""
        share = self.capacity
        if share is None:
            share = _DEFAULT_CAPACITY if self.outlier_share is None else self.outlier_share
        return min(weights, max(1, round(share * weights)))
