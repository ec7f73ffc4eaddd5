"""Keys and values of past tokens in fewer bits."""

from compressjax.kvcache.kv4 import KV4, KV4Cache

__all__ = ["KV4", "KV4Cache"]
