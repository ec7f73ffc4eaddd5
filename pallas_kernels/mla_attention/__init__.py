"""Attention of one new token to latents that all heads share, as a part that combines with other parts of the cache."""

from pallas_kernels.mla_attention.api import mla_attention
from pallas_kernels.mla_attention.layout import MLALayout

__all__ = ["MLALayout", "mla_attention"]
