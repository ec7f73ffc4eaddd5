"""Data in, statistics of layer inputs out."""

from compressjax.calibration.one_pass import calibrate, calibrate_batch, shared_inputs
from compressjax.calibration.records import Record, Stats, merge, merge_over_axis
from compressjax.calibration.statistics import Activations, Fisher, Hessian, Moments, measure

__all__ = [
    "Activations",
    "Fisher",
    "Hessian",
    "Moments",
    "Record",
    "Stats",
    "calibrate",
    "calibrate_batch",
    "measure",
    "merge",
    "merge_over_axis",
    "shared_inputs",
]
