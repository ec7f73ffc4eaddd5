"""Compressed weights in memory: frozen pytrees that stand where an array was."""

from compressjax.leaf.affine import Affine, pack_affine, unpack_codes, unpack_zeros
from compressjax.leaf.by_layer import ByLayer, by_layer
from compressjax.leaf.codebook import Codebook, pack_codebook, unpack_indices
from compressjax.leaf.group_sparse import GroupSparse, pack_group_sparse
from compressjax.leaf.low_rank import LowRank, low_rank
from compressjax.leaf.masked import Masked, pack_masked
from compressjax.leaf.n_m import NMSparse, pack_n_m
from compressjax.leaf.outliers import Outliers, outlier_mask, pack_outliers, trim_outliers
from compressjax.leaf.pivot_low_rank import PivotLowRank, pivot_low_rank
from compressjax.leaf.power import Power, pack_power
from compressjax.leaf.registration import is_leaf, leaf
from compressjax.leaf.shifted import Shifted, shifted
from compressjax.leaf.sign_lowrank import SignLowRank, sign_lowrank
from compressjax.leaf.sum import Sum, add
from compressjax.leaf.tensor_train import TensorTrain, bonds_of, tensor_train
from compressjax.leaf.transposed import Transposed
from compressjax.leaf.two_level import TwoLevelAffine, pack_two_level
from compressjax.leaf.w4ax import W4Ax, pack_w4ax

__all__ = [
    "Affine",
    "ByLayer",
    "Codebook",
    "GroupSparse",
    "LowRank",
    "Masked",
    "NMSparse",
    "Outliers",
    "PivotLowRank",
    "Power",
    "Shifted",
    "SignLowRank",
    "Sum",
    "TensorTrain",
    "Transposed",
    "TwoLevelAffine",
    "W4Ax",
    "add",
    "bonds_of",
    "by_layer",
    "is_leaf",
    "leaf",
    "low_rank",
    "outlier_mask",
    "pack_affine",
    "pack_codebook",
    "pack_group_sparse",
    "pack_masked",
    "pack_n_m",
    "pack_outliers",
    "pack_power",
    "pack_two_level",
    "pack_w4ax",
    "pivot_low_rank",
    "shifted",
    "sign_lowrank",
    "tensor_train",
    "trim_outliers",
    "unpack_codes",
    "unpack_indices",
    "unpack_zeros",
]
