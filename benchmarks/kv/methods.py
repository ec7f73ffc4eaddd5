"""Every way of holding the cache that is compared, as configs from small to large.

At a share of the plain cache's bytes a family enters with its largest config that fits, scales, indices, rings, masks
and projections counted; so the choice knows nothing of quality.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from compressjax.kvcache import (
    EMS,
    GEAR,
    H2O,
    KIVI,
    KV4,
    MatryoshkaKV,
    MiniCache,
    RoundKV,
    SnapKV,
    StreamingLLM,
    TransMLA,
)

SHARES = (0.5, 0.25, 0.125, 0.06)
"""Bytes allowed, as a share of a plain cache of 16-bit floats."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One way of holding the cache.

    Attributes:
      name: as tables show it.
      configs: for a prompt of so many tokens.
      baseline: one of the simple ones.
    """

    name: str
    configs: Callable[[int], list[Any]]
    baseline: bool = False


def families() -> list[Family]:
    """All of them, baselines first."""
    return [
        Family("StreamingLLM", _slots(StreamingLLM, sinks=4), baseline=True),
        Family("H2O", _slots(H2O), baseline=True),
        Family("SnapKV", _slots(SnapKV, window=16), baseline=True),
        Family("rounding", lambda _: [RoundKV(bits=b, residual=32) for b in range(1, 9)], baseline=True),
        Family(
            "KIVI", lambda _: [KIVI(bits=b, group=g, residual=32) for b in range(1, 9) for g in (32,)], baseline=True
        ),
        Family("KV4", lambda _: [KV4(bits=b, group=32, residual=32, sinks=4) for b in range(2, 9)]),
        Family("GEAR", lambda _: _gear()),
        Family("EMS", _slots(EMS, window=16)),
        Family("EMS in 4 bits", _slots(EMS, window=16, rounding=KV4(group=32, residual=32), step=32)),
        Family("MiniCache", lambda _: [_merged(b, f) for b in (2, 4, 8) for f in (True, False)]),
        Family("MatryoshkaKV", lambda _: [MatryoshkaKV(rank=r, residual=32) for r in range(2, 33, 2)]),
        Family(
            "MatryoshkaKV in 4 bits", lambda _: [MatryoshkaKV(rank=r, bits=4, residual=32) for r in range(4, 65, 4)]
        ),
        Family("TransMLA", lambda _: [_latent(r) for r in range(16, 161, 16)]),
        Family("TransMLA in 4 bits", lambda _: [(_latent(r), _four()) for r in range(32, 225, 32)]),
    ]


def _slots(kind: Any, *, step: int = 16, **options: Any) -> Callable[[int], list[Any]]:
    least = options.get("window", 0) + options.get("sinks", 0) + step

    def configs(prompt: int) -> list[Any]:
        first = -(-least // step) * step
        return [kind(budget=budget, interval=16, **options) for budget in range(first, prompt // 2 + 1, step)]

    return configs


def _gear() -> list[GEAR]:
    parts = ((0, 0.0), (2, 0.0), (2, 0.011), (4, 0.02))
    return [
        GEAR(bits=bits, group=64, rank=rank, rank_decode=min(rank, 2), sparsity=sparsity)
        for bits in (2, 3, 4, 8)
        for rank, sparsity in parts
    ]


def _merged(bits: int, half: bool) -> MiniCache:
    return MiniCache(bits=bits, group=32, residual=32, start=None if half else 0)


def _latent(rank: int) -> TransMLA:
    return TransMLA(kv_lora_rank=rank, qk_rope_dim=32, freqfold=4)


def _four() -> KIVI:
    return KIVI(bits=4, group=32, residual=32)


def named(name: str) -> Family:
    """The family of that name."""
    return next(family for family in families() if family.name == name)
