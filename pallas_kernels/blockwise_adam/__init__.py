"""A step of Adam whose moments are kept in 8 bits per value and a scale per block, in one pass over memory."""

from pallas_kernels.blockwise_adam.api import blockwise_adam
from pallas_kernels.blockwise_adam.layout import AdamLayout, Hyper, Moments

__all__ = ["AdamLayout", "Hyper", "Moments", "blockwise_adam"]
