"""Compressed weights in memory: frozen pytrees that stand where an array was."""

from compressjax.leaf.affine import Affine, pack_affine, unpack_codes, unpack_zeros
from compressjax.leaf.codebook import Codebook, pack_codebook, unpack_indices
from compressjax.leaf.registration import is_leaf, leaf
from compressjax.leaf.sum import Sum, add
from compressjax.leaf.transposed import Transposed

__all__ = [
    "Affine",
    "Codebook",
    "Sum",
    "Transposed",
    "add",
    "is_leaf",
    "leaf",
    "pack_affine",
    "pack_codebook",
    "unpack_codes",
    "unpack_indices",
    "unpack_zeros",
]
