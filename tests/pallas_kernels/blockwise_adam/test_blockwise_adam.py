"""Adam's step in the interpreter against float64, against the library's own 8-bit optimizers, and reached by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from compressjax.ops import on_gpu
from compressjax.training.eight_bit import (
    StatePolicy,
    adam_8bit,
    adamw_8bit,
    code_map,
    lamb_8bit,
    quantize_blockwise,
    scale_by_adam_8bit,
)
from compressjax.training.eight_bit.adam_on_gpu import AdamParts, kernel_refusal
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.blockwise_adam import AdamLayout, Hyper, Moments, blockwise_adam
from pallas_kernels.blockwise_adam.layout import tables
from pallas_kernels.blockwise_adam.reference import blockwise_adam_reference, decoded_reference, nearest_reference
from pallas_kernels.blockwise_adam.specs import SPECS, dynamic_map

pytestmark = pytest.mark.kernels
OPTAX = pytest.mark.standard_promotion("optax.adam mixes the dtypes of its moments")

SIGNED, UNSIGNED = dynamic_map(signed=True), dynamic_map(signed=False)
HYPER = Hyper(0.9, 0.99, 1 - 0.9**3, 1 - 0.99**3, 1e-8, 0.0, 0.1, 0.01)
SMALL = BlockConfig(values=128, warps=4)  # several programs, some with lanes beyond the array


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def layout(**changed) -> AdamLayout:
    return AdamLayout(**(dict(block=32, m_map=SIGNED, v_map=UNSIGNED) | changed))


def stored(shape, lay) -> Moments:
    mode = "flat" if lay.flat else "last"
    m = quantize_blockwise(normal(shape, 1), np.asarray(SIGNED, np.float32), lay.block, axis_mode=mode, keep_sign=True)
    v = quantize_blockwise(normal(shape, 2) ** 2, np.asarray(UNSIGNED, np.float32), lay.block, axis_mode=mode)
    return Moments(m.codes, m.absmax, v.codes, v.absmax)


CASES = {  # shape, layout, dtypes of the gradient and of the parameter
    "short-blocks": ((3, 44), layout(keep_sign=False), "float32", "float32"),
    "flat": ((5, 70), layout(block=64, flat=True, keep_sign=False), "bfloat16", None),
    "odd-blocks": ((2, 48), layout(block=24, keep_sign=False), "float16", "bfloat16"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step(light_jit, name):
    shape, lay, dtype, param = CASES[name]
    g, moments = normal(shape, dtype=dtype), stored(shape, lay)
    p = None if param is None else normal(shape, 3, param)

    def both(g, moments, p):
        return [
            blockwise_adam(g, moments, HYPER, lay, p=p, implementation=i, config=SMALL) for i in ("interpret", "xla")
        ]

    (out, fresh), (same, formula) = light_jit(both)(g, moments, p)
    known = blockwise_adam_reference(g, moments, HYPER, p, lay)
    wanted = known.direction if known.p is None else known.p
    for got, codes in ((out, fresh), (same, formula)):
        eps = float(jnp.finfo(got.dtype).eps)
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=max(eps, 2e-5), atol=1e-5)
        m = decoded_reference(codes.m_codes, codes.m_scale, lay.m_map, lay)
        v = decoded_reference(codes.v_codes, codes.v_scale, lay.v_map, lay)
        # As near as the nearest value, but for the rounding of float32.
        for got, exact, values in ((m, known.m, lay.m_map), (v, known.v, lay.v_map)):
            best = np.abs(nearest_reference(exact, values, lay) - exact)
            assert np.all(np.abs(got - exact) <= best + 1e-6 * np.max(np.abs(exact)))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, moments)
    assert np.mean(np.asarray(fresh.m_codes) != np.asarray(moments.m_codes)) > 0.5


@OPTAX
def test_codes_are_those_of_the_library(light_jit):
    """Three steps of optax's Adam around decoded states, then one by the kernel from the same state."""
    lay, shape = layout(), (4, 96)
    tx = scale_by_adam_8bit(0.9, 0.99, policy=StatePolicy(min_size=1, block_size=32))
    state = tx.init(normal(shape))
    update = jax.jit(tx.update)
    for seed in range(3):
        known = state
        g = normal(shape, seed)
        direction, state = update(g, state)
    before, after = (
        Moments(s.inner.mu.codes, s.inner.mu.absmax, s.inner.nu.codes, s.inner.nu.absmax) for s in (known, state)
    )
    ours, fresh = light_jit(lambda g, m: blockwise_adam(g, m, HYPER, lay, implementation="interpret"))(g, before)
    np.testing.assert_allclose(ours, direction, rtol=2e-5)
    np.testing.assert_array_equal(fresh.m_codes, after.m_codes)
    np.testing.assert_array_equal(fresh.v_codes, after.v_codes)
    np.testing.assert_allclose(fresh.m_scale, after.m_scale, rtol=1e-6)
    np.testing.assert_allclose(fresh.v_scale, after.v_scale, rtol=1e-6)


def test_signs_zeros_and_what_is_not_finite(light_jit):
    """Tiny negative moments keep their sign, an empty block keeps scale 0, a NaN makes its block NaN or is skipped."""
    g = jnp.zeros((4, 32)).at[0, :2].set(jnp.asarray([1.0, -1e-9])).at[2, 0].set(jnp.nan).at[3].set(1e-39)
    zero = SIGNED.index(0.0)
    empty = Moments(
        jnp.full(g.shape, zero, jnp.uint8), jnp.zeros((4, 1)), jnp.zeros(g.shape, jnp.uint8), jnp.zeros((4, 1))
    )

    def both(g):
        return [
            blockwise_adam(g, empty, HYPER, lay, p=jnp.ones(g.shape), implementation="interpret", config=SMALL)
            for lay in (layout(), layout(skip_nonfinite=True))
        ]

    (out, fresh), (skipped, finite) = light_jit(both)(g)
    assert fresh.m_codes[0, 1] == zero - 1 and fresh.m_codes[0, 2] == zero
    np.testing.assert_array_equal(fresh.m_scale[1], 0)
    np.testing.assert_array_equal(fresh.m_scale[3], 0)
    assert bool(jnp.isnan(fresh.m_scale[2, 0])) and bool(jnp.isnan(out[2, 0])) and not bool(jnp.isnan(out[2, 1]))
    assert not any(bool(jnp.any(jnp.isnan(a))) for a in (skipped, finite.m_scale, finite.v_scale))
    assert skipped[2, 0] == 1 and finite.m_codes[2, 0] == zero, "not even decayed"
    np.testing.assert_allclose(skipped[0], out[0])


def test_under_vmap(light_jit):
    lay, shape = layout(), (2, 2, 32)
    g, moments = normal(shape), stored(shape, lay)

    def both(g, moments):
        one = jax.vmap(lambda g, m: blockwise_adam(g, m, HYPER, lay, implementation="interpret"))
        return one(g, moments)[1], blockwise_adam(g, moments, HYPER, lay)[1]

    jax.tree.map(np.testing.assert_array_equal, *light_jit(both)(g, moments))


POLICY = StatePolicy(min_size=64, block_size=32)
OPTIMIZERS = {
    "scale_by_adam": lambda policy: scale_by_adam_8bit(policy=policy),
    "adam": lambda policy: adam_8bit(1e-2, policy=policy),
    "adamw": lambda policy: adamw_8bit(optax.linear_schedule(1e-2, 0, 10), policy=policy, mask={"a": True, "b": False}),
    "lamb": lambda policy: lamb_8bit(1e-2, weight_decay=0.1, policy=policy),
}


def tree(seed):
    return {"a": normal((8, 64), seed), "b": normal((5,), seed)}


@pytest.fixture
def as_on_gpu(monkeypatch):
    """A GPU as the default device, with the formula in the kernel's place; the calls it got."""
    calls = []

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "triton"
        calls.append(args[0].shape)
        return blockwise_adam(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr("pallas_kernels.blockwise_adam.blockwise_adam", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    return calls


@OPTAX
@pytest.mark.parametrize(
    "name", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS if name != "adamw")]
)
def test_optimizers_take_the_kernel(as_on_gpu, monkeypatch, name):
    """Two steps each way; states are of one structure, so that training can move between machines."""
    tx, params = OPTIMIZERS[name](POLICY), tree(9)

    def run():
        state, updates = tx.init(params), None
        for seed in range(2):
            updates, state = jax.jit(lambda *args: tx.update(*args))(tree(seed), state, params)
        return updates, state

    ours = run()
    assert as_on_gpu == [(8, 64)] * 2, "the small leaf stays with optax"
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: False)
    theirs = run()
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)

    def alike(a, b):
        assert a.dtype == b.dtype
        if a.dtype == jnp.uint8:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-9)

    jax.tree.map(alike, ours, theirs)


@OPTAX
@pytest.mark.parametrize(
    "policy, what",
    [
        (StatePolicy(min_size=64, block_size=32, skip_nonfinite=True), "skips gradients"),
        (StatePolicy(min_size=64, block_size=32, floor_zeros={"nu"}), "floors zeros"),
        (StatePolicy(min_size=10**6), "no moment is in 8 bits"),
        (StatePolicy(min_size=64, fields=(("mu", "signed"),)), "one moment is in 8 bits"),
    ],
)
def test_steps_the_kernel_does_not_take(as_on_gpu, policy, what):
    tx = scale_by_adam_8bit(policy=policy)
    state = tx.init(tree(0))
    tx.update(tree(1), state)
    assert as_on_gpu == []
    parts = AdamParts(b1=0.9, b2=0.999, eps=1e-8, rest=None)
    assert what in str(kernel_refusal(tree(1), state, parts, policy))


@OPTAX
def test_sharded_arrays_are_not_gathered_for_a_kernel():
    tx = scale_by_adam_8bit(policy=POLICY)
    parts = AdamParts(b1=0.9, b2=0.999, eps=1e-8, rest=None)
    state = tx.init(tree(0))
    assert jax.device_count() > 1 and "sharded" in str(kernel_refusal(tree(1), state, parts, POLICY))
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    found = []

    def inside(g):
        found.append(kernel_refusal(g, state, parts, POLICY))
        return g

    jax.eval_shape(jax.shard_map(inside, mesh=mesh, in_specs=P(), out_specs=P()), tree(1))
    assert found == [None]


def test_maps_are_those_of_the_library():
    for name, ours in (("signed", SIGNED), ("unsigned", UNSIGNED)):
        np.testing.assert_array_equal(np.asarray(ours, np.float32), code_map(name))
    values = tables(layout())
    assert values.shape == (4, 256) and np.all(np.diff(values, axis=1) > 0)


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(m_codes=jnp.zeros((2, 64), jnp.int8)), r"m_codes must be uint8 of shape \(2, 64\), got int8"),
        (dict(v_scale=jnp.zeros((2, 3))), r"v_scale must be float32 of shape \(2, 2\), got float32 of shape \(2, 3\)"),
    ],
)
def test_moments_that_do_not_fit(changed, what):
    g = jnp.zeros((2, 64))
    with pytest.raises(ValueError, match=f"blockwise_adam: {what}"):
        blockwise_adam(g, stored(g.shape, layout())._replace(**changed), HYPER, layout())


def test_other_arguments_that_do_not_fit():
    g, moments = jnp.zeros((2, 64)), stored((2, 64), layout())
    with pytest.raises(TypeError, match="g must be bfloat16, float16 or float32, got int32"):
        blockwise_adam(g.astype(jnp.int32), moments, HYPER, layout())
    with pytest.raises(ValueError, match=r"p must have the shape \(2, 64\) of g, got \(2, 32\)"):
        blockwise_adam(g, moments, HYPER, layout(), p=g[:, :32])
    with pytest.raises(ValueError, match="m_map must be 256 ascending values"):
        layout(m_map=SIGNED[:-1])
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        layout(block=0)
    long = jnp.zeros(10_000)
    with pytest.raises(ValueError, match="blocks of 10000 values, the kernel takes 8192"):
        blockwise_adam(
            long, stored(long.shape, layout(block=20_000)), HYPER, layout(block=20_000), implementation="interpret"
        )


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        args = spec.arguments()
        call = lambda g, m, h, p=None, lay=spec.layout: blockwise_adam(g, m, h, lay, p=p)  # noqa: E731
        out, moments = jax.eval_shape(call, *args)
        assert out.shape == spec.shape and out.dtype == jnp.dtype(spec.param_dtype or "float32")
        assert jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, args[1])
