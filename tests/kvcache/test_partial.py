"""Softmax in parts is softmax."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from compressjax.kvcache.partial import attend_exact, combine, combine_axis, combine_mesh, finish, log_sum_exp
from compressjax.models.attention import attend

B, K, G, T, S, D = 2, 2, 3, 4, 24, 8


def problem():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((B, K, G, T, D), (B, K, S, D), (B, K, S, D)))
    return q, k, v, jnp.asarray(rng.random((B, 1, 1, T, S)) < 0.6)


def test_parts_of_any_size_make_the_whole():
    q, k, v, seen = problem()
    whole = attend_exact(q, k, v, seen)
    parts = [attend_exact(q, k[:, :, a:b], v[:, :, a:b], seen[..., a:b]) for a, b in ((0, 1), (1, 17), (17, 24))]
    np.testing.assert_allclose(finish(combine(*parts)), finish(whole), atol=1e-6)
    np.testing.assert_allclose(log_sum_exp(combine(*parts)), log_sum_exp(whole), atol=1e-6)
    stacked = jax.tree.map(
        lambda *a: jnp.stack(a),
        *[attend_exact(q, k[:, :, a : a + 8], v[:, :, a : a + 8], seen[..., a : a + 8]) for a in (0, 8, 16)],
    )
    np.testing.assert_allclose(finish(combine_axis(stacked)), finish(whole), atol=1e-6)


def test_it_is_the_models_attention():
    q, k, v, seen = problem()
    flat = q.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, D) * D**0.5
    want = attend(flat, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), seen[:, 0, 0])
    got = finish(attend_exact(q, k, v, seen)).transpose(0, 3, 1, 2, 4).reshape(B, T, -1)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_part_that_nobody_sees_counts_nothing():
    q, k, v, seen = problem()
    whole = attend_exact(q, k, v, seen)
    blind = attend_exact(q, k, v, jnp.zeros_like(seen))
    for got in (combine(whole, blind), combine(blind, whole)):
        np.testing.assert_array_equal(finish(got), finish(whole))
    assert bool(jnp.all(jnp.isfinite(finish(combine(blind, blind)))))


def test_parts_on_devices():
    q, k, v, seen = problem()
    mesh = Mesh(np.array(jax.devices()[:4]), ("slots",))
    spec = PartitionSpec(None, None, "slots")

    def part(k, v, seen):
        return finish(combine_mesh(attend_exact(q, k, v, seen), "slots"))

    over = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(spec, spec, PartitionSpec(None, None, None, None, "slots")),
        out_specs=PartitionSpec(),
    )
    np.testing.assert_allclose(jax.jit(over)(k, v, seen), finish(attend_exact(q, k, v, seen)), atol=1e-6)
