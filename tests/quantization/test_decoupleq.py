"""decoupleQ: neither part of the alternation may do worse than before, and each is exact where it claims to be."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.driver import MatrixInfo, block_rule, compress_group, wants_original
from compressjax.leaf import unpack_codes
from compressjax.numerics.grids import Grid
from compressjax.ops import dense, nbits
from compressjax.quantization import GPTQ, RTN, DecoupleQ, decoupleq, gptq, rtn
from compressjax.quantization.decoupleq import alternate, objective_plan
from compressjax.quantization.decoupleq_grid import decode_all, errors, round_all, shrunken_grid, stored_grid
from compressjax.quantization.decoupleq_integers import solve_integers
from compressjax.quantization.decoupleq_solve import solve_scale_offset
from compressjax.training import BlockTuning

WIDTH, OUTPUTS, GROUP = 32, 12, 8
CFG = DecoupleQ(group=GROUP, max_iters=3)


def problem(width=WIDTH, outputs=OUTPUTS, seed=0, tokens=200):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
    w = jnp.asarray(rng.normal(size=(width, outputs)), jnp.float32)
    return w, Record(count=jnp.float32(tokens), xtx=jnp.asarray(x.T @ x)), x


@functools.partial(jax.jit, static_argnames="cfg")
def alternated(w, stats, *, cfg):
    plan = objective_plan(stats, cfg)
    return (*alternate(w, plan, cfg), plan)


def planned(stats, cfg):
    return jax.jit(lambda s: objective_plan(s, cfg)._replace(group=None))(stats)._replace(group=GROUP)


@functools.partial(jax.jit, static_argnames="cfg")
def quantised(w, stats, *, cfg):
    return decoupleq(w, stats, cfg)


@functools.partial(jax.jit, static_argnames=("group", "sym", "out_chunk"))
def solved(w, codes, grid, h, *, group, sym=False, out_chunk=256):
    return solve_scale_offset(w, codes, grid, h, group=group, sym=sym, out_chunk=out_chunk)


def random_codes(shape, bits=2, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**bits, shape), jnp.float32)


def start(groups, outputs=OUTPUTS):
    return Grid(jnp.full((groups, outputs), 0.7), jnp.full((groups, outputs), 1.3))


CONFIGS = (
    CFG,
    DecoupleQ(group=GROUP, max_iters=3, polish=2, block=10),
    DecoupleQ(bits=3, group=-1, sym=True, max_iters=2),
    DecoupleQ(group=GROUP, solver="pgd", pgd_iters=20, round_iters=2, lr=0.02, max_iters=2),
)


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda c: f"{c.solver}-{c.polish}-{c.sym}")
def test_no_output_ever_gets_worse(cfg):
    w, stats, _ = problem()
    best, plain, trace, plan = alternated(w, stats, cfg=cfg)
    trace = np.asarray(trace)
    assert np.all(np.diff(trace, axis=0) <= 0)
    assert trace[-1].mean() < 0.85 * trace[1].mean() < trace[0].mean()
    for row, found in ((-1, best), (0, plain)):
        fresh = errors(w, decode_all(found.codes, found.grid, WIDTH if cfg.group == -1 else GROUP), plan.h)
        np.testing.assert_allclose(trace[row], fresh, rtol=1e-4)


def test_the_leaf_is_the_solution_bit_for_bit():
    w, stats, _ = problem()
    best, *_ = alternated(w, stats, cfg=CFG)
    leaf, info = quantised(w, stats, cfg=CFG)
    np.testing.assert_array_equal(dense(leaf), decode_all(best.codes, best.grid, GROUP))
    miss = w - dense(leaf)
    assert isinstance(info, MatrixInfo) and info.error < info.rounding_error
    np.testing.assert_allclose(info.error, jnp.sum(miss * (stats.xtx @ miss)), rtol=1e-4)


def test_one_iteration_is_gptq_on_min_max_grids():
    w, stats, _ = problem()
    cfg = DecoupleQ(group=-1, bits=3, max_iters=1, sym=True, scale_dtype="float32")
    damped = stats.xtx + cfg.damp * jnp.mean(jnp.diagonal(stats.xtx)) * jnp.eye(WIDTH)
    plain = GPTQ(bits=3, group=-1, sym=True, scale_dtype="float32")
    other, _ = jax.jit(lambda w, s: gptq(w, s, plain))(w, dataclasses.replace(stats, xtx=damped))
    best, start, _, plan = alternated(w, stats, cfg=cfg)
    ours = decode_all(best.codes, best.grid, WIDTH)
    # Where rounding to nearest is better for an output, decoupleQ keeps it.
    moved = np.asarray(jnp.any(best.codes != start.codes, axis=0))
    assert moved.sum() > OUTPUTS // 2
    np.testing.assert_array_equal(np.asarray(best.codes)[:, moved], np.asarray(unpack_codes(other))[:, moved])
    assert np.all(errors(w, ours, plan.h) <= errors(w, dense(other), plan.h) * (1 + 1e-5))


def test_size_is_code_scale_and_zero():
    w, stats, _ = problem()
    leaf, _ = quantised(w, stats, cfg=CFG)
    assert nbits(leaf) == w.size * 2 + (WIDTH // GROUP) * OUTPUTS * 32
    shape = jax.eval_shape(lambda: decoupleq(w, stats, DecoupleQ(bits=3, group=-1, sym=True)))[0]
    assert nbits(shape) == w.size * 3 + OUTPUTS * 16


@pytest.mark.parametrize("group", [GROUP, WIDTH])
def test_scales_and_zeros_are_the_least_squares_solution(group):
    w, stats, x = problem()
    groups = WIDTH // group
    codes = random_codes(w.shape)
    h = stats.xtx
    scale, offset = solved(w, codes, start(groups), h, group=group, out_chunk=5)
    member = np.repeat(np.eye(groups), group, axis=0)
    for r in range(OUTPUTS):
        a = np.concatenate([member * np.asarray(codes)[:, r, None], member], axis=1)
        y = np.linalg.lstsq(x.astype(float) @ a, x.astype(float) @ np.asarray(w)[:, r].astype(float), rcond=None)[0]
        np.testing.assert_allclose(np.concatenate([scale[:, r], offset[:, r]]), y, rtol=2e-3, atol=2e-3)


@jax.jit
def loss_of(scale, offset, w, codes, h):
    return jnp.sum(errors(w, decode_all(codes, Grid(scale, -offset / scale), GROUP), h))


def test_the_gradient_vanishes_at_the_solution_and_any_step_costs():
    w, stats, _ = problem()
    codes = random_codes(w.shape)
    loss = functools.partial(loss_of, w=w, codes=codes, h=stats.xtx)
    at = start(WIDTH // GROUP)
    found = solved(w, codes, at, stats.xtx, group=GROUP)
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    before, after = gradient(at.scale, -at.scale * at.zero), gradient(*found)
    for new, old in zip(after, before, strict=True):
        assert float(jnp.max(jnp.abs(new))) < 1e-4 * float(jnp.max(jnp.abs(old)))
    for seed in range(3):
        step = 0.01 * jax.random.normal(jax.random.key(seed), found[0].shape)
        assert loss(found[0] + step, found[1]) > loss(*found)
        assert loss(found[0], found[1] + step) > loss(*found)


def test_given_the_codes_of_a_quantised_weight_its_grid_is_found_again():
    _, stats, _ = problem()
    rng = np.random.default_rng(3)
    shape = (WIDTH // GROUP, OUTPUTS)
    codes = random_codes((WIDTH, OUTPUTS))
    true = Grid(
        jnp.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 2, shape), jnp.float32),
        jnp.asarray(rng.normal(size=shape), jnp.float32),
    )
    w = decode_all(codes, true, GROUP)
    scale, offset = solved(w, codes, start(WIDTH // GROUP), stats.xtx, group=GROUP)
    np.testing.assert_allclose(scale, true.scale, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(offset, -true.scale * true.zero, rtol=1e-3, atol=2e-3)


def test_white_inputs_make_it_regression_group_by_group():
    w, _, _ = problem()
    codes = random_codes(w.shape)
    scale, offset = solved(w, codes, start(WIDTH // GROUP), 3 * jnp.eye(WIDTH), group=GROUP)
    for g, r in itertools.product(range(WIDTH // GROUP), range(OUTPUTS)):
        rows = slice(g * GROUP, (g + 1) * GROUP)
        slope, at_zero = np.polyfit(np.asarray(codes)[rows, r], np.asarray(w)[rows, r], 1)
        np.testing.assert_allclose([scale[g, r], offset[g, r]], [slope, at_zero], rtol=1e-3, atol=1e-3)


def test_groups_with_one_code_only_stay_finite_and_lose_nothing():
    w, stats, _ = problem()
    codes = random_codes(w.shape).at[:GROUP].set(2).at[GROUP : 2 * GROUP].set(0)
    at = start(WIDTH // GROUP)
    loss = functools.partial(loss_of, w=w, codes=codes, h=stats.xtx)
    scale, offset = solved(w, codes, at, stats.xtx, group=GROUP)
    assert jnp.all(jnp.isfinite(scale)) and jnp.all(jnp.isfinite(offset))
    np.testing.assert_array_equal(scale[:2], at.scale[:2])
    assert loss(scale, offset) < loss(at.scale, -at.scale * at.zero)


def test_symmetric_scale_is_the_quotient_of_the_paper():
    w, stats, _ = problem()
    codes = random_codes(w.shape, bits=3)
    at = Grid(jnp.ones((1, OUTPUTS)), jnp.full((1, OUTPUTS), 4.0))
    scale, offset = solved(w, codes, at, stats.xtx, group=WIDTH, sym=True)
    q = np.asarray(codes, float) - 4
    h, dense_w = np.asarray(stats.xtx, float), np.asarray(w, float)
    expected = np.einsum("ir,ij,jr->r", q, h, dense_w) / np.einsum("ir,ij,jr->r", q, h, q)
    np.testing.assert_allclose(scale[0], expected, rtol=1e-4)
    np.testing.assert_allclose(offset, -4 * scale, rtol=1e-6)


def test_stored_grid_keeps_what_it_can():
    scale = jnp.asarray([[0.3, -0.2, 0.0, 1e-9]])
    offset = jnp.asarray([[-0.5, 0.1, 5.0, 0.0]])
    grid = stored_grid(scale, offset, jnp.full((1, 4), 1.5), bits=2, sym=False, dtype="float16")
    for a in grid:
        assert jnp.all(jnp.isfinite(a))
        np.testing.assert_array_equal(a, a.astype(jnp.float16).astype(jnp.float32))
    # A zero is off by at most half a unit of float16's last place, 2^-11 of itself.
    miss = jnp.abs(grid.scale * (1.5 - grid.zero) - (scale * 1.5 + offset))
    assert jnp.all(miss <= 1.01 * 2.0**-11 * jnp.abs(grid.scale * grid.zero) + 1e-9)
    assert grid.scale[0, 1] < 0


def best_by_brute_force(w, h, bits=2):
    """Least error over all codes, each with its optimal scale and offset, per output; float64."""
    width = w.shape[0]
    best = np.full(w.shape[1], np.inf)
    for codes in itertools.product(range(2**bits), repeat=width):
        a = np.stack([np.asarray(codes, float), np.ones(width)], axis=1)
        y = np.linalg.pinv(a.T @ h @ a) @ (a.T @ h @ w)
        miss = w - a @ y
        best = np.minimum(best, np.einsum("ir,ij,jr->r", miss, h, miss))
    return best


def test_between_the_optimum_and_gptq_and_rounding_on_tiny_weights():
    w, stats, _ = problem(width=4, outputs=20)
    cfg = DecoupleQ(group=-1, max_iters=6, scale_dtype="float32")
    best, plain, trace, plan = alternated(w, stats, cfg=cfg)
    optimum = best_by_brute_force(np.asarray(w, float), np.asarray(plan.h, float))
    assert np.all(np.asarray(best.error) >= optimum * (1 - 1e-3))
    mean = [float(np.mean(e)) for e in (optimum, best.error, trace[1], plain.error)]
    assert mean == sorted(mean) and mean[1] < mean[2] < mean[3]


def test_scaled_weights_have_scaled_grids_and_the_same_codes():
    w, stats, _ = problem()
    one, four = (quantised(c * w, stats, cfg=CFG)[0] for c in (1, 4))
    np.testing.assert_array_equal(one.codes, four.codes)
    np.testing.assert_array_equal(4 * one.scale, four.scale)
    np.testing.assert_array_equal(one.zero, four.zero)


def test_a_constant_added_to_a_group_changes_its_zero_only():
    w, stats, _ = problem()
    codes = random_codes(w.shape)
    at = start(WIDTH // GROUP)
    scale, offset = solved(w, codes, at, stats.xtx, group=GROUP)
    moved_scale, moved_offset = solved(w.at[:GROUP].add(3.0), codes, at, stats.xtx, group=GROUP)
    np.testing.assert_allclose(moved_scale, scale, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moved_offset[0], offset[0] + 3, rtol=1e-3)
    np.testing.assert_allclose(moved_offset[1:], offset[1:], rtol=1e-3, atol=1e-3)


def test_projected_gradients_round_when_inputs_are_independent():
    w, stats, _ = problem(width=16)
    cfg = DecoupleQ(group=GROUP, solver="pgd", pgd_iters=10, round_iters=1)
    stats = dataclasses.replace(stats, xtx=jnp.diag(jnp.linspace(1.0, 9.0, 16)))
    plan = planned(stats, cfg)
    grid = start(2)
    codes = jax.jit(lambda w: solve_integers(w, grid, plan, cfg))(w)
    np.testing.assert_array_equal(codes, round_all(w, grid, 2, GROUP))


def test_coordinate_descent_never_raises_the_error_and_ends_at_a_local_minimum():
    w, stats, _ = problem()
    swept, polished = DecoupleQ(group=GROUP, block=10), DecoupleQ(group=GROUP, polish=30, block=10)
    plan = planned(stats, swept)
    grid = start(WIDTH // GROUP)
    codes = [jax.jit(lambda w, c=c: solve_integers(w, grid, plan, c))(w) for c in (swept, polished)]
    before, after = (errors(w, decode_all(c, grid, GROUP), plan.h) for c in codes)
    assert np.all(np.asarray(after) <= np.asarray(before) * (1 + 1e-5)) and after.sum() < before.sum()
    for i, step in itertools.product(range(0, WIDTH, 5), (-1, 1)):
        other = codes[1].at[i].set(jnp.clip(codes[1][i] + step, 0, 3))
        worse = errors(w, decode_all(other, grid, GROUP), plan.h)
        assert np.all(np.asarray(worse) >= np.asarray(after) * (1 - 1e-4))


def test_coarse_search_is_close_to_the_full_one():
    w, stats, _ = problem()
    h = stats.xtx
    losses = []
    for stride in (1, 8):
        cfg = DecoupleQ(group=GROUP, shrink_stride=stride)

        @jax.jit
        def loss(w, cfg=cfg):
            grid = shrunken_grid(w, h, GROUP, cfg)
            return errors(w, decode_all(round_all(w, grid, 2, GROUP), grid, GROUP), h)

        losses.append(np.asarray(loss(w)))
    assert np.all(losses[0] <= losses[1] * (1 + 1e-5))
    assert losses[1].mean() < 1.15 * losses[0].mean()
    plain = dense(rtn(w, RTN(bits=2, group=GROUP)))
    assert losses[1].mean() < errors(w, plain, h).mean()


def test_weights_with_one_input_are_solved_together_as_alone():
    w, stats, _ = problem()
    both = jax.jit(lambda a, b, s: compress_group((a, b), CFG, s))(w[:, :5], w[:, 5:], stats)
    joined = jnp.concatenate([dense(leaf) for leaf, _ in both], axis=1)
    np.testing.assert_allclose(joined, dense(quantised(w, stats, cfg=CFG)[0]), rtol=1e-3, atol=1e-3)


def test_inputs_that_never_fired_do_no_harm():
    w, stats, _ = problem()
    quiet = stats.xtx.at[3].set(0).at[:, 3].set(0)
    leaf, info = quantised(w, dataclasses.replace(stats, xtx=quiet), cfg=CFG)
    assert int(info.dead) == 1 and not bool(info.fallback) and jnp.all(jnp.isfinite(dense(leaf)))
    leaf, _ = quantised(w, dataclasses.replace(stats, xtx=0 * quiet), cfg=CFG)
    assert jnp.all(jnp.isfinite(dense(leaf)))


def test_moved_weights_come_closer_to_the_outputs_of_other_inputs():
    w, stats, x = problem()
    other = x + 0.3 * np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    both = dataclasses.replace(stats, dxxt=jnp.asarray((other - x).T @ x))
    misses = []
    for record, cfg in ((stats, CFG), (both, dataclasses.replace(CFG, alpha=1.0))):
        leaf, info = quantised(w, record, cfg=cfg)
        misses.append(float(np.sum((other @ np.asarray(w) - x @ np.asarray(dense(leaf))) ** 2)))
        miss = w - dense(leaf)
        np.testing.assert_allclose(info.error, jnp.sum(miss * (stats.xtx @ miss)), rtol=1e-3)
    assert misses[1] < misses[0]
    assert wants_original(DecoupleQ(alpha=0.5))
    with pytest.raises(ValueError, match=r"alpha=1.0 needs record.dxxt"):
        decoupleq(w, stats, DecoupleQ(group=GROUP, alpha=1.0))


def test_the_block_stage_is_that_of_its_tuning():
    assert block_rule({"a": 1}, DecoupleQ(tuning=None), None, None, None) == {"a": 1}
    assert not wants_original(DecoupleQ(tuning=None)) and not wants_original(DecoupleQ())
    assert wants_original(DecoupleQ(tuning=BlockTuning(target="original")))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bits": 9}, "bits must be in 1..8, got 9"),
        ({"sym": True}, "sym=True needs group=-1"),
        ({"group": 0}, "group must be -1"),
        ({"max_iters": 0}, "max_iters must be >= 1"),
        ({"solver": "adam"}, "solver must be one of"),
        ({"shrink_stride": 6}, "power of two"),
        ({"damp": 0.0}, "damp must be > 0"),
        ({"max_shrink": 1.0}, "max_shrink"),
        ({"polish": -1}, "polish must be >= 0"),
        ({"alpha": 1.5}, "alpha must be in"),
    ],
)
def test_refuses_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        DecoupleQ(**wrong)


def test_refuses_inputs():
    w, stats, _ = problem()
    cfg = DecoupleQ(group=GROUP, max_iters=1)
    with pytest.raises(TypeError, match="tuning must be a BlockTuning"):
        DecoupleQ(tuning="yes")
    with pytest.raises(ValueError, match="group=12 does not divide the 32 inputs"):
        decoupleq(w, stats, DecoupleQ(group=12))
    with pytest.raises(ValueError, match="xtx is missing"):
        decoupleq(w, None, cfg)
    with pytest.raises(ValueError, match="Hessian is for 32 inputs"):
        decoupleq(w[:24], stats, cfg)
    with pytest.raises(ValueError, match="symmetric"):
        decoupleq(w, dataclasses.replace(stats, xtx=stats.xtx.at[0, 1].add(50.0)), cfg)
    with pytest.raises(ValueError, match="negative diagonal"):
        decoupleq(w, dataclasses.replace(stats, xtx=stats.xtx.at[0, 0].set(-1.0)), cfg)
    with pytest.raises(ValueError, match="count must be > 0"):
        decoupleq(w, dataclasses.replace(stats, count=jnp.float32(0)), cfg)
    few = dataclasses.replace(stats, count=jnp.float32(3))
    with pytest.warns(UserWarning, match="3 calibration tokens leave 8 scales"):
        jax.eval_shape(lambda w: decoupleq(w, few, cfg), w)
