"""Which method, how many bits, where."""

from compressjax.allocation.database import LevelDatabase, assemble
from compressjax.allocation.knapsack import Allocation, knapsack_dp, uniform

__all__ = ["Allocation", "LevelDatabase", "assemble", "knapsack_dp", "uniform"]
