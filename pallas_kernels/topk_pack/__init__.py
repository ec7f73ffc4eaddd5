"""The largest entries of every chunk of a vector, with their places, in one pass over memory."""

from pallas_kernels.topk_pack.api import topk_pack
from pallas_kernels.topk_pack.layout import Largest, TopKLayout

__all__ = ["Largest", "TopKLayout", "topk_pack"]
