"""Weights as products of small factors."""

from compressjax.factorization.afm import AFM, rank_for_variance, table_record
from compressjax.factorization.afm_ctr import CTRCompression, compress_ctr
from compressjax.factorization.bitstack import BitStack, bitstack, thin_rank
from compressjax.factorization.bitstack_budget import BudgetTable, blocks_between, budget_table, levels_for_budget
from compressjax.factorization.bitstack_curvature import curvature_gains
from compressjax.factorization.bitstack_memory import LoadedStack, Resized, load_stack, resize_stack
from compressjax.factorization.bitstack_scaling import activation_scale, fold_scales
from compressjax.factorization.bitstack_sorting import greedy_order, levelwise_order, order_from_gains
from compressjax.factorization.bitstack_store import BitStackStore, block_bytes_of, open_store, stacks_of, write_store
from compressjax.factorization.bonds import bonds_within, tensorize, truncate
from compressjax.factorization.compactifai import CompactifAI, compactifai
from compressjax.factorization.eora import EoRA, compensate, eora
from compressjax.factorization.factors import break_even_rank
from compressjax.factorization.lord import LoRD, with_mean_shift
from compressjax.factorization.lowrank import lowrank, lowrank_with_info
from compressjax.factorization.pivot import pivot_factors
from compressjax.factorization.quantized_cores import quantize_cores
from compressjax.factorization.site_dims import balanced_factors, search_dims
from compressjax.factorization.svd import SVD

__all__ = [
    "AFM",
    "CTRCompression",
    "compress_ctr",
    "rank_for_variance",
    "table_record",
    "BitStack",
    "BitStackStore",
    "SVD",
    "BudgetTable",
    "CompactifAI",
    "EoRA",
    "LoRD",
    "LoadedStack",
    "Resized",
    "activation_scale",
    "balanced_factors",
    "bitstack",
    "block_bytes_of",
    "blocks_between",
    "bonds_within",
    "break_even_rank",
    "budget_table",
    "compactifai",
    "compensate",
    "curvature_gains",
    "eora",
    "fold_scales",
    "greedy_order",
    "levels_for_budget",
    "levelwise_order",
    "load_stack",
    "lowrank",
    "lowrank_with_info",
    "open_store",
    "order_from_gains",
    "pivot_factors",
    "quantize_cores",
    "resize_stack",
    "search_dims",
    "stacks_of",
    "tensorize",
    "thin_rank",
    "truncate",
    "with_mean_shift",
    "write_store",
]
