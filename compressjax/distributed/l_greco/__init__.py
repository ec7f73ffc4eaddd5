"""L-GreCo: gradients compressed as much as each layer bears (Markov et al., 2022)."""

from compressjax.distributed.l_greco.allocate import Adaptation, accordion_levels, adapt, dp_allocate
from compressjax.distributed.l_greco.config import LGreco, Plan
from compressjax.distributed.l_greco.data_parallel import data_parallel_steps, init_sync, replan_on, table_on
from compressjax.distributed.l_greco.tables import Table, error_table
from compressjax.distributed.l_greco.transform import (
    SyncState,
    compress_gradients,
    gradient_table,
    replan,
    state_specs,
)
from compressjax.distributed.l_greco.units import Unit, plan_bytes, size_table, uniform_plan, units_of

__all__ = [
    "Adaptation",
    "LGreco",
    "Plan",
    "SyncState",
    "Table",
    "Unit",
    "accordion_levels",
    "adapt",
    "compress_gradients",
    "data_parallel_steps",
    "dp_allocate",
    "error_table",
    "gradient_table",
    "init_sync",
    "plan_bytes",
    "replan",
    "replan_on",
    "size_table",
    "state_specs",
    "table_on",
    "uniform_plan",
    "units_of",
]
