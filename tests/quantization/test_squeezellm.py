"""SqueezeLLM: what is stored apart, where levels go, and what the Fisher information has to do with the loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Fisher, Hessian, Record, calibrate, measure
from compressjax.calibration.statistics import blank
from compressjax.driver import statistic_for
from compressjax.leaf import Codebook, Outliers, outlier_mask
from compressjax.ops import dense, matmul, nbits, size
from compressjax.quantization import SqueezeLLM, quantize, squeezellm
from compressjax.quantization.squeezellm import split

from .hessians import correlated, weight

PLAIN = SqueezeLLM(outlier_share=0, sensitive_share=0, floor=0, starts=("quantile", "range"), iterations=20)


@functools.partial(jax.jit, static_argnames="cfg")
def run(w, stats, *, cfg):
    return squeezellm(w, stats, cfg)


def fisher_record(rows, cols, seed=3):
    return Record(fisher=jnp.asarray(np.random.default_rng(seed).gamma(0.5, size=(rows, cols)), jnp.float32))


def weighted_error(w, leaf, fisher):
    return float(jnp.sum(fisher * (w - dense(leaf)) ** 2))


def test_split_takes_exactly_as_many_and_the_sensitive_first():
    w = jnp.asarray([[1.0, -9.0], [9.0, 9.0], [0.1, 0.2]])
    fisher = jnp.asarray([[1.0, 1.0], [5.0, 1.0], [1.0, 1.0]])
    # One sensitive weight, though it is among the largest too; then two of the three ties that are left.
    removed = split(w, fisher, 1, 1)
    np.testing.assert_array_equal(removed, [[False, True], [True, False], [False, False]])
    equal = split(jnp.ones((4, 3)), jnp.ones((4, 3)), 3, 4)
    assert int(jnp.sum(equal)) == 7 and bool(equal.reshape(-1)[:7].all())
    assert not bool(jnp.any(split(w, fisher, 0, 0)))


def test_what_is_stored_apart_is_kept_and_does_not_move_levels():
    w, stats = weight(64, 24), fisher_record(64, 24)
    cfg = dataclasses.replace(PLAIN, outlier_share=0.02, sensitive_share=0.01)
    leaf, _ = run(w, stats, cfg=cfg)
    table, apart = leaf.parts
    assert isinstance(table, Codebook) and isinstance(apart, Outliers)
    assert apart.values.shape == (round(0.02 * w.size) + round(0.01 * w.size),)
    mask = outlier_mask(apart)
    np.testing.assert_array_equal(mask, split(w, stats.fisher, *cfg.slots(w.size)))
    np.testing.assert_allclose(dense(leaf)[mask], w[mask], rtol=2e-3)
    # Beneath each stands the level nearest to zero, so that a decoder may add.
    nearest = jnp.min(jnp.abs(table.levels[0].astype(jnp.float32)), axis=0)
    np.testing.assert_array_equal(jnp.abs(dense(table))[mask], jnp.broadcast_to(nearest[None], mask.shape)[mask])
    spoilt, _ = run(jnp.where(mask, w * 50, w), stats, cfg=cfg)
    np.testing.assert_array_equal(spoilt.parts[0].levels, table.levels)


def test_without_shares_there_is_no_overlay():
    leaf, _ = run(weight(64, 32), fisher_record(64, 32), cfg=PLAIN)
    assert isinstance(leaf, Codebook)
    assert nbits(leaf) / size(leaf) == 3 + 16 * 8 / 64


@pytest.mark.slow
def test_levels_serve_the_fisher_information():
    w, stats = weight(64, 24), fisher_record(64, 24)
    aware, _ = run(w, stats, cfg=PLAIN)
    blind, _ = run(w, Record(fisher=jnp.ones((64, 24))), cfg=PLAIN)
    assert weighted_error(w, aware, stats.fisher) < 0.8 * weighted_error(w, blind, stats.fisher)
    assert float(jnp.sum((w - dense(aware)) ** 2)) > float(jnp.sum((w - dense(blind)) ** 2))
    exact, _ = run(w, stats, cfg=dataclasses.replace(PLAIN, exact=True, lut_dtype="float32"))
    assert weighted_error(w, exact, stats.fisher) <= weighted_error(w, aware, stats.fisher)
    finer, _ = run(w, stats, cfg=dataclasses.replace(PLAIN, bits=4))
    assert weighted_error(w, finer, stats.fisher) < weighted_error(w, aware, stats.fisher)


def test_a_factor_changes_nothing_and_no_information_counts_alike():
    w, stats = weight(64, 24), fisher_record(64, 24)
    one, _ = run(w, stats, cfg=PLAIN)
    other, _ = run(w, Record(fisher=stats.fisher * 1024), cfg=PLAIN)
    np.testing.assert_array_equal(dense(one), dense(other))
    dark = stats.fisher.at[:, 5].set(0)
    none, _ = run(w, Record(fisher=dark), cfg=PLAIN)
    alike, _ = run(w, Record(fisher=jnp.ones((64, 24))), cfg=PLAIN)
    np.testing.assert_array_equal(dense(none)[:, 5], dense(alike)[:, 5])


def test_the_floor_keeps_levels_for_all():
    w = weight(64, 24)
    stats = Record(fisher=jnp.full((64, 24), 1e-9).at[3].set(1.0).at[4].set(1.0))
    bare, _ = run(w, stats, cfg=PLAIN)
    floored, _ = run(w, stats, cfg=dataclasses.replace(PLAIN, floor=1e-4))
    assert float(jnp.sum((w - dense(floored)) ** 2)) <= float(jnp.sum((w - dense(bare)) ** 2))


def test_few_values_are_lossless():
    w = jnp.asarray(np.random.default_rng(0).choice([-1.0, -0.25, 0.0, 0.5, 2.0], (64, 24)), jnp.float32)
    leaf, info = run(w, fisher_record(64, 24), cfg=dataclasses.replace(PLAIN, exact=True, lut_dtype="float32"))
    np.testing.assert_allclose(dense(leaf), w, atol=1e-6)
    assert float(info.error) < 1e-6


def test_input_energy_in_place_of_gradients():
    stats, _ = correlated(64)
    w = weight(64, 24)
    by_energy, info = run(w, stats, cfg=dataclasses.replace(PLAIN, fisher="act"))
    energy = jnp.broadcast_to(jnp.diagonal(stats.xtx)[:, None], w.shape)
    same, _ = run(w, dataclasses.replace(stats, fisher=energy), cfg=PLAIN)
    np.testing.assert_array_equal(dense(by_energy), dense(same))
    assert float(info.error) < float(info.rounding_error)
    assert statistic_for(SqueezeLLM(fisher="act")) == Hessian()


def test_the_sweep_lowers_the_output_error_and_is_rounding_without_correlation():
    stats, _ = correlated(64)
    w = weight(64, 24)
    shares = {"outlier_share": 0.02, "sensitive_share": 0.01, "fisher": "act"}
    plain = dataclasses.replace(PLAIN, **shares)
    swept = dataclasses.replace(plain, refine="sweep")
    leaf, info = run(w, stats, cfg=swept)
    assert float(info.error) < 0.7 * float(run(w, stats, cfg=plain)[1].error)
    miss = np.asarray(w - dense(leaf), np.float64)
    np.testing.assert_allclose(info.error, np.sum(miss * (np.asarray(stats.xtx) @ miss)), rtol=1e-3)
    alone = Record(count=jnp.float32(9), xtx=jnp.eye(64))
    np.testing.assert_array_equal(dense(run(w, alone, cfg=swept)[0]), dense(run(w, alone, cfg=plain)[0]))


def test_fisher_predicts_the_loss():
    """Second-order cost against the true one, over random changes of a trained net of two layers."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 12)) * np.exp(rng.normal(size=12)), jnp.float32)
    labels = jnp.argmax(
        x @ jnp.asarray(rng.normal(size=(12, 4)), jnp.float32) + jnp.asarray(rng.gumbel(size=(256, 4)), jnp.float32),
        axis=-1,
    )
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(12, 10)) / 4, jnp.float32)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(10, 4)) / 4, jnp.float32)},
    }

    def apply(p, batch):
        return matmul(jnp.tanh(matmul(batch["x"], p["a"]["kernel"])), p["b"]["kernel"])

    def losses(outputs, batch):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["y"][:, None], axis=1)
        return -chosen[:, 0]

    batch = {"x": x, "y": labels}

    def total(p):
        return jnp.mean(losses(apply(p, batch), batch))

    def descend(p, _):
        return jax.tree.map(lambda a, g: a - 0.3 * g, p, jax.grad(total)(p)), None

    trained, _ = jax.jit(lambda p: jax.lax.scan(descend, p, None, length=400))(params)
    stats = calibrate(apply, trained, [batch], Fisher(loss=losses))
    fisher = {name: stats[f"{name}/kernel"].fisher for name in ("a", "b")}

    def both(key):
        ka, kb, ks = jax.random.split(key, 3)
        # Each change moves other weights, by the same amount in all.
        step = {
            n: 0.1
            * jnp.where(jax.random.uniform(k, fisher[n].shape) < 0.2, 1.0, 0.0)
            * jnp.sign(jax.random.normal(ks, fisher[n].shape))
            for n, k in (("a", ka), ("b", kb))
        }
        moved = {n: {"kernel": trained[n]["kernel"] + step[n]} for n in step}
        back = {n: {"kernel": trained[n]["kernel"] - step[n]} for n in step}
        true = (total(moved) + total(back)) / 2 - total(trained)
        return true, sum(jnp.sum(fisher[n] * step[n] ** 2) for n in step)

    true, predicted = jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(0), 200))
    ranks = [np.argsort(np.argsort(np.asarray(a))) for a in (true, predicted)]
    assert np.corrcoef(*ranks)[0, 1] > 0.6


def test_says_that_gradients_do_not_come_block_by_block():
    needs = statistic_for(SqueezeLLM())
    with pytest.raises(ValueError, match=r"calibrate\(apply_fn, params, batches, Fisher\(loss=...\)\)"):
        measure(needs, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="fisher='act'"):
        blank(needs, (4, 3))


def test_refuses_statistics_it_cannot_use():
    stats, _ = correlated(64)
    w = weight(64, 24)
    with pytest.raises(ValueError, match="needs record.fisher"):
        squeezellm(w, stats, PLAIN)
    with pytest.raises(ValueError, match="record.xtx is missing"):
        squeezellm(w, fisher_record(64, 24), dataclasses.replace(PLAIN, fisher="act"))
    with pytest.raises(ValueError, match=r"refine='sweep'\) needs Hessian statistics"):
        squeezellm(w, fisher_record(64, 24), dataclasses.replace(PLAIN, refine="sweep"))
    with pytest.raises(ValueError, match="it must be the weight's own"):
        squeezellm(w, fisher_record(64, 20), PLAIN)
    gradients = Record(fisher=fisher_record(64, 24).fisher.at[0, 0].set(-1))
    with pytest.raises(ValueError, match="fisher has negative entries"):
        squeezellm(w, gradients, PLAIN)
    # Under jit nothing can be raised: the result then says so by itself.
    leaf, info = run(w, gradients, cfg=PLAIN)
    assert bool(jnp.all(jnp.isnan(dense(leaf)))) and bool(jnp.isnan(info.error))
    leaf = quantize({"a": {"kernel": w}}, PLAIN, stats={"a/kernel": fisher_record(64, 24)})["a"]["kernel"]
    with pytest.raises(TypeError, match="SqueezeLLM quantises dense weights, got a Codebook"):
        squeezellm(leaf, stats, PLAIN)


def test_warns_when_there_are_more_levels_than_inputs():
    with pytest.warns(UserWarning, match="SqueezeLLM.bits=4 gives 16 levels to 10 inputs"):
        leaf, _ = squeezellm(weight(10, 4), fisher_record(10, 4), dataclasses.replace(PLAIN, bits=4, exact=True))
    np.testing.assert_allclose(dense(leaf), weight(10, 4), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bits": 0}, "SqueezeLLM.bits must be in 1..8, got 0"),
        ({"outlier_share": -0.1}, "SqueezeLLM.outlier_share must be >= 0, got -0.1"),
        ({"sensitive_share": float("nan")}, "SqueezeLLM.sensitive_share must be >= 0, got nan"),
        ({"outlier_share": 0.3, "sensitive_share": 0.3}, "must sum to less than 0.5"),
        ({"fisher": "grad"}, "SqueezeLLM.fisher must be one of"),
        ({"refine": "gptq"}, "SqueezeLLM.refine must be one of"),
        ({"iterations": 0}, "SqueezeLLM.iterations must be >= 1"),
        ({"starts": ()}, "SqueezeLLM.starts must be a tuple"),
        ({"starts": ("middle",)}, "SqueezeLLM.starts must be a tuple"),
        ({"damp": -1.0}, "SqueezeLLM.damp must be > 0"),
        ({"lut_dtype": "float8"}, "SqueezeLLM.lut_dtype must be"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SqueezeLLM(**options)
