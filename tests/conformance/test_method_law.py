"""What every compression method must do, whatever it does inside."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.driver import leaf_rule, statistic_for
from compressjax.leaf import is_leaf
from compressjax.ops import dense, logical_shape, nbits, size
from compressjax.quantization import quantize, quantize_with_info

from .row_types import as_params, small_problem
from .rows import METHODS

pytestmark = pytest.mark.parametrize("row", as_params(METHODS, lambda r: repr(r.cfg)[:80]))


TRACES = collections.Counter()


@functools.partial(jax.jit, static_argnames="cfg")
def one(w, stats, *, cfg):
    # Runs when it is traced, never when it is called again.
    TRACES[cfg] += 1
    return leaf_rule(w, cfg, stats, None)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_gives_a_leaf_of_the_same_shape_and_says_its_error(row):
    w, stats = small_problem()
    leaf, info = one(w, stats, cfg=row.shrunk)
    assert is_leaf(leaf) and logical_shape(leaf) == w.shape
    miss = w - dense(leaf)
    np.testing.assert_allclose(info.error, jnp.sum(miss * (stats.xtx @ miss)), rtol=2e-3)
    assert nbits(leaf) / size(leaf) < 16


def test_stacked_layers_are_as_if_alone_and_reported_by_path(row):
    problems = [small_problem(seed) for seed in range(3)]
    cfg = row.shrunk
    params = {"layers": {"kernel": jnp.stack([w for w, _ in problems]), "bias": jnp.zeros((3, 32))}}
    stats = {"layers/kernel": jax.tree.map(lambda *a: jnp.stack(a), *(s for _, s in problems))}
    new, infos = quantize_with_info(params, cfg, stats=stats)
    assert set(infos) == {"layers/kernel"}
    assert new["layers"]["bias"] is params["layers"]["bias"]
    for i, (w, s) in enumerate(problems):
        same(jax.tree.map(lambda a, i=i: a[i], new["layers"]["kernel"]), one(w, s, cfg=cfg)[0])


def test_no_second_trace_and_deterministic(row):
    cfg = row.shrunk
    first = one(*small_problem(0), cfg=cfg)[0]
    traced = TRACES[cfg]
    one(*small_problem(1), cfg=cfg)
    same(first, one(*small_problem(0), cfg=cfg)[0])
    assert traced and TRACES[cfg] == traced


def test_says_what_statistics_it_needs(row):
    w, _ = small_problem()
    if statistic_for(row.cfg) is None:
        assert is_leaf(quantize({"kernel": w}, row.shrunk)["kernel"])
    else:
        with pytest.raises(ValueError, match=f"{type(row.cfg).__name__} needs .* statistics of a/kernel"):
            quantize({"a": {"kernel": w}}, row.cfg)


def test_refuses_what_is_not_finite(row):
    w, stats = small_problem()
    with pytest.raises(ValueError, match="weight of a/kernel has NaN or infinite"):
        quantize({"a": {"kernel": w.at[3, 3].set(jnp.nan)}}, row.cfg, stats={"a/kernel": stats})


def test_refuses_statistics_of_another_width(row):
    w, stats = small_problem()
    with pytest.raises(ValueError, match="statistics of a/kernel are for 64 inputs, the weight has 60"):
        quantize({"a": {"kernel": w[:60]}}, row.cfg, stats={"a/kernel": stats})


@pytest.mark.slow
def test_beats_its_baseline_at_no_more_bits_on_a_real_weight(row, real_layer):
    w, seen, unseen = real_layer
    leaf, _ = one(w, seen, cfg=row.cfg)
    assert nbits(leaf) / size(leaf) <= row.most_bits
    if row.baseline is None:
        return
    other, _ = one(w, seen, cfg=row.baseline)

    def error(q, h):
        miss = w - dense(q)
        return float(jnp.sum(miss * (h @ miss)))

    assert error(leaf, unseen.xtx) < error(other, unseen.xtx)
