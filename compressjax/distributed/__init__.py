"""Fewer bytes between workers: compressors, transports over a named axis, and what they send as compiled."""

from compressjax.distributed.compressor import Compressor, Identity, message_bytes
from compressjax.distributed.error_feedback import with_feedback
from compressjax.distributed.per_device import pmap_init, pmap_update
from compressjax.distributed.rounded import QSGD, MinMax, Natural
from compressjax.distributed.sparse import BlockTopK, RandK, TopK
from compressjax.distributed.transports import (
    Mean,
    all_gather_mean,
    exact_mean,
    sharded_mean,
    shared_mask_mean,
)
from compressjax.distributed.wire import CollectiveOp, WireBytes, collective_ops, wire_bytes

__all__ = [
    "QSGD",
    "BlockTopK",
    "CollectiveOp",
    "Compressor",
    "Identity",
    "Mean",
    "MinMax",
    "Natural",
    "RandK",
    "TopK",
    "WireBytes",
    "all_gather_mean",
    "collective_ops",
    "exact_mean",
    "message_bytes",
    "pmap_init",
    "pmap_update",
    "shared_mask_mean",
    "sharded_mean",
    "wire_bytes",
    "with_feedback",
]
