"""MASHA: saddle points and variational inequalities with compressed messages (Beznosikov et al., 2021)."""

from compressjax.distributed.masha.config import Masha
from compressjax.distributed.masha.steps import (
    MashaState,
    Metrics,
    masha1_init,
    masha1_step,
    masha2_init,
    masha2_step,
    state_specs,
)
from compressjax.distributed.masha.theory import saddle_operator, theory_stepsize

__all__ = [
    "Masha",
    "MashaState",
    "Metrics",
    "masha1_init",
    "masha1_step",
    "masha2_init",
    "masha2_step",
    "saddle_operator",
    "state_specs",
    "theory_stepsize",
]
