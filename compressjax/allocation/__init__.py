"""Which method, how many bits, where."""

from compressjax.allocation.database import LevelDatabase, assemble
from compressjax.allocation.evolve import EvoPress, Generation, evolve, random_within
from compressjax.allocation.knapsack import Allocation, knapsack_dp, uniform
from compressjax.allocation.mutation import exchange, swap_dropped
from compressjax.allocation.searches import exhaustive, greedy

__all__ = [
    "Allocation",
    "EvoPress",
    "Generation",
    "LevelDatabase",
    "assemble",
    "evolve",
    "exchange",
    "exhaustive",
    "greedy",
    "knapsack_dp",
    "random_within",
    "swap_dropped",
    "uniform",
]
