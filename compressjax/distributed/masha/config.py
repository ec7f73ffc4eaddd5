"""Step size, snapshot probability, compressors and transport of MASHA."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from compressjax.distributed.compressor import Compressor, Identity
from compressjax.distributed.sparse import RandK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masha:
    """MASHA1 (unbiased compressors) and MASHA2 (contractive compressors with error feedback).

    Paper: Beznosikov, Richtarik, Diskin, Ryabinin and Gasnikov, 2021, arXiv 2110.03313.

    Attributes:
      gamma: step size; see `theory_stepsize`.
      p: probability that the snapshot is renewed, ``1 - tau``. The share of bytes that a message keeps balances both
        kinds of traffic.
      up: compressor of the workers' messages.
      down: compressor of the answer; None sends it as it is.
      transport: "sra" has every worker serve 1/M of the entries, so both directions are compressed on the wire;
        "allgather" sends all messages to all, with ``down`` applied alike everywhere, for few workers;
        "shared_mask" has all workers keep the same random entries (`RandK`).
      axis: name of the workers' axis.
      participate: workers that send in a step, drawn at random; None for all. Collectives move the others' zeros all
        the same, so it saves what a parameter server would send, not bytes of this program.
      prox: ``(z, gamma) -> z``, of the composite term or the projection onto a constraint; MASHA1 only.
      seed: of coins and masks, alike on all workers.
    """

    gamma: float = 0.1
    p: float = 0.1
    up: Compressor = RandK(density=0.1)
    down: Compressor | None = None
    transport: Literal["sra", "allgather", "shared_mask"] = "sra"
    axis: str = "workers"
    participate: int | None = None
    prox: Callable[[Any, float], Any] | None = None
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"Masha.p must be in (0, 1], got {self.p}")
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise ValueError(f"Masha.gamma must be > 0, got {self.gamma}")
        if self.transport not in ("sra", "allgather", "shared_mask"):
            raise ValueError(f"Masha.transport must be 'sra', 'allgather' or 'shared_mask', got {self.transport!r}")
        if self.transport == "shared_mask" and not isinstance(self.up, RandK):
            raise ValueError(f"Masha.up must be RandK for a shared mask, got {type(self.up).__name__}")
        if self.participate is not None and self.participate < 1:
            raise ValueError(f"Masha.participate must be None or >= 1, got {self.participate}")

    @property
    def answer(self) -> Compressor:
        """The compressor of the answer."""
        return Identity() if self.down is None else self.down
