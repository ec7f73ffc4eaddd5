"""The kernel in Triton's own language: run by Triton's interpreter against float64, refusals, and its compilation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels.affine_matmul import CASES, JAX_TRITON_SPECS
from benchmarks.provenance import RESULTS
from pallas_kernels.affine_matmul import AffineLayout, affine_matmul, jax_triton
from pallas_kernels.affine_matmul.reference import affine_reference
from pallas_kernels.affine_matmul.specs import spec
from pallas_kernels.product_config import ProductConfig
from pallas_kernels.proof.compile import compile_for, compiling_for
from pallas_kernels.proof.report import examine
from pallas_kernels.proof.targets import A100, H100

pytestmark = pytest.mark.kernels
IN_TRITON = [case for case in CASES if case.name.endswith("-jax-triton")]
SCRIPT = Path(__file__).with_name("interpret_triton.py")


@pytest.mark.parametrize(
    "m, layout, splits",
    [
        (3, dict(bits=4, group=128, tile=128, rows=200, cols=40, zero_kind="int"), 1),
        (17, dict(bits=8, group=32, tile=64, rows=192, cols=33, zero_kind="real"), 2),
        (1, dict(bits=2, group=512, tile=256, rows=512, cols=16, zero_kind="none"), 2),
        (2, dict(bits=8, group=32, tile=128, rows=128, cols=48, zero_kind="int"), 1),
    ],
    ids=["w4-int-odd", "w8-real-splits", "w2-none-one-group", "w8-int"],
)
def test_numbers_against_float64(m, layout, splits, tmp_path, random_product):
    pytest.importorskip("triton", reason="needs Triton")
    layout = AffineLayout(**layout)
    assert jax_triton.misfit("float16", layout) is None
    x, codes, scale, zero = random_product(m, layout, "float16")
    config = ProductConfig(block_m=16, block_n=16, tiles=1, splits=splits, warps=4, stages=2)
    meta = jax_triton.constants(m, layout, config)
    np.savez(
        tmp_path / "in.npz",
        x=x,
        codes=codes,
        scale=scale,
        zero=scale if zero is None else zero,
        meta=json.dumps(meta | {"splits": splits}),
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    y = np.load(tmp_path / "out.npy").sum(axis=0)
    w = affine_reference(np.eye(layout.rows), codes, scale, zero, np.zeros((layout.rows, layout.cols)), layout).y
    x64 = np.asarray(x, np.float64)
    error = np.abs(y - x64 @ w)  # a weight is rounded once to float16; sums are float32
    assert np.all(error <= 2.0**-10 * (np.abs(x64) @ np.abs(w))), error.max()


LAYOUT = dict(bits=4, group=128, tile=128, rows=256, cols=64, zero_kind="int")


@pytest.mark.parametrize(
    "changed, dtype, what",
    [
        ({}, "float32", "x must be bfloat16 or float16, got float32"),
        ({"bits": 3}, "bfloat16", "2, 4 or 8 bits, one plane of words, got 3"),
        ({"tile": 64}, "bfloat16", "4 bits at tile 64 give runs of 8 rows, a product takes 16"),
        ({"group": 24}, "bfloat16", "group must be a multiple of the 16 rows of a run, got 24"),
    ],
)
def test_what_does_not_fit_is_said(changed, dtype, what):
    assert what in str(jax_triton.misfit(dtype, AffineLayout(**(LAYOUT | changed))))


def test_without_a_gpu_it_says_why(random_product):
    arrays, layout = random_product(1, AffineLayout(**LAYOUT)), AffineLayout(**LAYOUT)
    with pytest.raises(ValueError, match="implementation='jax-triton' cannot run: it needs an NVIDIA GPU"):
        affine_matmul(*arrays, layout, implementation="jax-triton")


def test_it_is_not_taken_unasked(compiler):
    each = spec("Llama-3-8B/q", 16)
    with compiling_for(A100):
        text = str(jax.make_jaxpr(lambda *a: affine_matmul(*a, each.layout))(*each.arguments()))
    assert "pallas_call" in text and "triton_kernel_call" not in text


@pytest.mark.parametrize("target", [H100, A100], ids=lambda target: target.name)
@pytest.mark.parametrize("name", ["Llama-3-8B/q-w4g128-int-bfloat16-m16", "SmolLM2-135M/down-w4g128-int-bfloat16-m1"])
def test_compiles_as_committed(name, target, compiler):
    case = next(case for case in IN_TRITON if case.name == f"{name}-jax-triton")
    row = examine(case, target)
    assert row["problems"] == []
    rows = json.loads((RESULTS / "kernels_affine_matmul.json").read_text(encoding="utf-8"))["rows"]
    committed = next(r for r in rows if r["case"] == case.name and r["target"] == target.name)
    assert row["kernels"][0]["blocks_per_sm"] >= committed["kernels"][0]["blocks_per_sm"]
    assert row["moved_bytes"] <= committed["moved_bytes"]


def test_gradients_and_vmap_compile(compiler):
    each = JAX_TRITON_SPECS[0]

    def loss(x, codes, scale, zero):
        def one(x):
            return affine_matmul(x, codes, scale, zero, each.layout, implementation="jax-triton")

        return jax.grad(lambda x: jax.vmap(one)(x).astype(jnp.float32).sum())(x)

    x, *rest = each.arguments()
    program = compile_for(loss, (jax.ShapeDtypeStruct((3, *x.shape), x.dtype), *rest), A100)
    assert "affine_matmul_w4_dx" in program.launches
