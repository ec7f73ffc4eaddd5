"""Tensor-format convolutions against the dense convolution with the kernel that their factors make."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from compressjax.factorization.tensor_conv import (
    ConvStack,
    TensorConv,
    TensorConvLayer,
    TensorConvNnx,
    apply_conv,
    balance_conv,
    break_even_conv_rank,
    compress_spec,
    conv_cost,
    conv_kernel,
    factor_shapes,
    init_conv,
    order_of,
    stack_cost,
)

IN, OUT = 2, 3
FACTORED = ("filterwise", "channelwise", "cp", "tucker2")
SIZES = {1: (3,), 2: (3, 5), 3: (3, 1, 2)}
EXTENTS = {1: (9,), 2: (7, 6), 3: (5, 3, 4)}


def drawn(cfg, cin=IN, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in factor_shapes(cfg, cin).items()}


def dense_oracle(p, x, cfg):
    """The definition, tap by tap, in numpy; the kernel from explicit loops over products."""
    kernel = np.zeros((*cfg.kernel_size, x.shape[-1], cfg.features))
    f = {name: np.asarray(value) for name, value in p.items()}
    ranks = range(cfg.rank)
    for at in np.ndindex(*kernel.shape):
        *taps, c, o = at
        if cfg.format == "filterwise":
            terms = (
                f["channel"][c, o, r] * math.prod(f[f"axis{i}"][t, o, r] for i, t in enumerate(taps)) for r in ranks
            )
        elif cfg.format == "channelwise":
            terms = (math.prod(f[f"axis{i}"][t, c, o, r] for i, t in enumerate(taps)) for r in ranks)
        elif cfg.format == "cp":
            terms = (
                f["channel"][c, r] * f["out"][r, o] * math.prod(f[f"axis{i}"][t, r] for i, t in enumerate(taps))
                for r in ranks
            )
        else:
            terms = (
                f["channel"][c, r] * f["core"][(*taps, r, s)] * f["out"][s, o]
                for r, s in itertools.product(ranks, ranks)
            )
        kernel[at] = sum(terms)
    pads = [(0, 0)]
    for axis, k in enumerate(cfg.kernel_size):
        span, n = (k - 1) * cfg.dilation_of[axis] + 1, x.shape[axis + 1]
        need = max(0, (-(-n // cfg.stride_of[axis]) - 1) * cfg.stride_of[axis] + span - n)
        pads.append({"SAME": (need // 2, need - need // 2), "VALID": (0, 0), "CIRCULAR": (span // 2,) * 2}[cfg.padding])
    wide = np.pad(np.asarray(x), [*pads, (0, 0)], mode="wrap" if cfg.padding == "CIRCULAR" else "constant")
    y = 0
    for taps in np.ndindex(*cfg.kernel_size):
        window = wide
        for axis, tap in enumerate(taps):
            d, s, k = cfg.dilation_of[axis], cfg.stride_of[axis], cfg.kernel_size[axis]
            last = wide.shape[axis + 1] - (k - 1 - tap) * d
            window = window[(slice(None),) * (axis + 1) + (slice(tap * d, last, s),)]
        y = y + window @ kernel[taps]
    return y + f["bias"], kernel


CASES = [
    (1, "SAME", 2, 2),
    (1, "VALID", 2, 1),
    (1, "CIRCULAR", 1, 2),
    (2, "SAME", 1, 1),
    (2, "SAME", 2, 1),
    (2, "VALID", 1, (2, 1)),
    (2, "CIRCULAR", (2, 1), 1),
    (3, "SAME", (1, 2, 2), 1),
]


@pytest.mark.parametrize(
    "format, axes, padding, strides, dilation",
    [("filterwise", *case) for case in CASES]
    + [
        (format, *CASES[i])
        for format, at in (("channelwise", (0, 4, 6)), ("cp", (4, 5)), ("tucker2", (4, 7)))
        for i in at
    ],
)
def test_both_orders_are_the_convolution_that_the_factors_define(format, axes, padding, strides, dilation):
    with jax.enable_x64(True):
        size = (3, 1, 3)[:axes] if padding == "CIRCULAR" else SIZES[axes]
        cfg = TensorConv(
            features=OUT, kernel_size=size, format=format, strides=strides, padding=padding, dilation=dilation
        )
        p = drawn(cfg)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *EXTENTS[axes], IN)))
        wanted, kernel = dense_oracle(p, x, cfg)
        np.testing.assert_allclose(conv_kernel(p, cfg), kernel, atol=1e-12)
        for order in ("factors", "kernel"):
            found = apply_conv(p, x, dataclasses.replace(cfg, order=order))
            np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize("format", ["filterwise", "channelwise"])
def test_gradients_do_not_depend_on_the_order(format):
    with jax.enable_x64(True):
        cfg = TensorConv(features=OUT, kernel_size=(3, 3), format=format, strides=(2, 1))
        p, x = drawn(cfg), jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 5, IN)))

        def loss(p, x, order):
            return jnp.sum(jnp.sin(apply_conv(p, x, dataclasses.replace(cfg, order=order))))

        first, second = (jax.grad(loss, (0, 1))(p, x, order) for order in ("factors", "kernel"))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_sobel_is_one_product():
    cfg = TensorConv(features=1, kernel_size=(3, 3), rank=1, use_bias=False)
    p = {
        "channel": jnp.ones((1, 1, 1)),
        "axis0": jnp.asarray([1.0, 2.0, 1.0]).reshape(3, 1, 1),
        "axis1": jnp.asarray([-1.0, 0.0, 1.0]).reshape(3, 1, 1),
    }
    np.testing.assert_array_equal(
        conv_kernel(p, cfg)[..., 0, 0], [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 6, 1)), jnp.float32)
    identity = {**p, "axis0": jnp.eye(3)[1].reshape(3, 1, 1), "axis1": jnp.eye(3)[1].reshape(3, 1, 1)}
    np.testing.assert_array_equal(apply_conv(identity, x, cfg), x)
    shift = {**identity, "axis1": jnp.eye(3)[0].reshape(3, 1, 1)}
    np.testing.assert_array_equal(
        apply_conv(shift, x, dataclasses.replace(cfg, padding="CIRCULAR")), jnp.roll(x, 1, axis=2)
    )


def counted_macs(fn, *arguments):
    """Multiply-accumulates of a function, read off its jaxpr: dots, convolutions and elementwise products."""

    def of(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            out = math.prod(eqn.outvars[0].aval.shape)
            if eqn.primitive.name == "dot_general":
                contract = eqn.params["dimension_numbers"][0][0]
                total += out * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
            elif eqn.primitive.name == "conv_general_dilated":
                kernel = eqn.invars[1].aval.shape
                total += out * math.prod(kernel[:-1])
            elif eqn.primitive.name == "mul":
                total += out
            total += sum(of(inner.jaxpr) for inner in eqn.params.values() if hasattr(inner, "jaxpr"))
        return total

    return of(jax.make_jaxpr(fn)(*arguments).jaxpr)


@pytest.mark.parametrize("format", ["dense", *FACTORED])
@pytest.mark.parametrize("strides, padding", [(1, "SAME"), ((2, 1), "SAME"), (2, "VALID")])
def test_costs_are_those_of_the_tree_and_the_program(format, strides, padding):
    order = "auto" if format == "dense" else "factors"
    cfg = TensorConv(
        features=5, kernel_size=(3, 4), rank=2, format=format, strides=strides, padding=padding, order=order
    )
    p, x = drawn(cfg, 4, np.float32), jnp.zeros((1, 9, 8, 4))
    cost = conv_cost(cfg, 4, (9, 8))
    assert cost.params == sum(a.size for a in jax.tree.leaves(p))
    assert cost.macs == counted_macs(lambda p, x: apply_conv(p, x, cfg), p, x)
    dense = dataclasses.replace(cfg, format="dense", order="auto")
    assert cost.kernel_macs == counted_macs(lambda p, x: apply_conv(p, x, dense), drawn(dense, 4, np.float32), x)
    assert cost.dense_params == conv_cost(dense, 4, (9, 8)).params
    assert cost.peak <= cost.moved and cost.dense_moved <= cost.moved


def test_costs_by_hand():
    cost = conv_cost(TensorConv(features=32, kernel_size=(5, 5), rank=4, use_bias=False), 32, (8, 8))
    assert cost.params == 32 * 4 * (32 + 5 + 5) and cost.dense_params == 25 * 32 * 32
    assert cost.macs == 64 * (32 * 128 + 5 * 128 + 5 * 128) and cost.kernel_macs == 64 * 25 * 32 * 32
    assert cost.peak == 2 * 64 * 128
    assert [break_even_conv_rank(TensorConv(kernel_size=(k, k)), 32) for k in (3, 5)] == [7, 19]
    assert break_even_conv_rank(TensorConv(kernel_size=(3, 3), use_bias=False), 3) == 2  # at 3 the two are equal
    net = [TensorConv(features=4, format="dense", strides=2), TensorConv(features=1, format="dense")]
    total = stack_cost(net, 2, (8, 8), resize=(1, 2))
    assert total.macs == 9 * (16 * 2 * 4 + 64 * 4 * 1)


def test_auto_takes_the_kernel_where_factors_only_move_numbers():
    few = TensorConv(features=64, kernel_size=(5, 5), rank=1)
    assert order_of(few, 64, (32, 32)) == "factors"
    assert order_of(dataclasses.replace(few, kernel_size=(3, 3), format="channelwise"), 64, (32, 32)) == "kernel"
    assert order_of(dataclasses.replace(few, format="dense"), 64, (32, 32)) == "kernel"


@pytest.mark.parametrize("format, rank", [("filterwise", 4), ("channelwise", 1), ("cp", 32), ("tucker2", 32)])
def test_kernels_start_with_the_variance_of_he(format, rank):
    cfg = TensorConv(features=256, kernel_size=(3, 3), rank=rank, format=format)
    kernel = conv_kernel(init_conv(jax.random.key(0), 128, cfg), cfg)
    assert float(jnp.mean(kernel**2)) == pytest.approx(2 / (128 * 9), rel=0.35)


@pytest.mark.parametrize(
    "format, start",
    [("filterwise", "gaussian"), ("filterwise", "delta"), pytest.param("cp", "delta", marks=pytest.mark.slow)],
)
def test_activations_keep_their_size_through_six_layers(format, start):
    cfg = TensorConv(features=32, kernel_size=(3, 3), rank=8, format=format, padding="CIRCULAR", start=start)

    def layer(x, key):
        return apply_conv(init_conv(key, 32, cfg), jax.nn.relu(x), dataclasses.replace(cfg, order="kernel")), None

    def last(key):
        first = jax.random.normal(key, (1, 8, 8, 32)) * jnp.sqrt(2.0)
        return jnp.mean(jax.lax.scan(layer, first, jax.random.split(key, 6))[0] ** 2)

    sizes = jax.jit(lambda keys: jax.lax.map(last, keys))(jax.random.split(jax.random.key(1), 8))
    assert 0.5 < float(jnp.exp(jnp.mean(jnp.log(sizes)))) / 2 < 2


@pytest.mark.parametrize("format", FACTORED)
def test_balancing_keeps_the_kernel_and_evens_the_norms(format):
    cfg = TensorConv(features=OUT, kernel_size=(3, 3), rank=2, format=format)
    p = drawn(cfg, dtype=np.float32)
    p["axis0" if "axis0" in p else "core"] *= 50.0
    even = balance_conv(p, cfg)
    np.testing.assert_allclose(conv_kernel(even, cfg), conv_kernel(p, cfg), rtol=1e-4, atol=1e-4)
    if format == "filterwise":
        sizes = [jnp.linalg.norm(even[name], axis=0) for name in ("channel", "axis0", "axis1")]
        np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-5)
        np.testing.assert_allclose(sizes[0], sizes[2], rtol=1e-5)
        gone = {**p, "axis1": p["axis1"].at[:, 0, 0].set(0)}
        np.testing.assert_array_equal(balance_conv(gone, cfg)["channel"][:, 0, 0], p["channel"][:, 0, 0])


def test_layers_of_both_kinds_are_the_function():
    cfg = TensorConv(features=OUT, kernel_size=(3, 3))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, IN)), jnp.float32)
    layer = TensorConvLayer(cfg)
    params = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(layer.apply({"params": params}, x), apply_conv(params, x, cfg))
    module = TensorConvNnx(IN, cfg, rngs=nnx.Rngs(0))
    assert {name: a.shape for name, a in params.items()} == factor_shapes(cfg, IN)
    p = {name: getattr(module, name).get_value() for name in params}
    np.testing.assert_array_equal(module(x), apply_conv(p, x, cfg))
    loss, grads = nnx.value_and_grad(lambda m: jnp.sum(m(x) ** 2))(module)
    assert float(loss) > 0 and all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_the_transform_acts_on_the_architecture():
    net = tuple(
        TensorConv(features=n, kernel_size=(5, 5), format="dense", strides=s) for n, s in ((16, 1), (16, 2), (4, 1))
    )
    small = compress_spec(net, 3, param_ratio=3.0)
    before, after = (stack_cost(specs, 3, (12, 12)) for specs in (net, small))
    assert before.params >= 3 * after.params
    grown = dataclasses.replace(small[1], rank=small[1].rank + 1)
    assert conv_cost(grown, 16, (12, 12)).params * 3 > conv_cost(net[1], 16, (12, 12)).params
    assert [layer.strides for layer in small] == [1, 2, 1]
    kept = compress_spec(net, 3, rank=2, ends=False)
    assert kept[0] is net[0] and kept[2] is net[2] and kept[1].format == "filterwise"
    x = jnp.ones((1, 12, 12, 3))
    stack = ConvStack(small, resize=(1, 1, 2))
    params = jax.eval_shape(stack.init, jax.random.key(0), x)["params"]
    assert sum(a.size for a in jax.tree.leaves(params)) == after.params
    assert jax.eval_shape(lambda p: stack.apply({"params": p}, x), params).shape == (1, 12, 12, 4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": 0}, "TensorConv.rank must be an integer >= 1, got 0"),
        ({"features": True}, "TensorConv.features must be an integer >= 1, got True"),
        ({"kernel_size": (3, 3, 3, 3)}, "TensorConv.kernel_size must be a tuple of one to three"),
        (
            {"strides": (1, 1, 1)},
            r"TensorConv.strides must be an integer >= 1 or a tuple of 2 of them, got \(1, 1, 1\)",
        ),
        ({"dilation": 0}, "TensorConv.dilation must be"),
        ({"format": "tt"}, "TensorConv.format must be one of .*, got 'tt'"),
        ({"padding": "REFLECT"}, "TensorConv.padding must be one of .*, got 'REFLECT'"),
        ({"padding": "CIRCULAR", "kernel_size": (4, 3)}, r"needs odd kernels, got kernel_size=\(4, 3\)"),
        ({"start": "delta", "format": "tucker2"}, "start='delta' is for 'filterwise' and 'cp'"),
        ({"format": "dense", "order": "factors"}, "needs a format with factors"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TensorConv(**fields)


def test_bad_input_is_refused():
    cfg = TensorConv(features=OUT, kernel_size=(3, 3))
    p = drawn(cfg, dtype=np.float32)
    with pytest.raises(ValueError, match=r"x must be \[batch, 2 axes, in\] for a kernel \(3, 3\), got \(2, 5, 2\)"):
        apply_conv(p, jnp.ones((2, 5, IN)), cfg)
    with pytest.raises(TypeError, match="x must be floating point, got int32"):
        apply_conv(p, jnp.ones((2, 5, 5, IN), jnp.int32), cfg)
    with pytest.raises(ValueError, match="parameters for 4 input channels must be"):
        apply_conv(p, jnp.ones((2, 5, 5, 4)), cfg)
    with pytest.raises(TypeError, match="groups"):
        TensorConv(groups=2)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="spatial must have 2 extents"):
        conv_cost(cfg, IN, (8,))
    with pytest.raises(ValueError, match="does not fit an input"):
        conv_cost(dataclasses.replace(cfg, padding="VALID"), IN, (8, 2))
    with pytest.raises(ValueError, match="a cp kernel has the factors"):
        conv_kernel(p, dataclasses.replace(cfg, format="cp"))
    net = [TensorConv(features=4, format="dense")]
    with pytest.raises(ValueError, match="give rank or param_ratio"):
        compress_spec(net, 2)
    with pytest.raises(ValueError, match=r"param_ratio=50 asks for 2 parameters of specs\[0\]; rank 1 has"):
        compress_spec(net, 2, param_ratio=50)
    with pytest.raises(ValueError, match=r"specs\[0\] must be dense, got format='cp'"):
        compress_spec([TensorConv(format="cp")], 2, rank=1)
