import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed import QSGD, Identity, Natural, RandK, TopK, message_bytes, wire_bytes
from compressjax.distributed.masha import (
    Masha,
    masha1_init,
    masha1_step,
    masha2_init,
    masha2_step,
    saddle_operator,
    state_specs,
    theory_stepsize,
)

from .meshes import WORKERS, on_workers, workers_mesh

MU = 0.5


def saddle(x, y, data):
    """min_x max_y x'Ay + a'x - b'y + mu/2 |x|^2 - mu/2 |y|^2."""
    return x @ data["A"] @ y + data["a"] @ x - data["b"] @ y + MU / 2 * (x @ x - y @ y)


OPERATOR = saddle_operator(saddle)


def problem(n=8, seed=0, workers=WORKERS, spread=0.3, dtype=np.float64):
    """Data of every worker, solution, and the constants L and the mean of the workers' own."""
    draw = np.random.default_rng(seed)
    base = draw.normal(size=(n, n)) / np.sqrt(n)
    a = base + spread * draw.normal(size=(workers, n, n)) / np.sqrt(n)
    data = {"A": a, "a": draw.normal(size=(workers, n)), "b": draw.normal(size=(workers, n))}
    mean = {name: value.mean(axis=0) for name, value in data.items()}

    def matrix(a):
        return np.block([[MU * np.eye(n), a], [-a.T, MU * np.eye(n)]])

    solution = np.linalg.solve(matrix(mean["A"]), -np.concatenate([mean["a"], mean["b"]]))
    own = np.sqrt(np.mean([np.linalg.norm(matrix(m), 2) ** 2 for m in a]))
    constants = {"lipschitz": np.linalg.norm(matrix(mean["A"]), 2), "mean_lipschitz": own, "strength": MU}
    return jax.tree.map(lambda v: np.asarray(v, dtype), data), solution, constants


def zero(n=8, dtype=jnp.float64):
    return jnp.zeros((n,), dtype), jnp.zeros((n,), dtype)


@functools.partial(jax.jit, static_argnames=("cfg", "init", "step", "count", "operator", "start"))
def run(data, cfg, init, step, count, operator=OPERATOR, start=zero):
    """Trajectory ``[count, d]`` of workers simulated side by side: collectives over a mapped axis."""

    def worker(batch):
        state = init(cfg, operator, start(), batch)

        def go(state, _):
            state, metrics = step(cfg, operator, state, batch)
            z, w = (jnp.concatenate(jax.tree.leaves(t)) for t in (state.z, state.w))
            return state, (z, w, metrics.refreshed, metrics.uplink_bytes)

        return jax.lax.scan(go, state, None, length=count)

    return jax.vmap(worker, axis_name="workers")(data)


def distance(data, cfg, init, step, count, solution, **options):
    """Squared distances to the solution, relative, of z by step."""
    _, (z, *_) = run(data, cfg, init, step, count, **options)
    assert np.array_equal(z[0], z[-1]), "workers must not part"
    return np.sum((np.asarray(z[0]) - solution) ** 2, axis=1) / np.sum(solution**2)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


ONE, TWO = (masha1_init, masha1_step), (masha2_init, masha2_step)


@pytest.mark.parametrize(
    "method, transport", [(ONE, "sra"), (TWO, "sra"), slow(ONE, "allgather"), slow(TWO, "allgather")]
)
def test_without_compression_it_is_extragradient(method, transport):
    with jax.enable_x64(True):
        data, _, _ = problem()
        cfg = Masha(gamma=0.2, p=1.0, up=Identity(), transport=transport)
        _, (z, *_) = run(data, cfg, *method, 5)
        mean = {name: value.mean(axis=0) for name, value in data.items()}
        point = zero()
        for step in range(5):
            half = jax.tree.map(lambda v, f: v - 0.2 * f, point, OPERATOR(point, mean))
            point = jax.tree.map(lambda v, f: v - 0.2 * f, point, OPERATOR(half, mean))
            np.testing.assert_allclose(z[0][step], np.concatenate(point), atol=1e-12)


@pytest.mark.parametrize(
    "method, cfg",
    [
        (ONE, Masha(gamma=0.15, p=0.25, up=RandK(density=0.25))),
        slow(ONE, Masha(gamma=0.15, p=0.3, up=RandK(density=0.5), down=RandK(density=0.5), transport="allgather")),
        slow(ONE, Masha(gamma=0.1, p=0.3, up=RandK(density=0.25), transport="shared_mask")),
        slow(ONE, Masha(gamma=0.1, p=0.3, up=RandK(density=0.5), participate=2)),
        slow(TWO, Masha(gamma=0.1, p=0.3, up=TopK(density=0.5))),
        (TWO, Masha(gamma=0.1, p=0.3, up=TopK(density=0.5), down=TopK(density=0.75), transport="allgather")),
        slow(TWO, Masha(gamma=0.05, p=0.3, up=TopK(density=0.5), down=TopK(density=0.75), participate=3)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else f"{value.transport}-{value.down}-{value.participate}",
)
def test_both_reach_the_solution_without_a_floor(method, cfg):
    with jax.enable_x64(True):
        data, solution, _ = problem()
        found = distance(data, cfg, *method, 1500, solution)
        assert found[-1] < 1e-10, found[::300]


@pytest.mark.slow
def test_the_same_compression_without_a_snapshot_stalls():
    """Extragradient on compressed operators themselves: the noise does not vanish at the solution."""
    with jax.enable_x64(True):
        data, solution, _ = problem(spread=1.0)
        compressor = RandK(density=0.25)

        def mean_of(operator, point, batch, key):
            flat = jnp.concatenate(operator(point, batch))
            me = jax.lax.axis_index("workers")
            sent = compressor.decode(
                compressor.encode(flat, jax.random.fold_in(key, me)), 16, jax.random.fold_in(key, me)
            )
            return jax.lax.pmean(sent, "workers")

        def worker(batch):
            def go(z, t):
                one, two = jax.random.split(jax.random.fold_in(jax.random.key(0), t))
                half = z - 0.05 * mean_of(OPERATOR, (z[:8], z[8:]), batch, one)
                z = z - 0.05 * mean_of(OPERATOR, (half[:8], half[8:]), batch, two)
                return z, z

            return jax.lax.scan(go, jnp.zeros((16,)), jnp.arange(1500))[1]

        z = np.asarray(jax.jit(jax.vmap(worker, axis_name="workers"))(data)[0])
        plain = np.sum((z - solution) ** 2, axis=1) / np.sum(solution**2)
        ours = distance(data, Masha(gamma=0.1, p=0.25, up=compressor), *ONE, 1500, solution)
        assert np.median(plain[-300:]) > 1e-4 and ours[-1] < 1e-8


@pytest.mark.parametrize(
    "options",
    [
        {"participate": 2},
        slow({}),
        slow({"down": RandK(density=0.5), "transport": "allgather"}),
        slow({"transport": "shared_mask"}),
    ],
)
def test_the_step_size_of_the_theory_contracts_as_it_says(options):
    with jax.enable_x64(True):
        data, solution, constants = problem(seed=3)
        p, up = 0.3, RandK(density=0.5)
        gamma = theory_stepsize(
            **constants,
            workers=WORKERS,
            q_up=2.0,
            q_down=2.0 if "down" in options else 1.0,
            p=p,
            participate=options.get("participate"),
            shared_mask=options.get("transport") == "shared_mask",
        )
        _, (z, w, *_) = run(data, Masha(gamma=gamma, p=p, up=up, **options), *ONE, 400)
        tau = 1 - p
        start = (tau + 1) * np.sum(solution**2)
        last = tau * np.sum((z[0][-1] - solution) ** 2) + np.sum((w[0][-1] - solution) ** 2)
        assert last <= (1 - gamma * MU / 2) ** 400 * start


def test_memories_hold_what_was_not_sent():
    """Sum of the answers + the server's memory + the mean of the workers' = sum of what was asked."""
    with jax.enable_x64(True):
        data, _, _ = problem()
        cfg = Masha(gamma=0.1, p=0.3, up=TopK(density=0.25), down=TopK(density=0.5), transport="allgather")

        def worker(batch):
            state = masha2_init(cfg, OPERATOR, zero(), batch)

            def go(state, _):
                before = state
                state, metrics = masha2_step(cfg, OPERATOR, state, batch)
                asked = cfg.gamma * (jnp.concatenate(OPERATOR(metrics.half, batch)) - before.local[0])
                answer = jnp.concatenate(metrics.half) - jnp.concatenate(state.z)
                return state, (asked, answer)

            state, (asked, answer) = jax.lax.scan(go, state, None, length=20)
            return asked.sum(axis=0), answer.sum(axis=0), state.memory[0], state.served[0]

        asked, answer, memory, served = jax.jit(jax.vmap(worker, axis_name="workers"))(data)
        np.testing.assert_allclose(answer[0] + served[0] + memory.mean(axis=0), asked.mean(axis=0), atol=1e-10)
        assert np.abs(memory).max() > 1e-3 and np.abs(served).max() > 1e-3


def test_a_projection_keeps_the_box_and_finds_its_solution():
    with jax.enable_x64(True):
        draw = np.random.default_rng(1)
        data = {
            "A": np.broadcast_to(draw.normal(size=(2, 2)), (WORKERS, 2, 2)),
            "a": 3 * draw.normal(size=(WORKERS, 2)),
            "b": 3 * draw.normal(size=(WORKERS, 2)),
        }

        def box(z, gamma):
            del gamma
            return jax.tree.map(lambda v: jnp.clip(v, -1.0, 1.0), z)

        cfg = Masha(gamma=0.08, p=0.3, up=RandK(density=0.5), prox=box)
        start = functools.partial(zero, 2)
        _, (z, *_) = run(data, cfg, *ONE, 2000, start=start)
        found = np.asarray(z[0][-1])
        assert np.all(np.abs(found) <= 1)
        mean = {name: value.mean(axis=0) for name, value in data.items()}
        # Nothing in the box improves on either player, on a fine grid.
        axis = np.linspace(-1, 1, 81)
        grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        value = float(saddle(found[:2], found[2:], mean))
        play = jax.vmap(saddle, in_axes=(0, None, None)), jax.vmap(saddle, in_axes=(None, 0, None))
        assert play[0](grid, found[2:], mean).min() >= value - 1e-6
        assert play[1](found[:2], grid, mean).max() <= value + 1e-6
        with pytest.raises(ValueError, match="MASHA2 has no proximal step"):
            run(data, cfg, *TWO, 1, start=start)


@pytest.mark.slow
def test_differences_of_a_minibatch_are_taken_on_it_at_both_points():
    """With a finite sum per worker, one member at a time still reaches the solution."""
    with jax.enable_x64(True):
        data, solution, _ = problem(workers=WORKERS * 3)
        parts = jax.tree.map(lambda v: v.reshape(WORKERS, 3, *v.shape[1:]), data)
        cfg = Masha(gamma=0.1, p=0.3, up=RandK(density=0.5))

        def operator(z, batch):
            return jax.tree.map(lambda f: jnp.mean(f, axis=0), jax.vmap(OPERATOR, in_axes=(None, 0))(z, batch))

        def worker(batch):
            def go(state, t):
                me = jax.lax.axis_index("workers")
                j = jax.random.randint(jax.random.fold_in(jax.random.fold_in(jax.random.key(9), t), me), (), 0, 3)
                member = jax.tree.map(lambda v: jax.lax.dynamic_slice_in_dim(v, j, 1), batch)
                state, _ = masha1_step(cfg, operator, state, batch, minibatch=member)
                return state, None

            state = masha1_init(cfg, operator, zero(), batch)
            return jnp.concatenate(jax.lax.scan(go, state, jnp.arange(1500))[0].z)

        z = jax.jit(jax.vmap(worker, axis_name="workers"))(parts)[0]
        assert np.sum((z - solution) ** 2) < 1e-10 * np.sum(solution**2)


@pytest.mark.parametrize("compressor", [RandK(density=0.25), slow(QSGD(bits=4, bucket=32)), slow(Natural())])
def test_on_devices_only_messages_are_sent_but_at_a_refresh(compressor):
    n, workers = 128, WORKERS
    data, _, _ = problem(n, dtype=np.float32)
    cfg = Masha(gamma=0.1, p=0.25, up=compressor, down=compressor)

    def step(flat):
        batch = {"A": flat[: n * n].reshape(n, n), "a": flat[n * n : n * n + n], "b": flat[n * n + n :]}
        state = masha1_init(cfg, OPERATOR, zero(n, jnp.float32), batch)
        once, _ = masha1_step(cfg, OPERATOR, state, batch)
        return jnp.concatenate(once.z), once.mean  # what a branch computes must be used, or it is compiled away

    rows = np.concatenate([data["A"].reshape(workers, -1), data["a"], data["b"]], axis=1)
    found = wire_bytes(on_workers(step).lower(jnp.asarray(rows)).compile())
    full = 2 * (workers - 1) / workers * 2 * n * 4
    chunk = 2 * n // workers
    # Both directions: (M - 1) messages of a chunk each; the initial exchange is in full.
    messages = 2 * (workers - 1) * message_bytes(compressor, chunk)
    assert messages < full / 2
    np.testing.assert_allclose(found.always, full + messages, rtol=1e-6)
    np.testing.assert_allclose(sum(found.branches.values()), full)


def test_devices_and_simulated_workers_agree():
    data, _, _ = problem(dtype=np.float32)
    cfg = Masha(gamma=0.1, p=0.4, up=RandK(density=0.25), down=RandK(density=0.5))

    def init(batch):
        return masha1_init(cfg, OPERATOR, zero(8, jnp.float32), jax.tree.map(lambda v: v[0], batch))

    def step(state, batch):
        return masha1_step(cfg, OPERATOR, state, jax.tree.map(lambda v: v[0], batch))[0]

    rows, specs = jax.sharding.PartitionSpec("workers"), state_specs("workers")
    shard = functools.partial(jax.shard_map, mesh=workers_mesh(), check_vma=False)
    state = jax.jit(shard(init, in_specs=rows, out_specs=specs))(data)
    advance = jax.jit(shard(step, in_specs=(specs, rows), out_specs=specs))
    for _ in range(6):
        state = advance(state, data)
    _, (z, _, refreshed, sent) = run(data, cfg, *ONE, 6, start=functools.partial(zero, 8, jnp.float32))
    np.testing.assert_allclose(jnp.concatenate(state.z), z[0][-1], atol=1e-6)
    assert state.local.shape == (4, 16)
    expected = message_bytes(cfg.up, 16) + np.asarray(refreshed[0]) * 16 * 4
    np.testing.assert_allclose(sent[0], expected)


def test_step_sizes_by_formula():
    args = {
        "lipschitz": 2.0,
        "mean_lipschitz": 3.0,
        "strength": 0.0,
        "workers": 5,
        "q_up": 4.0,
        "q_down": 1.5,
        "p": 0.5,
    }
    assert theory_stepsize(**args) == pytest.approx(np.sqrt(0.25 / (1.5 * (4 + 3 * 9 / 5))))
    assert theory_stepsize(**args, participate=2) == pytest.approx(np.sqrt(0.25 / (1.5 * (4 + (3 / 4 + 3) * 9 / 2))))
    assert theory_stepsize(**args, shared_mask=True) == pytest.approx(np.sqrt(0.25 / (1.5 * 4 * 4)))
    strong = theory_stepsize(**{**args, "strength": 10.0})
    assert strong == pytest.approx(0.025)
    with pytest.raises(ValueError, match=r"participate must be in 1..5, got 6"):
        theory_stepsize(**args, participate=6)
    with pytest.raises(ValueError, match="at least 1"):
        theory_stepsize(**{**args, "q_up": 0.5})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"p": 0.0}, r"p must be in \(0, 1\], got 0.0"),
        ({"gamma": -1.0}, "gamma must be > 0, got -1.0"),
        ({"transport": "ring"}, "transport must be"),
        ({"transport": "shared_mask", "up": QSGD()}, "must be RandK for a shared mask, got QSGD"),
        ({"participate": 0}, "participate must be None or >= 1, got 0"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ValueError, match=message):
        Masha(**fields)


@pytest.mark.parametrize(
    "method, fields, message",
    [
        (ONE, {"up": TopK(density=0.5)}, "MASHA1 needs unbiased compressors"),
        (ONE, {"down": TopK(density=0.5)}, "Masha.down=TopK"),
        (TWO, {"up": RandK(density=0.5)}, "MASHA2 needs contractive compressors"),
        (TWO, {"transport": "shared_mask"}, "MASHA2 takes 'sra' or 'allgather'"),
        (ONE, {"participate": 5}, "participate=5 exceeds the 4 workers"),
    ],
)
def test_compressors_that_do_not_suit_the_method_are_refused(method, fields, message):
    data, _, _ = problem(dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        run(data, Masha(**fields), *method, 1, start=functools.partial(zero, 8, jnp.float32))
