"""Options of GQSA and of its two recovery stages."""

import dataclasses
from typing import Literal

from compressjax.quantization.rtn import check_grid_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class BQPO:
    """Block quantisation-parameter optimisation: a block's kept weights, scales and zeros fitted to its dense output.

    As part of a method it runs after each block; as ``tuning=BQPO()`` of the block-by-block driver it gives any method
    with uniform or sparse leaves the same recovery. Rates are in units of what they move, so that they suit layers of
    any size; they fall to zero on a cosine. There is no weight decay: it would shrink what scales decode.

    Attributes:
      epochs: passes over the calibration chunks; 0 leaves the block alone.
      batch: chunks per step, see ``sequential.in_chunks``.
      lr_weights: Adam's step for kept weights, as a share of their root mean square; 0 keeps them.
      lr_scales: the same for scales.
      lr_zeros: the same for zeros, in codes.
      norms: also train the block's norms.
      lr_norms: Adam's step for them, as a share of their root mean square.
      targets: "same": the dense block's output on the inputs that the compressed one sees; "original": on those of
        the uncompressed network.
    """

    epochs: int = 2
    batch: int = 1
    lr_weights: float = 0.02
    lr_scales: float = 2e-3
    lr_zeros: float = 0.01
    norms: bool = False
    lr_norms: float = 1e-3
    targets: Literal["same", "original"] = "same"

    def __post_init__(self):
        for field, low in (("epochs", 0), ("batch", 1)):
            if getattr(self, field) < low:
                raise ValueError(f"BQPO.{field} must be >= {low}, got {getattr(self, field)}")
        for field in ("lr_weights", "lr_scales", "lr_zeros", "lr_norms"):
            if not getattr(self, field) >= 0:
                raise ValueError(f"BQPO.{field} must be >= 0, got {getattr(self, field)}")
        if self.targets not in ("same", "original"):
            raise ValueError(f"BQPO.targets must be 'same' or 'original', got {self.targets!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class E2E:
    """End-to-end optimisation of quantisation parameters: scales of the whole model on its own loss.

    Attributes:
      lr: Adam's step for scales (and real zeros), as a share of each array's root mean square; falls to zero on a
        cosine. The paper's 1e-5 to 2e-5 are about a thousandth of the scales of its models.
      epochs: passes over the batches.
      real_zeros: also train the zeros of group-sparse leaves, which are then stored in the scales' dtype.
    """

    lr: float = 1e-3
    epochs: int = 1
    real_zeros: bool = False

    def __post_init__(self):
        if not self.lr >= 0:
            raise ValueError(f"E2E.lr must be >= 0, got {self.lr}")
        if self.epochs < 1:
            raise ValueError(f"E2E.epochs must be >= 1, got {self.epochs}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GQSA:
    """Whole groups of inputs pruned per output, the rest in few bits (Zeng et al., 2024, arXiv 2412.17560).

    Attributes:
      bits: code width, 2 to 8.
      group: inputs that are kept or dropped together and share a scale and a zero.
      sparsity: share of groups that are dropped, in [0, 1).
      scope: "row": every output keeps equally many groups (stored without row pointers); "matrix": the best groups of
        the whole matrix are kept.
      least: groups that every output keeps at least, in scope "matrix".
      score: of a weight, averaged over its group: "wanda" ``w² H_ii``, "obs" ``w² / [H⁻¹]_ii``, "magnitude" ``w²``.
      init: "sweep": prune and round in one error-compensating sweep; "ls": least squares on the kept groups, then
        rounding to nearest; "mask": rounding of the weights as they are.
      refine: steps of conjugate gradients that move the kept weights towards least squares before the sweep, which
        itself can only push the loss of a pruned weight onto later inputs.
      order: visiting order of the sweep, "none" or "group_aware", as in ``GPTQ``.
      grid, mse_norm, mse_steps, mse_max_shrink: as in ``GPTQ``; "hessian" is for the sweep only.
      damp, damp_step: as in ``GPTQ``.
      scale_dtype: storage dtype of the scales.
      bqpo: recovery of each block, when the model is compressed block by block.
    """

    bits: int = 4
    group: int = 16
    sparsity: float = 0.5
    scope: Literal["row", "matrix"] = "matrix"
    least: int = 0
    score: Literal["wanda", "obs", "magnitude"] = "wanda"
    init: Literal["sweep", "ls", "mask"] = "sweep"
    refine: int = 16
    order: Literal["none", "group_aware"] = "none"
    grid: Literal["minmax", "mse", "hessian"] = "minmax"
    mse_norm: float = 2.4
    mse_steps: int = 100
    mse_max_shrink: float = 0.8
    damp: float = 0.01
    damp_step: float = 0.01
    scale_dtype: str = "float16"
    bqpo: BQPO = BQPO()

    def __post_init__(self):
        check_pruning_fields(self)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"GQSA.sparsity must be in [0, 1), got {self.sparsity}")
        if self.scope not in ("row", "matrix"):
            raise ValueError(f"GQSA.scope must be 'row' or 'matrix', got {self.scope!r}")
        if self.least < 0:
            raise ValueError(f"GQSA.least must be >= 0, got {self.least}")
        if self.group < 2 or self.group * self.bits % 32:
            raise ValueError(
                f"GQSA.group * bits must be a multiple of 32 to fill words, got {self.group} * {self.bits}"
            )


def check_pruning_fields(cfg) -> None:
    """Validates the fields that ``GQSA`` and ``NM`` share.

    Raises:
      ValueError: naming the config, the field, what is allowed and what was given.
    """
    name = type(cfg).__name__
    check_grid_fields(cfg)
    for field, allowed in (
        ("score", ("wanda", "obs", "magnitude")),
        ("init", ("sweep", "ls", "mask")),
        ("order", ("none", "group_aware")),
        ("grid", ("minmax", "mse", "hessian")),
    ):
        if getattr(cfg, field) not in allowed:
            raise ValueError(f"{name}.{field} must be one of {allowed}, got {getattr(cfg, field)!r}")
    if cfg.grid == "hessian" and cfg.init != "sweep":
        raise ValueError(
            f"{name}.grid='hessian' weighs errors as the sweep does: init must be 'sweep', got {cfg.init!r}"
        )
    if cfg.refine < 0:
        raise ValueError(f"{name}.refine must be >= 0, got {cfg.refine}")
    if not cfg.damp > 0 or cfg.damp_step < 0:
        raise ValueError(f"{name}.damp must be > 0 and damp_step >= 0, got {cfg.damp} and {cfg.damp_step}")
    if not isinstance(cfg.bqpo, BQPO):
        raise TypeError(f"{name}.bqpo must be a BQPO, got {type(cfg.bqpo).__name__}; BQPO(epochs=0) for none")
