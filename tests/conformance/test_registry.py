"""Nothing is registered that the laws do not test."""

import dataclasses

import jax

import compressjax.calibration.tap as tap
from compressjax.driver import leaf_rule, statistic_for
from compressjax.ops import dense, logical_shape, matmul

from .rows import LEAF_TYPES, LEAVES, METHODS


def registered_leaves():
    kinds = {t for t in dense.types() if dataclasses.is_dataclass(t) and t.__module__.startswith("compressjax.")}
    return kinds - {tap.Tapped}


def test_every_leaf_type_has_a_row():
    assert registered_leaves() == LEAF_TYPES == {type(jax.eval_shape(row.make)) for row in LEAVES}


def test_every_leaf_registers_the_ops_every_leaf_needs():
    for kind in registered_leaves():
        assert kind in matmul.types() and kind in logical_shape.types()


def test_every_config_has_a_row_and_says_what_it_needs():
    configs = {t for t in leaf_rule.types() if t.__module__.startswith("compressjax.")}
    assert configs == {type(row.cfg) for row in METHODS}
    assert configs <= set(statistic_for.types())


def test_every_method_but_rounding_and_truncation_names_its_baseline():
    assert {type(row.cfg).__name__ for row in METHODS if row.baseline is None} == {"RTN", "SVD"}
