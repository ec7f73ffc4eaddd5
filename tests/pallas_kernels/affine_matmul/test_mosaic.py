"""The Hopper kernel run by the host against float64, what it refuses, and what the compiler makes of it for H100."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from benchmarks.kernels.affine_matmul import CASES, HOPPER_SPECS
from benchmarks.provenance import RESULTS
from pallas_kernels.affine_matmul import AffineLayout, affine_matmul, api
from pallas_kernels.affine_matmul.mosaic import affine_matmul_mosaic
from pallas_kernels.affine_matmul.mosaic_config import MosaicConfig, misfit, mosaic_config
from pallas_kernels.affine_matmul.reference import affine_reference
from pallas_kernels.affine_matmul.specs import spec
from pallas_kernels.packing import Packing
from pallas_kernels.proof.compile import compile_for, compiling_for
from pallas_kernels.proof.report import examine
from pallas_kernels.proof.targets import A100, H100

# JAX's own interpreter of these kernels mixes dtypes.
pytestmark = [pytest.mark.kernels, pytest.mark.standard_promotion("the interpreter of Mosaic kernels mixes dtypes")]

MOSAIC = [case for case in CASES if case.name.endswith("-mosaic")]
ONE = MosaicConfig(block_m=128, warpgroups=1, parts=2, stages=2)
TWO = MosaicConfig(block_m=128, warpgroups=2, parts=1, stages=2)
ALL = MosaicConfig(block_m=64, warpgroups=1, parts=2, stages=2)


def committed_rows():
    return json.loads((RESULTS / "kernels_affine_matmul.json").read_text(encoding="utf-8"))["rows"]


CASES_HERE = {
    # Two tiles in two steps each, two steps a group, and rows of activations beyond a block.
    "w4-int": (130, dict(bits=4, group=128, tile=128, rows=256, cols=64, zero_kind="int"), ONE),
    # Two warpgroups, and a step of four fields in four groups.
    "w8-real-float16": (128, dict(bits=8, group=32, tile=128, rows=128, cols=128, zero_kind="real"), TWO),
    # One group for all, longer than a step; two blocks of rows.
    "w2-none": (128, dict(bits=2, group=256, tile=256, rows=256, cols=64, zero_kind="none"), ALL),
}


@pytest.mark.parametrize("m, layout, config", CASES_HERE.values(), ids=CASES_HERE)
def test_numbers_against_float64(m, layout, config, random_product):
    layout = AffineLayout(**layout)
    x, codes, scale, zero = random_product(m, layout, "float16" if layout.zero_kind == "real" else "bfloat16")
    assert misfit(m, x.dtype, scale.dtype, layout, config) is None
    y = affine_matmul_mosaic(x, codes, scale, zero, layout, config, interpret=True)
    none = np.zeros((layout.rows, layout.cols))
    w = affine_reference(np.eye(layout.rows), codes, scale, zero, none, layout).y
    x64 = np.asarray(x, np.float64)
    terms = np.abs(x64) @ np.abs(w)
    # A weight and the result are rounded once each; a real zero is subtracted in float32.
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[x.dtype.name]
    error = np.abs(np.asarray(y, np.float64) - x64 @ w)
    assert y.dtype == x.dtype and y.shape == (m, layout.cols)
    assert np.all(error <= rounding * (terms + np.abs(x64 @ w))), (error / terms).max()


LAYOUT = AffineLayout(bits=4, group=128, tile=256, rows=512, cols=256, zero_kind="int")


@pytest.mark.parametrize(
    "changed, m, dtype, what",
    [
        ({}, 127, "bfloat16", "at least 128 rows of activations, got 127"),
        ({}, 128, "float32", "x must be bfloat16 or float16, got float32"),
        ({"bits": 3}, 128, "bfloat16", "2, 4 or 8 bits, one plane of words, got 3"),
        ({"tile": 64}, 128, "bfloat16", "4 bits at tile 64 give runs of 8 rows, a wgmma takes 16"),
        ({"rows": 500}, 128, "bfloat16", "rows must be a multiple of tile 256, got 500"),
        ({"cols": 96}, 128, "bfloat16", "cols must be a multiple of the 64 of a block, got 96"),
        ({"group": 48}, 128, "bfloat16", "group must be a multiple of the 32 rows of a run, got 48"),
        ({"group": 96}, 128, "bfloat16", "cross groups of 96"),
    ],
)
def test_what_does_not_fit_is_said(changed, m, dtype, what):
    layout = dataclasses.replace(LAYOUT, **changed)
    assert what in str(misfit(m, dtype, "float16", layout))


def test_where_it_cannot_run_it_says_why(compiler):
    shapes = spec("Llama-3-8B/q", 512).arguments()

    def call(*arrays):
        return affine_matmul(*arrays, spec("Llama-3-8B/q", 512).layout, implementation="mosaic")

    with pytest.raises(ValueError, match="affine_matmul: implementation='mosaic' cannot run: it needs an NVIDIA GPU"):
        jax.eval_shape(call, *shapes)
    with (
        compiling_for(A100),
        pytest.raises(ValueError, match=r"compute capability 9.0 \(Hopper\), and .*A100.* has 8.0"),
    ):
        jax.eval_shape(call, *shapes)
    with compiling_for(H100):
        assert jax.eval_shape(call, *shapes).shape == (512, 4096)


def test_a_config_of_the_other_kind_is_refused(monkeypatch, random_product):
    monkeypatch.setattr(api, "needs_hopper", lambda: None)
    x, codes, scale, zero = random_product(128, LAYOUT)
    other = api.choose_config(128, LAYOUT, x.dtype)
    with pytest.raises(TypeError, match="config must be a MosaicConfig for 'mosaic', got ProductConfig"):
        affine_matmul(x, codes, scale, zero, LAYOUT, implementation="mosaic", config=other)
    with pytest.raises(TypeError, match="config must be a ProductConfig for 'interpret', got MosaicConfig"):
        affine_matmul(x, codes, scale, zero, LAYOUT, implementation="interpret", config=ONE)


@pytest.mark.parametrize(
    "changed, what",
    [
        ({"block_m": 32}, "block_m must be 64, 128 or 256, got 32"),
        ({"warpgroups": 3}, "warpgroups must be 1 or 2, got 3"),
        ({"parts": 3}, "parts must be 1, 2, 4, 8 or 16, got 3"),
        ({"stages": 1}, "stages must be at least 2, got 1"),
    ],
)
def test_configs_that_cannot_be(changed, what):
    with pytest.raises(ValueError, match=f"MosaicConfig.{what}"):
        dataclasses.replace(ONE, **changed)


def test_the_rule_fits_every_spec_it_is_for():
    assert len(HOPPER_SPECS) >= 18
    for each in HOPPER_SPECS:
        config = mosaic_config(each.m, each.layout)
        packing: Packing = each.layout.packing
        step = 2 * config.block_m * packing.tile // config.parts + 4 * packing.words * config.block_n
        assert config.stages * step <= 224 * 1024
        assert config.block_m <= each.m


def test_committed_rows_have_the_instructions_of_hopper():
    ours = [row for row in committed_rows() if row["case"].endswith("-mosaic")]
    assert {row["case"] for row in ours} == {case.name for case in MOSAIC}
    for row in ours:
        (kernel,) = row["kernels"]
        assert row["target"] == "H100" and row["problems"] == []
        assert kernel["arch"] == "sm_90a" and kernel["spilled_bytes"] == kernel["local_memory"] == 0
        assert all(name.startswith("HGMMA") for name in kernel["tensor_core"])
        assert kernel["tma_loads"] > 0 and kernel["loads_narrow"] == 0 and kernel["int_to_float"] == 0
        # Integer zeros are unpacked first, for a copy unit cannot; nothing else is moved twice.
        assert row["moved_bytes"] <= 1.08 * row["least_bytes"]


def test_a_fresh_compilation_is_no_worse(compiler):
    known = {row["case"]: row for row in committed_rows()}
    case = next(case for case in MOSAIC if "Llama-3-8B/gate-w4" in case.name)
    row = examine(dataclasses.replace(case, xla=None), H100)
    assert row["problems"] == []
    (fresh,), (old,) = row["kernels"], known[case.name]["kernels"]
    assert set(fresh["tensor_core"]) == set(old["tensor_core"])
    assert fresh["blocks_per_sm"] >= old["blocks_per_sm"] and fresh["tma_loads"] >= old["tma_loads"]
    assert row["moved_bytes"] <= known[case.name]["moved_bytes"]


def test_gradients_and_vmap_compile(compiler):
    """Forward on Hopper's kernel and backward on Triton's two, for each of two batches of activations."""
    layout = dataclasses.replace(LAYOUT, zero_kind="none")
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((2, 128, 512), "bfloat16"), ((64, 256), "uint32"), ((4, 256), "float16"))
    ]

    def product(x, scale, codes):
        return affine_matmul(x, codes, scale, None, layout, implementation="mosaic")

    def both(x, codes, scale):
        y, pull = jax.vjp(lambda x, scale: jax.vmap(product, (0, None, None))(x, scale, codes), x, scale)
        return y, pull(y)

    program = compile_for(both, tuple(shapes), H100)
    entries = {name for ptx in program.ptx for name in re.findall(r"\.entry (\w+)", ptx)}
    ours = sorted(name for name in entries if name.startswith("affine_matmul"))
    assert ours == ["affine_matmul_w4_dscale", "affine_matmul_w4_dx", "affine_matmul_w4_mosaic_mosaic_gpu_kernel"]
