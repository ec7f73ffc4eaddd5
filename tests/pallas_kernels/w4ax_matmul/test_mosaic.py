"""The Hopper kernel run by the host against exact integers, its registers thread by thread, and its compilation."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.kernels.w4ax_matmul import CASES, HOPPER_SPECS
from benchmarks.provenance import RESULTS
from pallas_kernels.hopper_blocks import SHARED
from pallas_kernels.proof.compile import compile_for, compiling_for
from pallas_kernels.proof.report import examine
from pallas_kernels.proof.targets import A100, H100
from pallas_kernels.w4ax_matmul import W4AxLayout, W4AxWeight, api, fragments, w4ax_matmul
from pallas_kernels.w4ax_matmul.arithmetic import operand_place, widening
from pallas_kernels.w4ax_matmul.config import choose_config
from pallas_kernels.w4ax_matmul.mosaic import w4ax_matmul_mosaic
from pallas_kernels.w4ax_matmul.mosaic_config import MosaicConfig, misfit, mosaic_config
from pallas_kernels.w4ax_matmul.reference import rounded_reference, w4ax_reference
from pallas_kernels.w4ax_matmul.specs import spec
from pallas_kernels.w4ax_matmul.triton import w4ax_quantize_triton

from .ptx import run_ptx

# JAX's own interpreter of these kernels mixes dtypes.
pytestmark = [pytest.mark.kernels, pytest.mark.standard_promotion("the interpreter of Mosaic kernels mixes dtypes")]

MOSAIC = [case for case in CASES if case.name.endswith("-mosaic")]
SMALL = MosaicConfig(block_m=64, warpgroups=1, stages=2)
WIDE = MosaicConfig(block_m=128, warpgroups=2, stages=2)


def committed_rows():
    return json.loads((RESULTS / "kernels_w4ax_matmul.json").read_text(encoding="utf-8"))["rows"]


def by_host(x, weight, layout, config):
    assert misfit(x.shape[0], layout, config) is None
    return jax.jit(lambda x, weight: w4ax_matmul_mosaic(x, weight, layout, config, interpret=True))(x, weight)


@pytest.mark.parametrize("n_hi", [0, 1, 2], ids=["w4a4", "mixed", "w4a8"])
def test_integers_are_exact(n_hi):
    """Where every scale is a power of two only activations are rounded: equal bit for bit, the largest sums too."""
    rng = np.random.default_rng(n_hi)
    layout = W4AxLayout(block=64, rows=128, cols=64)
    limit = np.where(np.arange(128) < 64 * n_hi, 127, 7)
    x = rng.integers(-limit, limit + 1, (128, 128)).astype(np.float32)
    x[:, ::64] = limit[::64]  # so that a code is worth one
    x[4] = -limit
    codes = rng.integers(0, 256, (64, 64), np.uint8)
    codes[:, 0] = 0x88
    scale = jnp.asarray(2.0 ** rng.integers(-3, 3, (2, 64)), jnp.float16)
    weight = W4AxWeight(jnp.asarray(codes), scale, None, jnp.int32(n_hi))
    got = by_host(jnp.asarray(x), weight, layout, SMALL)
    np.testing.assert_array_equal(got, w4ax_reference(x, weight, layout))


CASES_HERE = {  # rows of activations, inputs, outputs, fields, config
    # Rows beyond a block and a short last block of permuted inputs; two warpgroups.
    "bfloat16-block-128": (130, 200, 128, dict(block=128, n_hi=1, dtype="bfloat16", scale="float16"), WIDE),
    # One step, all inputs at once.
    "float16-block-256": (128, 256, 64, dict(block=256, n_hi=0, dtype="float16", scale="float32"), SMALL),
}


@pytest.mark.parametrize("m, rows, cols, fields, config", CASES_HERE.values(), ids=CASES_HERE)
def test_numbers_against_float64(m, rows, cols, fields, config):
    rng = np.random.default_rng(0)
    layout = W4AxLayout(block=fields["block"], rows=rows, cols=cols)
    weight = W4AxWeight(
        jnp.asarray(rng.integers(0, 256, (layout.blocks * layout.half, cols)), jnp.uint8),
        jnp.asarray(rng.uniform(0.05, 0.2, (layout.blocks, cols)), fields["scale"]),
        jnp.asarray(rng.permutation(rows), jnp.uint16),
        jnp.int32(fields["n_hi"]),
    )
    x = jnp.asarray(rng.normal(size=(m, rows)), fields["dtype"])
    got = by_host(x, weight, layout, config)
    wanted = w4ax_reference(x, weight, layout)
    codes, unit = rounded_reference(x, weight, layout)
    # A term is at most 8 codes of weights; each block is scaled and added in float32, the result is rounded once.
    terms = 8 * np.einsum("mbk,mb,br->mr", np.abs(codes), unit.astype(np.float64), np.asarray(weight.scale, np.float64))
    slack = float(jnp.finfo(x.dtype).eps) * np.abs(wanted) + (layout.blocks + 2) * 2.0**-24 * terms
    assert got.dtype == x.dtype and got.shape == wanted.shape
    assert np.all(np.abs(np.asarray(got, np.float64) - wanted) <= slack)


def test_a_race_is_seen(monkeypatch):
    """What is written to shared memory and not committed is not there for a product; JAX 0.10 does not see it."""
    if not hasattr(plgpu, "InterpretGPUParams"):
        pytest.skip("this version of JAX finds no races")
    layout = W4AxLayout(block=64, rows=64, cols=64)
    weight = W4AxWeight(jnp.zeros((32, 64), jnp.uint8), jnp.ones((1, 64)), None, jnp.int32(0))
    monkeypatch.setattr(plgpu, "commit_smem", lambda: None)
    try:
        with pytest.raises(Exception, match="race"):
            jax.block_until_ready(w4ax_matmul_mosaic(jnp.ones((128, 64)), weight, layout, SMALL, interpret=True))
    finally:  # the interpreter keeps what an interrupted kernel left behind
        from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

        interpret_pallas_call.reset_gpu_interpret_mode_state()


def held(array: np.ndarray, layout) -> dict[tuple[int, ...], np.ndarray]:
    """What the 128 threads of a warpgroup hold of an array: values ``[thread, vector]`` by the register's index."""
    layout = layout.to_mgpu()
    for tile in layout.tiling.tiles:
        lead, last = array.shape[: array.ndim - len(tile)], array.shape[array.ndim - len(tile) :]
        split = [extent for whole, part in zip(last, tile, strict=True) for extent in (whole // part, part)]
        axes = [len(lead) + 2 * at + part for part in (0, 1) for at in range(len(tile))]
        array = array.reshape(*lead, *split).transpose(*range(len(lead)), *axes)
    threads = [*layout.warp_dims, *layout.lane_dims]
    moved = [array.ndim + axis for axis in (*threads, layout.vector_dim)]
    kept = [axis for axis in range(array.ndim) if axis not in moved]
    values = array.transpose(*kept, *moved).reshape(*(array.shape[axis] for axis in kept), 128, -1)
    return {index: values[index] for index in np.ndindex(*values.shape[:-2])}


def registers(array, layout, *shape):
    found = np.empty(len(values := list(held(np.asarray(array), layout).values())), object)
    found[:] = values
    return found.reshape(shape)


def same(made: np.ndarray, array, layout):
    """Whether registers, in order, are what the threads hold of an array."""
    wanted = list(held(np.asarray(array), layout).values())
    assert made.size == len(wanted)
    for got, want in zip(made.flat, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


ROWS = np.arange(64).reshape(4, 8, 2).swapaxes(1, 2).reshape(-1)  # output of each row of the operand


@pytest.mark.parametrize("half", [32, 64])
def test_each_thread_holds_its_share_of_the_operand(half):
    """The registers that the kernel makes, its PTX carried out, against the host's operand spread over the threads."""
    pairs = np.random.default_rng(0).integers(0, 2**16, (half, 32), dtype=np.uint16)

    def make(four, lane, high):
        words = [np.concatenate(four[at : at + 2], axis=-1).view("<u4") for at in (0, 2)]
        return run_ptx(widening(lane, high), *words).astype("<u4").view(np.int8)

    made = fragments.operand_registers(registers(pairs, fragments.PAIRS, half // 16, 4), make)
    same(made, np.asarray(fragments.operand_by_host(jnp.asarray(pairs))).T[ROWS], fragments.OPERAND)


def test_each_thread_puts_its_sums_in_order():
    sums = np.random.default_rng(0).integers(-(2**22), 2**22, (64, 128), dtype=np.int32)

    def pair(first, second, row):
        return np.stack([first[:, row], second[:, row]], axis=-1)

    made = fragments.result_registers(registers(sums, fragments.SUMS, 16, 2), pair)
    in_order = np.empty_like(sums)
    in_order[ROWS] = sums
    same(made, in_order.T, fragments.RESULT)


def test_rounded_for_the_operand_is_the_same_elsewhere(light_jit):
    layout = W4AxLayout(block=64, rows=100, cols=2)
    rng = np.random.default_rng(0)
    perm = jnp.asarray(rng.permutation(100), jnp.uint16)
    weight = W4AxWeight(jnp.zeros((64, 2), jnp.uint8), jnp.ones((2, 2)), perm, jnp.int32(1))
    x = jnp.asarray(rng.normal(size=(16, 100)), jnp.float32)
    got = light_jit(lambda x, w: w4ax_quantize_triton(x, w, layout, for_operand=True, interpret=True))(x, weight)
    codes, scale = rounded_reference(x, weight, layout)
    place = operand_place(np.arange(layout.padded))
    assert sorted(place) == list(range(layout.padded)) and list(place[:6]) == [0, 1, 8, 9, 2, 3]
    np.testing.assert_array_equal(got.codes, codes.reshape(16, -1)[:, place])
    np.testing.assert_array_equal(got.scale, scale.T)


LAYOUT = W4AxLayout(block=128, rows=512, cols=256)


@pytest.mark.parametrize(
    "changed, m, config, what",
    [
        ({}, 127, None, "at least 128 rows of activations, got 127"),
        ({"block": 32}, 128, None, "block must be 64, 128 or 256, got 32"),
        ({"cols": 96}, 128, None, "cols must be a multiple of the 64 of a block, got 96"),
        ({"cols": 192}, 128, WIDE, "cols must be a multiple of the 128 of a block, got 192"),
        (
            {},
            128,
            dataclasses.replace(WIDE, stages=9),
            "9 stages take 263168 bytes of shared memory, and there are 229376",
        ),
    ],
)
def test_what_does_not_fit_is_said(changed, m, config, what):
    assert what in str(misfit(m, dataclasses.replace(LAYOUT, **changed), config))


def test_where_it_cannot_run_it_says_why(compiler):
    at = spec("Llama-3-8B/q", 512)
    x, weight = at.arguments()

    def call(x, weight):
        return w4ax_matmul(x, weight, at.layout, implementation="mosaic")

    with pytest.raises(ValueError, match="w4ax_matmul: implementation='mosaic' cannot run: it needs an NVIDIA GPU"):
        jax.eval_shape(call, x, weight)
    with (
        compiling_for(A100),
        pytest.raises(ValueError, match=r"compute capability 9.0 \(Hopper\), and .*A100.* has 8.0"),
    ):
        jax.eval_shape(call, x, weight)
    with compiling_for(H100):
        assert jax.eval_shape(call, x, weight).shape == (512, 4096)


def test_a_config_of_the_other_kind_is_refused(monkeypatch):
    monkeypatch.setattr(api, "needs_hopper", lambda: None)
    weight = W4AxWeight(jnp.zeros((256, 256), jnp.uint8), jnp.ones((4, 256)), None, jnp.int32(1))
    for name, config, wanted in (
        ("mosaic", choose_config(128, LAYOUT), "MosaicConfig for 'mosaic', got W4AxConfig"),
        ("interpret", SMALL, "W4AxConfig for 'interpret', got MosaicConfig"),
    ):
        with pytest.raises(TypeError, match=f"config must be a {wanted}"):
            w4ax_matmul(jnp.ones((128, 512)), weight, LAYOUT, implementation=name, config=config)


@pytest.mark.parametrize(
    "changed, what",
    [
        ({"block_m": 256}, "block_m must be 64 or 128, got 256"),
        ({"warpgroups": 3}, "warpgroups must be 1 or 2, got 3"),
        ({"stages": 1}, "stages must be at least 2, got 1"),
    ],
)
def test_configs_that_cannot_be(changed, what):
    with pytest.raises(ValueError, match=f"MosaicConfig.{what}"):
        dataclasses.replace(SMALL, **changed)


def test_the_rule_fits_every_spec_it_is_for():
    assert len(HOPPER_SPECS) >= 11 and all(each.m >= 128 for each in HOPPER_SPECS)
    for each in HOPPER_SPECS:
        config = mosaic_config(each.m, each.layout)
        assert config.shared_bytes(each.layout, 4) <= SHARED and config.block_m <= each.m


def test_committed_rows_have_the_instructions_of_hopper():
    ours = [row for row in committed_rows() if row["case"].endswith("-mosaic")]
    assert {row["case"] for row in ours} == {case.name for case in MOSAIC}
    for row in ours:
        (kernel,) = row["kernels"]
        block = int(re.search(r"-b(\d+)", row["case"])[1])  # pyright: ignore[reportOptionalSubscript]
        ((instruction, count),) = kernel["tensor_core"].items()
        assert row["target"] == "H100" and row["problems"] == []
        assert kernel["arch"] == "sm_90a" and kernel["spilled_bytes"] == kernel["local_memory"] == 0
        # 32 inputs an instruction: none of the products of a block of inputs was dropped or written twice.
        assert instruction.startswith("IGMMA") and count == block // 32
        assert kernel["tma_loads"] > 0 and kernel["loads_narrow"] == 0 and kernel["int_to_float"] == 0


def test_a_fresh_compilation_is_no_worse(compiler):
    known = {row["case"]: row for row in committed_rows()}
    case = next(case for case in MOSAIC if "Llama-3-8B/gate" in case.name)
    row = examine(dataclasses.replace(case, xla=None), H100)
    assert row["problems"] == []
    (fresh,), (old,) = row["kernels"], known[case.name]["kernels"]
    assert fresh["tensor_core"] == old["tensor_core"] and fresh["int_to_float"] == 0
    assert fresh["blocks_per_sm"] >= old["blocks_per_sm"] and fresh["tma_loads"] >= old["tma_loads"]
    assert row["moved_bytes"] <= known[case.name]["moved_bytes"]


def test_gradients_and_vmap_compile(compiler):
    """Forward on Hopper's kernel after Triton's rounding, for each of two batches; backward by the formula."""
    x, weight = spec("Qwen3-0.6B/kv", 128).arguments()
    layout = spec("Qwen3-0.6B/kv", 128).layout
    batches = jax.ShapeDtypeStruct((2, *x.shape), x.dtype)

    def both(x, weight):
        def product(x, scale):
            one = weight._replace(scale=scale)
            return jax.vmap(lambda x: w4ax_matmul(x, one, layout, implementation="mosaic"))(x)

        y, pull = jax.vjp(product, x, weight.scale)
        return y, pull(y)

    program = compile_for(both, (batches, weight), H100)
    entries = {name for ptx in program.ptx for name in re.findall(r"\.entry (\w+)", ptx)}
    ours = sorted(name for name in entries if name.startswith("w4ax"))
    assert ours == ["w4ax_matmul_mosaic_mosaic_gpu_kernel", "w4ax_quantize"]
