import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, PartitionSpec

from compressjax.distributed import pmap_init, pmap_update, wire_bytes
from compressjax.distributed.l_greco import (
    LGreco,
    adapt,
    compress_gradients,
    gradient_table,
    plan_bytes,
    replan,
    state_specs,
    uniform_plan,
    units_of,
)

from .meshes import WORKERS, workers_mesh

AXIS = "workers"
SHAPES = {"blocks": {"w": (2, 24, 40)}, "out": (32, 48), "bias": (40,)}
FAMILIES = {
    "powersgd": LGreco(family="powersgd", base=2, min_elems=100, period=4, acc_steps=2),
    "topk": LGreco(family="topk", base=0.05, min_elems=100, period=4, acc_steps=2),
    "qsgd": LGreco(family="qsgd", min_elems=100, bucket=64, period=4, acc_steps=2),
}
ROWS, ALIKE = PartitionSpec(AXIS), PartitionSpec()


def gradients(seed=0, dtype=jnp.float32):
    """One tree for each worker, stacked."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(draw.normal(size=(WORKERS, *shape)), dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = jax.tree.map(lambda g: g[0], gradients())
MEAN = functools.partial(jax.tree.map, lambda g: np.asarray(g, np.float64).mean(axis=0))


def start(cfg, plan=None):
    make = jax.shard_map(
        compress_gradients(cfg, AXIS, plan).init,
        mesh=workers_mesh(),
        in_specs=ALIKE,
        out_specs=state_specs(AXIS),
        check_vma=False,
    )
    return jax.jit(make)(PARAMS)


@functools.cache
def step_for(cfg, plan=None):
    def local(grads, state):
        mean, state = compress_gradients(cfg, AXIS, plan).update(jax.tree.map(lambda g: g[0], grads), state)
        return jax.tree.map(lambda g: g[None], mean), state

    specs = (ROWS, state_specs(AXIS))
    return jax.jit(jax.shard_map(local, mesh=workers_mesh(), in_specs=specs, out_specs=specs, check_vma=False))


def table_of(cfg, state):
    read = functools.partial(gradient_table, cfg, AXIS)
    specs = (ALIKE, state_specs(AXIS))
    return jax.jit(jax.shard_map(read, mesh=workers_mesh(), in_specs=specs, out_specs=ALIKE, check_vma=False))(
        PARAMS, state
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_all_workers_get_the_same_bits_and_nothing_is_lost_in_the_end(family):
    cfg = FAMILIES[family]
    state, step = start(cfg), step_for(cfg)
    total, asked = None, None
    for seed in range(3):
        mean, state = step(gradients(seed), state)
        for leaf in jax.tree.leaves(mean):
            for worker in range(1, WORKERS):
                np.testing.assert_array_equal(leaf[worker], leaf[0])
        total = jax.tree.map(lambda m, t: np.asarray(m[0]) + t, mean, total or jax.tree.map(lambda m: 0.0, mean))
        asked = jax.tree.map(lambda g, t: g + t, MEAN(gradients(seed)), asked or jax.tree.map(lambda m: 0.0, mean))
    np.testing.assert_allclose(total["bias"], asked["bias"], rtol=1e-5, atol=1e-5)  # vectors are summed as they are
    memory = [np.asarray(m).mean(axis=0) for m in state.memory] if cfg.error_feedback else [0.0, 0.0]
    for left, name in zip(memory, ("blocks", "out"), strict=True):
        sent, wanted = jax.tree.leaves(total[name])[0], jax.tree.leaves(asked[name])[0]
        error = np.abs(sent + left - wanted).max()
        assert error < (1e-4 if cfg.error_feedback else 1.0), name
        assert np.abs(sent - wanted).max() > 1e-3
    assert int(state.step) == 3


@pytest.mark.slow
def test_the_highest_level_is_the_exact_mean():
    wide = LGreco(family="powersgd", base=2, hi=12, min_elems=100)
    full = LGreco(family="topk", base=0.1, min_elems=100)
    for cfg, level in ((wide, 23), (full, len(full.levels) - 1)):
        units = units_of(PARAMS, cfg)
        plan = uniform_plan(units, cfg, level)
        mean, _ = step_for(cfg, plan)(gradients(), start(cfg, plan))
        np.testing.assert_allclose(mean["blocks"]["w"][0], MEAN(gradients())["blocks"]["w"], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_compiled_step_sends_what_the_plan_says(family):
    cfg = FAMILIES[family]
    units = units_of(PARAMS, cfg)
    found = {}
    for plan in (uniform_plan(units, cfg), uniform_plan(units, cfg, 0)):
        compiled = step_for(cfg, plan).lower(gradients(), start(cfg, plan)).compile()
        found[plan] = wire_bytes(compiled).always
        compressed, dense = plan_bytes(PARAMS, plan, cfg, WORKERS)
        assert found[plan] == pytest.approx(compressed + dense, rel=0.02)
    full = sum(plan_bytes(PARAMS, (), cfg, WORKERS))
    assert max(found.values()) < full / 2
    if family == "powersgd":  # half the rank, half the bytes
        big, small = found.values()
        dense = plan_bytes(PARAMS, uniform_plan(units, cfg), cfg, WORKERS)[1]
        assert (small - dense) / (big - dense) == pytest.approx(0.5, rel=0.02)
    nothing = wire_bytes(step_for(cfg, ()).lower(gradients(), start(cfg, ())).compile()).always
    assert nothing == pytest.approx(full, rel=1e-6)


def test_without_a_plan_the_mean_is_exact_and_statistics_are_gathered():
    cfg = FAMILIES["topk"]
    state = start(cfg, ())
    mean, state = step_for(cfg, ())(gradients(), state)
    np.testing.assert_allclose(mean["out"][0], MEAN(gradients())["out"], atol=1e-6)
    assert not any(np.any(m) for m in state.memory)


@pytest.mark.parametrize("family", ["powersgd", pytest.param("topk", marks=pytest.mark.slow)])
def test_a_period_ends_in_a_cheaper_plan_and_the_state_goes_on(family):
    cfg = FAMILIES[family]
    state, step = start(cfg), step_for(cfg)

    def uneven(seed):
        grads = gradients(seed)
        return {**grads, "out": 100 * grads["out"]}

    for seed in range(4):
        _, state = step(uneven(seed), state)
    assert not cfg.adaptation_due(4) and LGreco(**{**vars(cfg), "warmup": 0}).adaptation_due(4)
    table = table_of(cfg, state)
    # The mean of the last two gradients plus memories, worker by worker.
    assert np.asarray(table.norms)[2] > 20 * np.asarray(table.norms)[0]
    units = units_of(PARAMS, cfg)
    old = uniform_plan(units, cfg)
    new = adapt(cfg, units, np.asarray(table.errors), old)
    assert new.cost < new.uniform_cost and new.plan[2] >= old[2] and new.plan[0] < old[0]
    fitted = replan(cfg, PARAMS, state, new.plan)
    for before, after in zip(state.memory, fitted.memory, strict=True):
        np.testing.assert_array_equal(before, after)
    if family == "powersgd":
        shared = min(state.warm[2].shape[2], fitted.warm[2].shape[2])
        np.testing.assert_array_equal(fitted.warm[2][..., :shared], state.warm[2][..., :shared])
        assert fitted.warm[2].shape[2] == cfg.levels[new.plan[2]]
    mean, after = step_for(cfg, new.plan)(uneven(9), fitted)
    assert np.all(np.isfinite(mean["out"])) and int(after.step) == 5


@pytest.mark.slow
def test_bfloat16_gradients_come_back_as_bfloat16():
    cfg = FAMILIES["qsgd"]
    grads = gradients(dtype=jnp.bfloat16)
    mean, state = step_for(cfg)(grads, start(cfg))
    assert {leaf.dtype for leaf in jax.tree.leaves(mean)} == {jnp.dtype(jnp.bfloat16)}
    assert state.gathered[0].dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(mean["out"][0], np.float32), MEAN(grads)["out"], atol=0.3)


def test_a_checkpointed_state_goes_on_bit_for_bit(tmp_path):
    cfg = FAMILIES["powersgd"]
    step = step_for(cfg)
    _, state = step(gradients(0), start(cfg))
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "sync", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "sync", jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
    one, two = (step(gradients(1), s) for s in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_same_under_pmap():
    cfg = FAMILIES["topk"]
    tx = compress_gradients(cfg, AXIS)
    mean, _ = pmap_update(tx, AXIS)(gradients(), pmap_init(tx, PARAMS, AXIS))
    expected, _ = step_for(cfg)(gradients(), start(cfg))
    jax.tree.map(np.testing.assert_array_equal, mean, expected)


@pytest.mark.slow
@pytest.mark.standard_promotion("optax.MultiSteps divides floats by integers")
def test_accumulated_gradients_are_sent_once():
    cfg = FAMILIES["topk"]
    tx = optax.MultiSteps(compress_gradients(cfg, AXIS), every_k_schedule=2)

    def two(grads):
        first, second = (jax.tree.map(lambda g, i=i: g[0, i], grads) for i in range(2))
        state = tx.init(first)
        nothing, state = tx.update(first, state)
        mean, _ = tx.update(second, state)
        return jax.tree.map(lambda g: g[None], (nothing, mean))

    both = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), gradients(0), gradients(1))
    run = jax.jit(jax.shard_map(two, mesh=workers_mesh(), in_specs=ROWS, out_specs=ROWS, check_vma=False))
    nothing, mean = run(both)
    assert not np.any(nothing["out"])
    average = jax.tree.map(lambda a, b: (a + b) / 2, gradients(0), gradients(1))
    expected, _ = step_for(cfg)(average, start(cfg))
    np.testing.assert_allclose(mean["out"], expected["out"], rtol=1e-4, atol=1e-5)


def test_parameters_cut_over_another_axis_compress_shard_by_shard():
    cfg = LGreco(family="topk", base=0.05, grid=5, min_elems=100, period=2, acc_steps=2)
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 48)), jnp.float32)
    specs = state_specs("data", shard_axes=("fsdp",))
    tx = compress_gradients(cfg, "data")
    cut = PartitionSpec("data", None, "fsdp")

    def local(grads):
        state = tx.init({"w": grads[0]})
        for _ in range(2):
            mean, state = tx.update({"w": grads[0]}, state)
        table = gradient_table(cfg, "data", {"w": grads[0]}, state, shard_axes=("fsdp",))
        return mean["w"][None], state, table

    run = jax.shard_map(local, mesh=mesh, in_specs=cut, out_specs=(cut, specs, ALIKE), check_vma=False)
    mean, state, table = jax.jit(run)(grads)
    assert state.memory[0].shape == (4, 32, 24)
    for half in (slice(0, 24), slice(24, 48)):
        assert np.count_nonzero(mean[0][:, half]) in range(39, 78)  # 5 % of 32 x 24 from each of two workers
    assert table.errors.shape == (1, 5) and np.all(np.isfinite(table.errors))
    np.testing.assert_allclose(
        table.norms[0] ** 2, np.sum(np.asarray(state.gathered[0]) ** 2) / 4 / 2, rtol=1e-4
    )  # two steps, mean over two workers, sum over shards


def test_one_worker_is_warned_and_passes_through():
    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    tx = compress_gradients(FAMILIES["topk"], AXIS)

    def local(g):
        return tx.update(g, tx.init(g))[0]

    with pytest.warns(UserWarning, match="axis 'workers' has one worker"):
        out = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=ALIKE, out_specs=ALIKE, check_vma=False))(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, out, PARAMS)


def test_a_plan_for_other_gradients_is_refused():
    with pytest.raises(ValueError, match="the plan has 1 levels, the gradients 3 compressible units"):
        start(FAMILIES["topk"], (1,))
    with pytest.raises(ValueError, match="level 40 is none of 'blocks/w"):
        start(FAMILIES["topk"], (40, 0, 0))
