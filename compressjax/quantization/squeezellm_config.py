"""Options of SqueezeLLM."""

import dataclasses
from typing import Literal

from compressjax.numerics.kmeans import STARTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeLLM:
    """Sensitivity-weighted tables of levels and a sparse remainder (Kim et al., 2023, arXiv 2306.07629).

    Attributes:
      bits: code width, 1 to 8; 3 or 4 in the paper. Every output has a table of ``2**bits`` levels.
      outlier_share: share of the matrix's weights stored apart for their size, 0 for none.
      sensitive_share: share stored apart for their Fisher information, taken before the other; 0 for none.
      fisher: "loss" reads the diagonal of the empirical Fisher information of the network's loss, from
        ``calibrate(..., Fisher(loss))``, in one pass; "act" takes the energy of each input instead, the Hessian's
        diagonal, and so needs no gradients and works block by block.
      floor: least Fisher information of a weight, relative to the mean of its output's. Outputs that lean on two or
        three weights otherwise waste levels on them; 0 is the paper's.
      iterations: Lloyd steps of each start.
      starts: starts of the k-means, of "quantile", "range" and "kmeans++"; the best one is kept per output. The
        reference runs k-means++ once.
      exact: find the best levels by dynamic programming instead; for small matrices.
      refine: "sweep" fits the tables to ``1/U_ii²`` and then rounds input by input as GPTQ does, compensating errors;
        an extension, not the paper's method.
      damp, damp_step: of that sweep, as in ``GPTQ``.
      lut_dtype, value_dtype: storage types of levels and of weights stored apart.
    """

    bits: int = 3
    outlier_share: float = 0.0045
    sensitive_share: float = 0.0005
    fisher: Literal["loss", "act"] = "loss"
    floor: float = 1e-4
    iterations: int = 50
    starts: tuple[str, ...] = STARTS
    exact: bool = False
    refine: Literal["sweep"] | None = None
    damp: float = 0.01
    damp_step: float = 0.01
    lut_dtype: str = "float16"
    value_dtype: str = "float16"

    def __post_init__(self):
        if self.bits not in range(1, 9):
            raise ValueError(f"SqueezeLLM.bits must be in 1..8, got {self.bits}")
        for field in ("outlier_share", "sensitive_share", "floor"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"SqueezeLLM.{field} must be >= 0, got {getattr(self, field)}")
        if self.outlier_share + self.sensitive_share >= 0.5:
            raise ValueError(
                "SqueezeLLM.outlier_share and sensitive_share must sum to less than 0.5, got "
                f"{self.outlier_share} and {self.sensitive_share}"
            )
        for field, allowed in (("fisher", ("loss", "act")), ("refine", (None, "sweep"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"SqueezeLLM.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if self.iterations < 1:
            raise ValueError(f"SqueezeLLM.iterations must be >= 1, got {self.iterations}")
        if not isinstance(self.starts, tuple) or not self.starts or set(self.starts) - set(STARTS):
            raise ValueError(f"SqueezeLLM.starts must be a tuple of one or more of {STARTS}, got {self.starts!r}")
        if not self.damp > 0 or self.damp_step < 0:
            raise ValueError(f"SqueezeLLM.damp must be > 0 and damp_step >= 0, got {self.damp} and {self.damp_step}")
        for field in ("lut_dtype", "value_dtype"):
            if getattr(self, field) not in ("float16", "bfloat16", "float32"):
                raise ValueError(
                    f"SqueezeLLM.{field} must be float16, bfloat16 or float32, got {getattr(self, field)!r}"
                )

    def slots(self, weights: int) -> tuple[int, int]:
        """Numbers of sensitive and of large weights that are stored apart from a matrix of so many."""
        return round(self.sensitive_share * weights), round(self.outlier_share * weights)
