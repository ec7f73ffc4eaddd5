"""Attention of one new token to packed keys and values, as a part that combines with other parts of the cache."""

from pallas_kernels.kv_attention.api import kv_attention
from pallas_kernels.kv_attention.layout import Codes, Fit, KVLayout, Past, Side, Softmax

__all__ = ["Codes", "Fit", "KVLayout", "Past", "Side", "Softmax", "kv_attention"]
