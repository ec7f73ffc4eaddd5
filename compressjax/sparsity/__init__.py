"""Weights of which some are not there at all."""

from compressjax.sparsity.gqsa import gqsa, gqsa_shared
from compressjax.sparsity.gqsa_config import BQPO, E2E, GQSA
from compressjax.sparsity.gqsa_recovery import bqpo, e2e_oqp
from compressjax.sparsity.n_m import NM, n_m, n_m_shared
from compressjax.sparsity.sparsegpt import SparseGPT, sparsegpt
from compressjax.sparsity.sparsify import sparsify, sparsify_with_info
from compressjax.sparsity.task_schedule import plan_tasks

__all__ = [
    "BQPO",
    "E2E",
    "GQSA",
    "NM",
    "SparseGPT",
    "bqpo",
    "e2e_oqp",
    "gqsa",
    "gqsa_shared",
    "n_m",
    "n_m_shared",
    "plan_tasks",
    "sparsegpt",
    "sparsify",
    "sparsify_with_info",
]
