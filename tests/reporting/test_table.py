"""The table of a tree: forms, sizes that add up, errors where there are any."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import nbits, report
from compressjax.calibration import Record
from compressjax.quantization import GPTQ, RTN
from compressjax.quantization.quantize import quantize_with_info


def compressed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 64)).astype(np.float32)
    params = {
        "up": {"kernel": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32), "bias": jnp.zeros(32)},
        "down": {"kernel": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)},
    }
    stats = {"up/kernel": Record(count=jnp.float32(96), xtx=jnp.asarray(x.T @ x))}
    rules = {"up": GPTQ(bits=3, group=32), "down": RTN(bits=8, group=64)}
    return quantize_with_info(params, rules, stats=stats)


def test_rows_name_the_form_and_their_bytes_add_up():
    params, infos = compressed()
    table = report(params, infos)
    forms = {row.path: row.form for row in table.rows}
    assert forms == {
        "up/kernel": "Affine(bits=3, group=32)",
        "up/bias": "float32",
        "down/kernel": "Affine(bits=8, group=64)",
    }
    assert 8 * table.bytes == nbits(params)
    up = next(row for row in table.rows if row.path == "up/kernel")
    assert up.bits_per_weight == pytest.approx(3 + 19 / 32)
    assert up.error is not None and up.rounding_error is not None and 0 < up.error < up.rounding_error
    assert str(table).splitlines()[0].split() == ["weight", "form", "shape", "bits", "bytes", "error", "rounding"]


def test_without_errors_there_are_no_columns_for_them():
    params, _ = compressed()
    assert "rounding" not in str(report(params))


def test_infos_of_another_tree_are_refused():
    params, infos = compressed()
    with pytest.raises(ValueError, match=r"infos speak of \['up/kernel'\]"):
        report({"down": params["down"]}, {"up/kernel": infos["up/kernel"]})
    with pytest.raises(TypeError, match="nested dicts"):
        report([1.0])
