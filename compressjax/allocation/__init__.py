"""Which method, how many bits, where."""

from compressjax.allocation.allocate import (
    BestOf,
    Exhaustive,
    Greedy,
    KnapsackDP,
    NeighbourDP,
    Uniform,
    allocate,
)
from compressjax.allocation.database import LevelDatabase, assemble
from compressjax.allocation.depth import depth_database, drop_parts, mute_parts, part_cosines, random_drops
from compressjax.allocation.evolve import EvoPress, Generation, evolve, random_within
from compressjax.allocation.fitness import TextFitness
from compressjax.allocation.knapsack import Allocation, knapsack_dp, uniform
from compressjax.allocation.model_levels import ModelLevels, assemble_dense, model_levels
from compressjax.allocation.mutation import exchange, swap_dropped
from compressjax.allocation.owl import owl_sparsity
from compressjax.allocation.profile import Profile, chosen_params, items_by_layer, profile_layers
from compressjax.allocation.searches import exhaustive, greedy

__all__ = [
    "Allocation",
    "BestOf",
    "EvoPress",
    "Exhaustive",
    "Generation",
    "Greedy",
    "KnapsackDP",
    "LevelDatabase",
    "ModelLevels",
    "NeighbourDP",
    "Profile",
    "TextFitness",
    "Uniform",
    "allocate",
    "assemble",
    "assemble_dense",
    "chosen_params",
    "depth_database",
    "drop_parts",
    "evolve",
    "exchange",
    "exhaustive",
    "greedy",
    "items_by_layer",
    "knapsack_dp",
    "model_levels",
    "mute_parts",
    "owl_sparsity",
    "part_cosines",
    "profile_layers",
    "random_drops",
    "random_within",
    "swap_dropped",
    "uniform",
]
