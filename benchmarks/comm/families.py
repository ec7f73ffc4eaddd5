"""The settings of L-GreCo that benchmarks of communication share."""

from collections.abc import Mapping
from types import MappingProxyType

from compressjax.distributed.l_greco import LGreco

FAMILIES: Mapping[str, LGreco] = MappingProxyType(
    {
        "PowerSGD": LGreco(family="powersgd", base=4, period=40, acc_steps=10),
        "TopK": LGreco(family="topk", base=0.01, period=40, acc_steps=10),
        "QSGD": LGreco(family="qsgd", base=4, period=40, acc_steps=10, stochastic=True),
    }
)
