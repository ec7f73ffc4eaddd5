"""Every codec that the law of caches is tried on: a new codec adds a row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.kvcache import (
    EMS,
    GEAR,
    H2O,
    KIVI,
    KV4,
    DenseKV,
    MatryoshkaKV,
    MiniCache,
    MKVParams,
    RoundKV,
    SnapKV,
    StreamingLLM,
    pack_projections,
)

LAYERS, BATCH, KV_HEADS, HEADS, WIDTH, RING = 2, 2, 2, 4, 32, 32


@dataclasses.dataclass(frozen=True)
class CodecRow:
    """A codec for rings of ``RING`` tokens.

    Attributes:
      name: for test ids.
      codec: the codec.
      fixed: makes what it has to be given, stacked by layer; None for nothing.
      exact: nothing is lost as long as no token is dropped.
      slow: left to the slow tests, for a row like it runs by default.
    """

    name: str
    codec: Any
    fixed: Callable[[], Any] | None = None
    exact: bool = False
    slow: bool = False


def random_bases(seed=0) -> MKVParams:
    """Orthogonal bases and means that are far from zero."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((2, LAYERS, KV_HEADS, WIDTH, WIDTH)))
    q, mu = jnp.asarray(q, jnp.float32), jnp.asarray(rng.standard_normal((2, LAYERS, KV_HEADS, WIDTH)), jnp.float32)
    free = 0.1 * jax.random.normal(jax.random.key(seed), q.shape)
    return MKVParams(free[0], free[1], q[0], q[1], mu[0], mu[1])


FULL = MatryoshkaKV(rank=WIDTH, residual=RING)
PLANNED = MatryoshkaKV(
    ranks_k=((8, 20), (12, 4)), ranks_v=((16, 12), (8, 24)), pieces=2, bits=8, residual=RING, sinks=2
)

ROWS = (
    CodecRow("dense", DenseKV(residual=RING), exact=True),
    CodecRow("round", RoundKV(bits=3, residual=RING)),
    CodecRow("kivi", KIVI(bits=2, group=16, residual=RING)),
    CodecRow("kv4", KV4(group=32, residual=RING, sym=True), slow=True),
    CodecRow("kv4 before rotation", KV4(group=32, residual=RING, pre_rope=True, sinks=2), slow=True),
    CodecRow("streaming", StreamingLLM(budget=48, interval=RING), slow=True),
    CodecRow("h2o", H2O(budget=48, interval=RING), slow=True),
    CodecRow("snapkv", SnapKV(budget=48, window=16, interval=RING)),
    CodecRow("ems", EMS(budget=48, window=16, interval=RING)),
    CodecRow(
        "ems before rotation", EMS(budget=48, window=8, interval=RING, rope_space="pre", sinks=2, tau=0.2), slow=True
    ),
    CodecRow(
        "ems in 4 bits", EMS(budget=64, window=16, interval=RING, rounding=KV4(group=32, residual=RING)), slow=True
    ),
    CodecRow("ems with room for all", EMS(budget=166, window=8, interval=RING), exact=True, slow=True),
    CodecRow("gear", GEAR(group=16, residual=RING, sparsity=0.07)),
    CodecRow("gear kcvt", GEAR(bits=4, base="kcvt", residual=RING, sparsity=0.07, rank_decode=0, sinks=0), slow=True),
    CodecRow("minicache", MiniCache(start=0, gamma=0.2, group=32, residual=RING)),
    CodecRow(
        "minicache over gear",
        MiniCache(start=0, granularity="token", residual=RING, gear=GEAR(group=16, residual=RING, sparsity=0.07)),
        slow=True,
    ),
    CodecRow(
        "minicache with all retained", MiniCache(start=0, gamma=1.0, bits=None, residual=RING), exact=True, slow=True
    ),
    CodecRow("matryoshka", FULL, fixed=lambda: pack_projections(random_bases(), FULL), exact=True),
    CodecRow(
        "matryoshka by plan in 8 bits", PLANNED, fixed=lambda: pack_projections(random_bases(), PLANNED), slow=True
    ),
)
