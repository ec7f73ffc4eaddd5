import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed.l_greco import (
    LGreco,
    accordion_levels,
    adapt,
    dp_allocate,
    error_table,
    plan_bytes,
    size_table,
    uniform_plan,
    units_of,
)
from compressjax.distributed.l_greco.units import level_bytes
from compressjax.distributed.rounded import MinMax

FAMILIES = {
    "powersgd": LGreco(family="powersgd", base=2, min_elems=100),
    "topk": LGreco(family="topk", base=0.05, grid=5, min_elems=100),
    "qsgd": LGreco(family="qsgd", min_elems=100, bucket=64),
}
TREE = {
    "blocks": {"up": jnp.zeros((3, 24, 32)), "scale": jnp.zeros((3, 24))},
    "conv": jnp.zeros((3, 3, 4, 8)),
    "out": jnp.zeros((16, 40)),
    "small": jnp.zeros((4, 4)),
}


def units(cfg):
    return units_of(TREE, cfg)


def matrices(cfg, seed=0):
    draw = np.random.default_rng(seed)
    return [
        jnp.asarray(10.0 ** draw.uniform(-2, 1) * draw.normal(size=(u.rows, u.cols)) * draw.exponential(size=u.cols))
        for u in units(cfg)
    ]


def test_units_are_layers_and_reshaped_arrays():
    found = {unit.name: (unit.rows, unit.cols) for unit in units(FAMILIES["topk"])}
    stacked = {f"blocks/up[{i}]": (24, 32) for i in range(3)}
    assert found == {**stacked, "conv": (36, 8), "out": (16, 40)}
    # A rank of 4 on 36 x 8 does not halve it.
    assert "conv" not in {unit.name for unit in units_of(TREE, LGreco(family="powersgd", base=4, min_elems=100))}
    with pytest.raises(TypeError, match="real and floating, got int32 at 'a'"):
        units_of({"a": jnp.zeros((40, 40), jnp.int32)}, FAMILIES["topk"])


def test_levels_hold_the_base():
    assert FAMILIES["powersgd"].levels == (1.0, 2.0, 3.0, 4.0)
    assert FAMILIES["qsgd"].levels == tuple(map(float, range(2, 9)))
    densities = FAMILIES["topk"].levels
    np.testing.assert_allclose(densities, 0.05 * 10.0 ** np.asarray([-1, -0.5, 0, 0.5, 1]))
    for cfg in (*FAMILIES.values(), LGreco(base=32, grid=4), LGreco(family="topk", base=0.5)):
        assert cfg.levels[cfg.base_level] == cfg.base
        assert list(cfg.levels) == sorted(set(cfg.levels))


@pytest.mark.slow
def test_ranks_have_the_tails_of_the_singular_values():
    cfg = FAMILIES["powersgd"]
    table = error_table(matrices(cfg), units(cfg), cfg)
    for row, norm, g in zip(table.errors, table.norms, matrices(cfg), strict=True):
        sigma = np.linalg.svd(np.asarray(g, np.float64), compute_uv=False)
        np.testing.assert_allclose(row, [np.sqrt(np.sum(sigma[int(r) :] ** 2)) for r in cfg.levels], rtol=1e-4)
        np.testing.assert_allclose(norm, np.linalg.norm(g), rtol=1e-5)
    power = LGreco(family="powersgd", base=2, min_elems=100, svd="power")
    np.testing.assert_allclose(error_table(matrices(cfg), units(cfg), power).errors, table.errors, rtol=0.05)


def test_a_rank_beyond_the_smaller_side_is_ruled_out():
    cfg = LGreco(family="powersgd", base=4, hi=8, min_elems=100)
    tall = {"w": jnp.zeros((200, 12))}
    table = error_table([jnp.ones((200, 12))], units_of(tall, cfg), cfg)
    assert np.array_equal(np.isinf(table.errors[0]), np.asarray(cfg.levels) > 12)
    np.testing.assert_allclose(table.errors[0][10], 0, atol=1e-2)  # rank 12 is everything


@pytest.mark.parametrize("error", ["l2", "l2sq"])
def test_densities_have_the_error_of_leaving_out_the_rest(error):
    cfg = LGreco(family="topk", base=0.05, grid=5, min_elems=100, error=error)
    table = error_table(matrices(cfg), units(cfg), cfg).errors
    for row, g in zip(table, matrices(cfg), strict=True):
        square = np.sort(np.asarray(g, np.float64).reshape(-1) ** 2)[::-1]
        left = [square[max(1, round(level * square.size)) :].sum() for level in cfg.levels]
        np.testing.assert_allclose(row, left if error == "l2sq" else np.sqrt(left), rtol=1e-4)


def test_bits_have_the_error_of_rounding():
    cfg = FAMILIES["qsgd"]
    table = errors_of("qsgd")
    flat = matrices(cfg)[0].reshape(-1)
    coded = MinMax(bits=4, bucket=64)
    back = coded.decode(coded.encode(flat, jax.random.key(0)), flat.size, jax.random.key(0))
    np.testing.assert_allclose(table[0][2], np.linalg.norm(back - flat), rtol=1e-4)


@functools.cache
def errors_of(family):
    cfg = FAMILIES[family]
    return np.asarray(jax.jit(lambda m: error_table(m, units(cfg), cfg).errors)(matrices(cfg)))


@pytest.mark.parametrize("family", FAMILIES)
def test_more_bytes_are_never_more_error(family):
    cfg = FAMILIES[family]
    errors = errors_of(family)
    assert np.all(np.diff(errors, axis=1) <= 1e-5 * errors[:, :1])
    assert np.all(np.diff(size_table(units(cfg), cfg), axis=1) > 0)


def test_the_plan_is_the_best_of_all_on_binned_errors():
    draw = np.random.default_rng(0)
    for _ in range(100):
        shape = draw.integers(1, 6), draw.integers(1, 5)
        errors, sizes = np.sort(draw.random(shape))[:, ::-1], np.sort(draw.integers(1, 99, shape))
        budget, bins = float(draw.uniform(0.2, 3)), 50
        found = dp_allocate(errors, sizes, budget, bins)
        rows, best = np.arange(shape[0]), None
        for levels in itertools.product(range(shape[1]), repeat=shape[0]):
            binned = np.ceil(errors[rows, list(levels)] / budget * bins)
            if binned.sum() <= bins:
                total = sizes[rows, list(levels)].sum()
                best = total if best is None else min(best, total)
        assert (found is None) == (best is None)
        if found is not None:
            levels, total, error = found
            assert total == best and error <= budget * (1 + 1e-12)
            assert error == pytest.approx(errors[rows, levels].sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_adapting_saves_bytes_within_the_budget(family):
    cfg = FAMILIES[family]
    errors = errors_of(family)
    new = adapt(cfg, units(cfg), errors, uniform_plan(units(cfg), cfg))
    assert not new.skipped and new.error <= new.budget and new.cost < new.uniform_cost
    at = np.arange(len(new.plan)), np.asarray(new.plan)
    assert size_table(units(cfg), cfg)[at].sum() == new.cost
    assert adapt(LGreco(**{**vars(cfg), "alpha": 2.0}), units(cfg), errors, ()).cost <= new.cost


def test_a_large_gradient_gets_more_and_equal_ones_stay_uniform():
    cfg = FAMILIES["topk"]
    one = matrices(cfg)[0]
    tree = {"blocks": {"w": jnp.zeros((4, 24, 32))}}
    same = units_of(tree, cfg)
    start = uniform_plan(same, cfg)
    table = np.asarray(error_table([one] * 4, same, cfg).errors)
    equal = adapt(cfg, same, table, start)
    assert equal.cost <= equal.uniform_cost
    flat = adapt(cfg, same, np.linspace(9, 1, 5)[None].repeat(4, 0), start)  # linear errors: nothing to trade
    assert flat.cost == flat.uniform_cost
    scaled = np.asarray(error_table([one, one, 100 * one, one], same, cfg).errors)
    plan = adapt(cfg, same, scaled, start).plan
    assert plan[2] > max(plan[0], plan[1], plan[3]) and plan != start


def test_gradients_that_are_not_finite_keep_the_plan():
    cfg = FAMILIES["topk"]
    errors = np.ones((5, 5))
    errors[1, 2] = np.nan
    kept = adapt(cfg, units(cfg), errors, (0, 1, 2, 3, 4))
    assert kept.skipped and kept.plan == (0, 1, 2, 3, 4)


def test_costs_other_than_bytes():
    cfg, errors = FAMILIES["qsgd"], errors_of("qsgd")
    level = np.ones(errors.shape, int)  # where all take the same time, the budget's own plan is as good as any
    assert adapt(cfg, units(cfg), errors, (), costs=level).plan == uniform_plan(units(cfg), cfg)


def test_accordion_gives_bytes_where_norms_move():
    cfg = FAMILIES["powersgd"]
    plan = accordion_levels(np.ones(5), np.asarray([1.0, 1.6, 0.4, 1.2, 1.0]), units(cfg), cfg, low=0, high=3)
    assert plan == (0, 3, 3, 0, 0)
    errors = errors_of("powersgd")
    combined = adapt(cfg, units(cfg), errors, plan, defaults=plan)
    assert combined.cost <= size_table(units(cfg), cfg)[np.arange(5), plan].sum()
    with pytest.raises(ValueError, match="low and high must be level indices"):
        accordion_levels(np.ones(5), np.ones(5), units(cfg), cfg, low=2, high=1)


def test_bytes_by_formula():
    cfg = FAMILIES["powersgd"]
    compressed, dense = plan_bytes(TREE, uniform_plan(units(cfg), cfg), cfg, 4)
    ranks = sum(level_bytes(unit, 1, cfg) for unit in units(cfg))
    assert ranks == 4 * 2 * (3 * (24 + 32) + 36 + 8 + 16 + 40)
    assert compressed == 1.5 * ranks and dense == 1.5 * 4 * (3 * 24 + 16)
    assert plan_bytes(TREE, (), cfg, 4) == (0.0, 1.5 * 4 * sum(leaf.size for leaf in jax.tree.leaves(TREE)))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"family": "dgc"}, "family must be one of"),
        ({"base": 2.5}, "base must be a whole rank >= 1 for powersgd, got 2.5"),
        ({"family": "topk", "base": 2.0}, "a density in"),
        ({"family": "qsgd", "base": 9}, "2 to 8 whole bits"),
        ({"lo": 1.5}, r"lo must be in \(0, 1\] and hi >= 1, got 1.5 and 2.0"),
        ({"hi": 0.5}, "hi >= 1"),
        ({"alpha": 0.0}, "alpha must be > 0, got 0.0"),
        ({"acc_steps": 200}, "acc_steps must be at most period=100, got 200"),
        ({"bucket": 100}, "bucket must be a positive multiple of 32"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ValueError, match=message):
        LGreco(**fields)


def test_plans_and_tables_that_do_not_fit_are_refused():
    cfg = FAMILIES["topk"]
    with pytest.raises(ValueError, match="the plan has 2 levels, the gradients 5 compressible units"):
        adapt(cfg, units(cfg), np.ones((5, 5)), (), defaults=(1, 1))
    with pytest.raises(ValueError, match=r"tables must be \(5, 5\), got \(4, 5\)"):
        adapt(cfg, units(cfg), np.ones((4, 5)), ())
    with pytest.raises(ValueError, match="bins must be at least the number of units 5, got 4"):
        adapt(LGreco(family="topk", base=0.05, grid=5, min_elems=100, bins=4), units(cfg), np.ones((5, 5)), ())
