"""Users' own flax modules on compressed weights, without changing the modules."""

from compressjax.adapters.flax_linen import apply_compressed, linen_apply
from compressjax.adapters.flax_nnx import nnx_apply

__all__ = ["apply_compressed", "linen_apply", "nnx_apply"]
