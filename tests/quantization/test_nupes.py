import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.leaf.power import pack_power, unpack_power_codes
from compressjax.numerics import power
from compressjax.ops import dense, matmul, nbits
from compressjax.quantization import NUPES, RTN, PowerQuant, quantize, quantize_with_info
from compressjax.quantization.nupes import learn_codes
from compressjax.quantization.powerquant import PowerGrid, fit_power_grid, fit_scale, search_exponent, shared_exponent


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def problem(rows=24, cols=10, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((200, rows)) @ rng.standard_normal((rows, rows))).astype(np.float32)
    return drawn(rows, cols, seed=seed), jnp.asarray(x.T @ x / 200)


def compressed(w, cfg, stats=None):
    record = None if stats is None else {"kernel": stats}
    return quantize({"kernel": w}, cfg, stats=record)["kernel"]


def miss(w, cfg):
    return float(jnp.sum((w - dense(compressed(w, cfg))) ** 2))


@functools.partial(jax.jit, static_argnames="cfg")
def learned(w, h, grid, cfg):
    return learn_codes(w, h, grid, cfg)


def test_search_finds_what_a_dense_grid_finds():
    w = drawn(40, 6)[None]
    cfg = PowerQuant(clip="max")
    found = jax.jit(lambda: search_exponent(lambda a: fit_scale(w, a, cfg).error, 0.2, 1.0))()
    every = jnp.linspace(0.2, 1, 1000)
    losses = jax.lax.map(lambda a: fit_scale(w, a, cfg).error, every)
    assert fit_scale(w, found, cfg).error <= jnp.min(losses) * 1.02


@pytest.mark.slow
def test_bell_shapes_want_a_small_exponent_and_flat_ones_a_large_one():
    cfg = PowerQuant(clip="max", granularity="tensor")
    bell, flat = drawn(200, 20), jax.random.uniform(jax.random.key(0), (200, 20), minval=-1, maxval=1)
    assert fit_power_grid(bell, cfg).exponent < 0.8
    assert fit_power_grid(flat, cfg).exponent > 0.9
    np.testing.assert_allclose(fit_power_grid(bell * 4, cfg).exponent, fit_power_grid(bell, cfg).exponent, atol=1e-3)


@pytest.mark.slow
def test_power_beats_uniform_by_the_measure_it_searches():
    w = drawn(96, 16)
    for granularity in ("channel", "tensor"):
        searched = PowerQuant(bits=4, clip="max", granularity=granularity)
        assert miss(w, searched) < miss(w, dataclasses.replace(searched, exponent=1.0))
    assert miss(w, PowerQuant(bits=4)) < miss(w, PowerQuant(bits=4, clip="max"))
    assert miss(w, PowerQuant(bits=4)) < miss(w, PowerQuant(bits=4, exponent=1.0))


def test_one_exponent_for_a_model():
    params = {"a": {"kernel": jnp.stack([drawn(32, 8), drawn(32, 8, seed=1)])}, "b": {"kernel": 1e3 * drawn(16, 8)}}
    cfg = PowerQuant(clip="max")
    shared = shared_exponent(params, cfg)

    def total(a):
        kernels = [params["a"]["kernel"][0], params["a"]["kernel"][1], params["b"]["kernel"]]
        return sum(float(fit_scale(w[None], jnp.float32(a), cfg).error / jnp.sum(w**2)) for w in kernels)

    assert total(shared) <= min(total(a) for a in np.linspace(0.2, 1, 41)) * 1.03
    with pytest.raises(ValueError, match="no kernel"):
        shared_exponent({"norm": {"scale": jnp.ones(3)}}, cfg)


def test_zero_channels_and_zero_weights():
    w = drawn(32, 4).at[:, 1].set(0).at[5].set(0)
    out = dense(compressed(w, PowerQuant(bits=3)))
    assert (np.asarray(out)[:, 1] == 0).all() and (np.asarray(out)[5] == 0).all()


def test_groups_and_bits_are_counted():
    w = drawn(64, 16)
    leaf = compressed(w, PowerQuant(bits=4, group=16))
    assert leaf.scale.shape == (4, 16)
    assert nbits(leaf) == 64 * 16 * 4 + 4 * 16 * 16 + 32
    assert nbits(compressed(w, PowerQuant(bits=4, granularity="tensor"))) == 64 * 16 * 4 + 16 + 32


def test_activations_are_rounded_inside_the_leaf():
    w, x = drawn(32, 8), drawn(5, 32, seed=3)
    leaf = compressed(w, PowerQuant(bits=4, exponent=0.5, act_bits=4))
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    rounded = power.decode(power.encode(x, jnp.float32(0.5), peak, 4), jnp.float32(0.5), peak, 4)
    np.testing.assert_allclose(matmul(x, leaf), rounded @ dense(leaf), rtol=1e-5, atol=1e-5)
    assert np.isfinite(matmul(jnp.zeros((2, 32)), leaf)).all()


def test_learning_lowers_the_loss_and_never_an_output_below_nearest_codes():
    w, h = problem()
    cfg = NUPES(bits=3, steps=150)
    start = fit_power_grid(w, cfg)
    codes, grid, losses = learned(w, h, start, cfg)
    assert losses[-1] < 0.7
    assert float(jnp.max(jnp.abs(codes))) <= 3

    def error(codes):
        e = w - power.decode(codes, grid.exponent, grid.scale, 3)
        return jnp.sum(e * (h @ e), axis=0)

    nearest = error(power.encode(w, grid.exponent, grid.scale, 3))
    assert (error(codes) <= nearest).all() and float(error(codes).sum()) < 0.8 * float(nearest.sum())


def test_codes_travel_further_than_to_a_neighbour_only_when_free():
    # The inputs are almost one; what rounding the first leaves can only be made up for by moving the second far.
    h = jnp.asarray([[1.0, 0.999], [0.999, 1.0]], jnp.float32)
    w = jnp.asarray([[1.0], [0.02]], jnp.float32)
    grid = PowerGrid(jnp.float32(1), jnp.full((1, 1), 0.35, jnp.float32), jnp.float32(0))
    free = NUPES(bits=4, steps=400, lr=0.05, exponent_lr=0.0, exponent=1.0)
    codes, _, _ = learned(w, h, grid, free)
    start = power.encode(w, grid.exponent, grid.scale, 4)
    assert float(jnp.abs(codes - start).max()) >= 2
    near, _, _ = learned(w, h, grid, dataclasses.replace(free, travel="adjacent"))
    assert float(jnp.abs(near - start).max()) <= 1


def test_an_exponent_that_is_not_learned_stays():
    w, h = problem()
    cfg = NUPES(bits=3, steps=20, exponent_lr=0.0)
    start = fit_power_grid(w, cfg)
    assert learned(w, h, start, cfg)[1].exponent == start.exponent
    moved = learned(w, h, start, dataclasses.replace(cfg, exponent_lr=1e-2))[1].exponent
    assert moved != start.exponent and cfg.low < moved < cfg.high


def test_learned_codes_beat_nearest_ones_on_the_output():
    w, h = problem(64, 32)
    stats = Record(count=jnp.float32(200), xtx=h * 200)
    _, infos = quantize_with_info({"kernel": w}, NUPES(bits=3, steps=100), stats={"kernel": stats})
    _, plain = quantize_with_info({"kernel": w}, PowerQuant(bits=3), stats={"kernel": stats})
    assert infos["kernel"].error < 0.8 * plain["kernel"].error


def test_packing_round_trip_and_refusals():
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.integers(-7, 8, (2, 40, 6)), jnp.float32)
    leaf = pack_power(codes, jnp.ones((2, 1, 6)), jnp.full((2,), 0.5), bits=4, group=-1)
    np.testing.assert_array_equal(unpack_power_codes(leaf), codes)
    with pytest.raises(ValueError, match="scale must end in"):
        pack_power(codes, jnp.ones((2, 3, 6)), jnp.full((2,), 0.5), bits=4, group=-1)
    with pytest.raises(ValueError, match="leading shape"):
        pack_power(codes, jnp.ones((2, 1, 6)), jnp.float32(0.5), bits=4, group=-1)


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (PowerQuant, {"bits": 1}, "bits must be in 2..8"),
        (PowerQuant, {"bits": 9}, "bits must be in 2..8"),
        (PowerQuant, {"exponent": 0.0}, "exponent must be None or a finite number > 0"),
        (PowerQuant, {"exponent": float("nan")}, "exponent must be None or a finite number > 0"),
        (PowerQuant, {"low": 0.5, "high": 0.4}, "0 < low < high"),
        (PowerQuant, {"granularity": "tensor", "group": 32}, "needs granularity='channel'"),
        (PowerQuant, {"act_bits": 1}, "act_bits must be None or in 2..8"),
        (NUPES, {"steps": 0}, "steps must be >= 1"),
        (NUPES, {"beta": (4.0, 2.0)}, "0 < first <= last"),
        (NUPES, {"travel": "far"}, "travel must be"),
        (NUPES, {"warm": 1.0}, "warm must be in"),
        (NUPES, {"commit": -1.0}, "commit must be >= 0"),
    ],
)
def test_refused_options(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)


def test_eight_bits_are_nearly_lossless_and_better_than_uniform():
    w = drawn(64, 8)
    assert miss(w, PowerQuant(bits=8)) < miss(w, RTN(bits=8, group=-1, sym=True)) < 1e-3 * float(jnp.sum(w**2))
