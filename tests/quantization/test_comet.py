"""COMET: the weights are the GPTQ core's on permuted inputs, and weights that read one input share a plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.leaf import unpack_codes
from compressjax.numerics.nibbles import unpack_nibbles
from compressjax.ops import dense, matmul
from compressjax.quantization import COMET, GPTQ, comet, comet_shared, gptq
from compressjax.quantization.comet_plan import block_width


def problem(width=128, cols=8, tokens=400, outliers=(5, 77), seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) / width**0.5).astype(np.float32)
    x[:, list(outliers)] *= 40
    w = jnp.asarray(rng.normal(size=(width, cols)), jnp.float32)
    stats = Record(
        count=jnp.float32(tokens),
        xtx=jnp.asarray(x.T @ x),
        abs_max=jnp.asarray(np.abs(x).max(0)),
        samples=jnp.asarray(x[::8]),
    )
    return w, stats, jnp.asarray(x)


CFG = COMET(block=32)

# One program per config and shape; run op by op the sweeps take seconds.
solve = functools.partial(jax.jit, static_argnames="cfg")(comet)
solve_shared = functools.partial(jax.jit, static_argnames="cfg")(comet_shared)
solve_gptq = functools.partial(jax.jit, static_argnames="cfg")(gptq)


def test_weight_codes_are_those_of_gptq_on_permuted_inputs():
    w, stats, _ = problem()
    leaf, info = solve(w, stats, cfg=CFG)
    perm = np.asarray(leaf.perm).astype(int)
    moved = Record(xtx=stats.xtx[perm][:, perm], count=stats.count)
    other, _ = solve_gptq(w[perm], moved, cfg=GPTQ(bits=4, group=32, sym=True, order="none", grid="hessian"))
    np.testing.assert_array_equal(unpack_nibbles(leaf.codes, 32), unpack_codes(other).astype(jnp.int32) - 8)
    np.testing.assert_array_equal(leaf.scale, other.scale)
    np.testing.assert_array_equal(dense(leaf)[perm], dense(other))
    assert leaf.scale.dtype == jnp.float16 and not bool(info.fallback)


def test_searched_rounding_has_less_output_error_on_uncorrelated_inputs_than_plain():
    w, stats, _ = problem()
    searched = COMET(block=32, weight_solver="rtn")
    alone = Record(xtx=jnp.diag(jnp.diagonal(stats.xtx)), count=stats.count, abs_max=stats.abs_max)
    _, info = solve(w, alone, cfg=searched)
    assert float(info.error) < float(info.rounding_error)
    _, solved = solve(w, stats, cfg=CFG)
    _, rounded = solve(w, stats, cfg=searched)
    assert float(solved.error) < float(rounded.error)


def test_weights_of_one_input_share_plan_and_factor():
    w, stats, _ = problem()
    parts = solve_shared((w[:, :3], w[:, 3:]), stats, cfg=CFG)
    whole = solve(w, stats, cfg=CFG)[0]
    np.testing.assert_array_equal(parts[0][0].perm, parts[1][0].perm)
    np.testing.assert_array_equal(jnp.concatenate([dense(leaf) for leaf, _ in parts], axis=1), dense(whole))


def test_outputs_with_wide_outlier_blocks_are_closer():
    w, stats, x = problem()
    errors = {}
    for name, options in {
        "narrow": {"max_hi_fraction": 0.0, "permute": False},
        "blocks": {"permute": False},
        "sorted": {},
        "wide": {"lo_bits": 8},
    }.items():
        cfg = COMET(block=32, weight_solver="rtn", **options)
        errors[name] = float(jnp.sum((matmul(x, solve(w, stats, cfg=cfg)[0]) - x @ w) ** 2))
    assert errors["wide"] < errors["sorted"] < errors["blocks"] < errors["narrow"]


def test_blocks_halve_where_only_the_half_divides_and_are_padded_otherwise():
    assert [block_width(n, COMET(block=128)) for n in (256, 192, 200)] == [128, 64, 128]
    assert [block_width(n, COMET(block=32)) for n in (96, 80)] == [32, 32]
    w, stats, x = problem(width=100)
    cfg = COMET(block=64, max_hi_fraction=0.5, hi_bits=16, lo_bits=16, weight_solver="rtn")
    leaf, _ = solve(w, stats, cfg=cfg)
    assert (leaf.block, leaf.scale.shape[0]) == (64, 2)
    error = jnp.abs(matmul(x, leaf) - x @ dense(leaf))
    assert float(jnp.max(error)) < 1e-3 * float(jnp.max(jnp.abs(x @ w)))


def test_without_sorting_and_wide_blocks_nothing_moves_and_no_index_is_stored():
    w, stats, _ = problem()
    leaf, _ = solve(w, stats, cfg=COMET(block=32, max_hi_fraction=0.0, permute=False, weight_solver="rtn"))
    assert leaf.perm is None and int(leaf.n_hi) == 0
    # Of weights in another order the squared distance would be twice the energy.
    assert float(jnp.mean((dense(leaf) - w) ** 2)) < 0.5 * float(jnp.mean(w**2))


@pytest.mark.parametrize(
    "message, options",
    [
        ("block must be one of", {"block": 100}),
        ("weight_bits must be 4, got 8", {"weight_bits": 8}),
        (r"max_hi_fraction must be in \[0, 1\], got 1.5", {"max_hi_fraction": 1.5}),
        ("rule must be one of", {"rule": "best"}),
        ("weight_solver must be one of", {"weight_solver": "none"}),
        ("lo_bits must be at most hi_bits=4", {"hi_bits": 4, "lo_bits": 8}),
        ("tau must be >= 1", {"tau": 0.5}),
        ("damp must be > 0", {"damp": 0.0}),
        ("act_clip must be in", {"act_clip": 1.5}),
        ("samples must be >= 1", {"samples": 0}),
    ],
)
def test_config_refusals(message, options):
    with pytest.raises(ValueError, match=f"COMET.{message}"):
        COMET(**options)


def test_statistics_that_are_missing_or_do_not_fit_are_named():
    w, stats, _ = problem()
    with pytest.raises(ValueError, match="record.xtx is missing"):
        comet(w, Record(abs_max=stats.abs_max), CFG)
    with pytest.raises(ValueError, match="needs record.abs_max"):
        comet(w, Record(xtx=stats.xtx, count=stats.count), CFG)
    with pytest.raises(ValueError, match="needs record.samples"):
        comet(w, Record(xtx=stats.xtx, count=stats.count, abs_max=stats.abs_max), COMET(block=32, rule="error"))
    with pytest.raises(ValueError, match="record.xtx is for 128 inputs, weights have"):
        comet(w[:96], stats, CFG)
    with pytest.raises(ValueError, match="block=256 is wider than the 128 inputs"):
        comet(w, stats, COMET(block=256))
    with pytest.raises(ValueError, match="finite abs_max that is not zero everywhere"):
        comet(w, Record(xtx=stats.xtx, count=stats.count, abs_max=jnp.zeros(128)), CFG)
    with pytest.raises(TypeError, match="quantises dense weights"):
        comet(solve(w, stats, cfg=CFG)[0], stats, CFG)


def test_compiles_once_per_shape_and_config():
    for seed in (0, 1):
        solve(*problem(seed=seed)[:2], cfg=CFG)
    before = solve._cache_size()
    solve(*problem(seed=2)[:2], cfg=CFG)
    assert solve._cache_size() == before
