"""Initial codes of what a mask keeps: least squares, and the sweep against its own definition."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.quantization.hessian_plan import hessian_plan
from compressjax.sparsity import GQSA
from compressjax.sparsity.masked_init import least_squares, masked_init, refined

from .problems import loss, plan_of, problem

CFG = GQSA(group=8, damp=1e-4)


@functools.partial(jax.jit, static_argnames="cfg")
def run(w, mask, plan_record, *, cfg):
    plan = hessian_plan(plan_record, method="test", group=8, order=cfg.order, damp=cfg.damp)
    return masked_init(w, mask, plan, cfg)


def mask_like(w, share=0.5, seed=3):
    return jnp.asarray(np.random.default_rng(seed).random(w.shape) < share)


def test_least_squares_is_the_best_on_the_support():
    w, record, x = problem(16, 6)
    mask, h = mask_like(w), record.xtx + 1e-3 * jnp.eye(16)
    q = jax.jit(least_squares)(w, mask, h)
    gradient = np.asarray(h, np.float64) @ (np.asarray(q, np.float64) - np.asarray(w))
    size = np.abs(np.asarray(h) @ np.asarray(w)).max()
    assert np.abs(np.where(mask, gradient, 0)).max() < 1e-4 * size
    assert not np.any(np.where(mask, 0, q))
    assert np.all(loss(w, q, h) <= loss(w, np.where(mask, w, 0), h))
    for o in range(6):
        keep = np.asarray(mask[:, o])
        best = np.linalg.lstsq(np.asarray(x)[:, keep], np.asarray(x) @ np.asarray(w)[:, o], rcond=None)[0]
        np.testing.assert_allclose(np.asarray(q)[keep, o], best, rtol=5e-2, atol=5e-3)


def test_the_sweep_without_rounding_is_pruning_with_exact_compensation():
    """With fine grids: input after input, a pruned one is set to 0 and all later ones move to their best."""
    w, record, _ = problem(8, 4)
    mask = mask_like(w)
    cfg = SimpleNamespace(
        bits=22,
        init="sweep",
        refine=0,
        order="none",
        grid="minmax",
        mse_norm=2.4,
        mse_steps=1,
        mse_max_shrink=0.5,
        scale_dtype="float32",
    )
    plan = plan_of(record, 1, damp=1e-4)  # a grid per weight, so that none is clipped after it has moved
    got = masked_init(w, mask, plan, cfg)
    h = np.asarray(plan.h, np.float64) + np.diag(np.asarray(plan.factor.damping, np.float64))
    q = np.asarray(w, np.float64).copy()
    for i in range(8):
        drop = np.where(np.asarray(mask[i]), 0, q[i])
        if i < 7:
            q[i + 1 :] += np.linalg.solve(h[i + 1 :, i + 1 :], h[i + 1 :, i : i + 1] @ drop[None])
        q[i] -= drop
    np.testing.assert_allclose(got.weight, q, rtol=1e-3, atol=1e-3)
    assert not np.any(np.where(mask, 0, got.weight))


@pytest.mark.parametrize("order", ["group_aware", pytest.param("none", marks=pytest.mark.slow)])
def test_the_sweep_beats_rounding_and_decodes_to_what_it_says(order):
    w, record, _ = problem()
    mask = jnp.repeat(mask_like(w[::8]), 8, axis=0)
    cfg = dataclasses.replace(CFG, order=order)
    swept, plain = (run(w, mask, record, cfg=dataclasses.replace(cfg, init=init)) for init in ("sweep", "mask"))
    assert loss(w, swept.weight, record.xtx).sum() < loss(w, plain.weight, record.xtx).sum()
    for out in (swept, plain):
        scale, zero = (np.repeat(a, 8, axis=0) for a in out.grid)
        np.testing.assert_array_equal(np.where(mask, scale * (out.codes - zero), 0), out.weight)


def test_least_squares_init_beats_the_bare_mask():
    w, record, _ = problem()
    mask = jnp.repeat(mask_like(w[::8]), 8, axis=0)
    fitted, plain = (run(w, mask, record, cfg=dataclasses.replace(CFG, init=init)) for init in ("ls", "mask"))
    assert loss(w, fitted.weight, record.xtx).sum() < loss(w, plain.weight, record.xtx).sum()


def test_refinement_falls_to_least_squares_and_leaves_a_full_mask_alone():
    w, record, _ = problem(16, 6)
    mask, h = mask_like(w), record.xtx + 0.1 * jnp.eye(16)
    by_steps = [loss(w, jax.jit(refined, static_argnums=3)(w, mask, h, steps), h) for steps in (0, 2, 6, 24)]
    for worse, better in zip(by_steps, by_steps[1:], strict=False):
        assert np.all(better <= worse * (1 + 1e-4))
    np.testing.assert_allclose(by_steps[-1], loss(w, jax.jit(least_squares)(w, mask, h), h), rtol=1e-3)
    np.testing.assert_array_equal(refined(w, jnp.ones_like(mask), h, 3), w)
    assert not np.any(np.where(mask, 0, refined(w, mask, h, 3)))


def test_the_sweep_gains_from_refinement():
    w, record, _ = problem()
    mask = jnp.repeat(mask_like(w[::8]), 8, axis=0)
    with_it, without = (run(w, mask, record, cfg=dataclasses.replace(CFG, refine=steps)) for steps in (16, 0))
    assert loss(w, with_it.weight, record.xtx).sum() < loss(w, without.weight, record.xtx).sum()
