"""Statistics as cotangents equal those taken by hand, under scan, masks, sharding and sharing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from compressjax.calibration import (
    Activations,
    Fisher,
    Hessian,
    Moments,
    calibrate,
    calibrate_batch,
    shared_inputs,
)
from compressjax.ops import matmul

DEPTH, WIDTH, INNER = 3, 8, 12


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)

    def kernel(key, *shape):
        return {"kernel": jax.random.normal(key, shape) / 3}

    return {
        "blocks": {
            "up": kernel(keys[0], DEPTH, WIDTH, INNER),
            "gate": kernel(keys[1], DEPTH, WIDTH, INNER),
            "down": kernel(keys[2], DEPTH, INNER, WIDTH),
        },
        "head": kernel(keys[3], WIDTH, 5),
    }


def block(x, p):
    h = jnp.tanh(x)
    act = jnp.tanh(matmul(h, p["gate"]["kernel"])) * matmul(h, p["up"]["kernel"])
    return x + matmul(act, p["down"]["kernel"]), None


def apply(params, batch):
    x, _ = jax.lax.scan(block, batch["x"], params["blocks"])
    return matmul(x, params["head"]["kernel"])


def by_hand(params, x):
    """Inputs of every kernel, in numpy, layer by layer."""
    found = {"up": [], "down": []}
    x = np.asarray(x, np.float64)
    for i in range(DEPTH):
        w = {k: np.asarray(params["blocks"][k]["kernel"][i], np.float64) for k in ("up", "gate", "down")}
        h = np.tanh(x)
        act = np.tanh(h @ w["gate"]) * (h @ w["up"])
        found["up"].append(h)
        found["down"].append(act)
        x = x + act @ w["down"]
    return found, x


@pytest.fixture(scope="module")
def setting():
    return make_params(), jax.random.normal(jax.random.key(7), (4, 6, WIDTH))


def test_hessians_equal_those_by_hand_and_are_shared(setting):
    params, x = setting
    stats = calibrate(apply, params, [{"x": x[:2]}, {"x": x[2:]}])
    assert dict(stats.owner)["blocks/gate/kernel"] == dict(stats.owner)["blocks/up/kernel"]
    assert len(stats.records) == 3 and len(stats) == 4
    found, last = by_hand(params, x)
    for name in ("up", "down"):
        for i in range(DEPTH):
            rows = found[name][i].reshape(-1, found[name][i].shape[-1])
            np.testing.assert_allclose(stats[f"blocks/{name}/kernel"].xtx[i], rows.T @ rows, rtol=1e-4, atol=1e-4)
    rows = last.reshape(-1, WIDTH)
    np.testing.assert_allclose(stats["head/kernel"].xtx, rows.T @ rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(stats["blocks/up/kernel"].count, [24.0] * DEPTH)


def test_masked_tokens_contribute_nothing(setting):
    params, x = setting
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (4, 6))
    poisoned = jnp.where(mask[..., None], x, 50.0)
    one = calibrate(apply, params, [{"x": x, "mask": mask}])
    other = calibrate(apply, params, [{"x": poisoned, "mask": mask}])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert float(one["head/kernel"].count) == float(mask.sum())


def test_moments(setting):
    params, x = setting
    stats = calibrate(apply, params, [{"x": x[:2]}, {"x": x[2:]}], Moments())
    rows = by_hand(params, x)[0]["down"][1].reshape(-1, INNER)
    record = stats["blocks/down/kernel"]
    np.testing.assert_allclose(record.x_sum[1], rows.sum(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(record.abs_sum[1], np.abs(rows).sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(record.abs_max[1], np.abs(rows).max(0), rtol=1e-4, atol=1e-5)


def test_activation_samples_are_rows_of_the_input(setting):
    params, x = setting
    mask = jnp.arange(24).reshape(4, 6) % 3 == 0
    stats = calibrate(apply, params, [{"x": x, "mask": mask}], Activations(per_batch=4))
    samples = stats["blocks/up/kernel"].samples
    assert samples.shape == (DEPTH, 4, WIDTH)
    kept = by_hand(params, x)[0]["up"][2].reshape(-1, WIDTH)[np.asarray(mask).reshape(-1)]
    for row in np.asarray(samples[2]):
        assert np.min(np.abs(kept - row).max(axis=1)) < 1e-4


def test_fisher_is_the_squared_per_example_gradient(setting):
    params, x = setting

    def loss(outputs, batch):
        return jnp.sum(jnp.sin(outputs), axis=(1, 2))

    stats = calibrate(apply, params, [{"x": x}], Fisher(loss=loss))
    grads = jax.vmap(lambda e: jax.grad(lambda p: jnp.sum(loss(apply(p, {"x": e[None]}), None)))(params))(x)
    for path, g in (("blocks/up/kernel", grads["blocks"]["up"]["kernel"]), ("head/kernel", grads["head"]["kernel"])):
        np.testing.assert_allclose(stats[path].fisher, jnp.sum(g**2, axis=0), rtol=2e-3, atol=1e-5)


def test_sharded_over_a_mesh_axis(setting):
    params, x = setting
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    owner = shared_inputs(apply, params, {"x": x})

    def shard(p, b):
        return calibrate_batch(apply, p, b, Hessian(), owner, axis_name="data")

    f = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    for a, b in zip(
        jax.tree.leaves(jax.jit(f)(params, {"x": x})),
        jax.tree.leaves(calibrate(apply, params, [{"x": x}])),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_costs_one_forward_pass_and_the_statistics(setting):
    """The backward pass that carries the cotangents is removed: flops are those of the forward and the products."""
    params = {
        "blocks": {
            k: {"kernel": jnp.ones((4, *s), jnp.float32) / 64}
            for k, s in (("up", (64, 128)), ("gate", (64, 128)), ("down", (128, 64)))
        },
        "head": {"kernel": jnp.ones((64, 8))},
    }
    batch = {"x": jnp.ones((2, 64, 64))}
    owner = shared_inputs(apply, params, batch)

    def flops(f):
        return jax.jit(f).lower(params, batch).compile().cost_analysis()["flops"]

    forward = flops(apply)
    # The compiler counts a loop body once: per layer 64*128*3 multiply-adds forward, 64² + 128² for the products.
    extra = 2 * 128 * (64 * 64 + 128 * 128 + 64 * 64)
    both = flops(lambda p, b: calibrate_batch(apply, p, b, Hessian(), owner))
    assert both < (forward + extra) * 1.25


def test_refusals(setting):
    params, x = setting
    with pytest.raises(ValueError, match="batches is empty"):
        calibrate(apply, params, [])
    with pytest.raises(ValueError, match="match no kernel"):
        calibrate(apply, params, [{"x": x}], paths="nowhere/*")
    with pytest.raises(ValueError, match=r"\['spare/kernel'\] are never multiplied"):
        calibrate(apply, {**params, "spare": {"kernel": jnp.ones((2, 2))}}, [{"x": x}])
    with pytest.raises(ValueError, match="mask has 10 entries for inputs of 24 rows"):
        calibrate(apply, params, [{"x": x, "mask": jnp.ones((2, 5), bool)}])
    with pytest.raises(ValueError, match="statistics of blocks/.* are not finite"):
        calibrate(apply, params, [{"x": x.at[0, 0, 0].set(jnp.nan)}])


def test_fisher_is_each_weights_own_even_where_they_read_one_input():
    rng = np.random.default_rng(5)
    params = {name: {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)} for name in ("gate", "up")}
    x = jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.float32)

    def apply(params, batch):
        return matmul(batch, params["gate"]["kernel"]) * jnp.tanh(matmul(batch, params["up"]["kernel"]))

    def loss(outputs, batch):
        return jnp.sum(outputs**2, axis=(1, 2))

    stats = calibrate(apply, params, [x], Fisher(loss=loss))
    for name in params:
        squares = jnp.zeros((4, 3))
        for row in x:
            gradient = jax.grad(lambda p, row=row: loss(apply(p, row[None]), row[None])[0])(params)[name]["kernel"]
            squares = squares + gradient**2
        np.testing.assert_allclose(stats[f"{name}/kernel"].fisher, squares, rtol=1e-4)
