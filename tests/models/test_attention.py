import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models.attention import Past, attend, causal_seen, past_seen, token_positions

B, T, H, K, D = 2, 7, 6, 2, 4


def drawn(seed, length=T, heads=H):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, length, heads, D)), jnp.float32)


def looped(q, k, v, seen):
    """Attention one head, one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    seen = np.broadcast_to(seen, (B, T, k.shape[1]))
    out = np.zeros((B, T, H, D))
    for b in range(B):
        for h in range(H):
            for t in range(T):
                scores = k[b, :, h // (H // K)] @ q[b, t, h] / np.sqrt(D)
                weights = np.exp(scores - scores.max()) * seen[b, t]
                out[b, t, h] = weights / weights.sum() @ v[b, :, h // (H // K)]
    return out.reshape(B, T, H * D)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_against_loops(window):
    q, k, v = drawn(0), drawn(1, heads=K), drawn(2, heads=K)
    seen = causal_seen(T, None, window)
    np.testing.assert_allclose(attend(q, k, v, seen), looped(q, k, v, seen), atol=1e-6)


@pytest.mark.parametrize("length, window", [(256, 40), (301, None)])
def test_segments_of_a_long_causal_input_change_nothing(length, window):
    q, k, v = drawn(0, length), drawn(1, length, K), drawn(2, length, K)
    mask = jnp.arange(length)[None] >= jnp.array([[0], [17]])
    seen = causal_seen(length, mask, window)
    whole, cut = attend(q, k, v, seen), attend(q, k, v, seen, causal=True)
    real = np.asarray(mask)
    np.testing.assert_allclose(np.asarray(cut)[real], np.asarray(whole)[real], atol=1e-6)
    flops = [jax.jit(attend, static_argnames="causal").lower(q, k, v, seen, causal=c).cost_analysis() for c in (0, 1)]
    assert flops[1]["flops"] < 0.7 * flops[0]["flops"]


def test_padding_is_seen_by_no_one():
    mask = jnp.array([[True] * T, [False, False] + [True] * (T - 2)])
    q, k, v = drawn(0), drawn(1, heads=K), drawn(2, heads=K)
    out = attend(q, k, v, causal_seen(T, mask))
    moved = attend(q, k.at[1, :2].set(9.0), v.at[1, :2].set(9.0), causal_seen(T, mask))
    np.testing.assert_array_equal(out[0], moved[0])
    np.testing.assert_array_equal(out[1, 2:], moved[1, 2:])
    assert np.isfinite(moved).all()


def test_a_past_is_the_same_as_having_been_there():
    q, k, v = drawn(0), drawn(1, heads=K), drawn(2, heads=K)
    split, slots = 4, 9
    whole = attend(q, k, v, causal_seen(T, None, 3))
    pad = ((0, 0), (0, slots - split), (0, 0), (0, 0))
    mask = jnp.arange(slots)[None] < jnp.array([[split], [split]])
    seen = past_seen(mask, jnp.int32(split), T - split, 3)
    past = Past(jnp.pad(k[:, :split], pad), jnp.pad(v[:, :split], pad, constant_values=7.0), seen)
    rest = attend(q[:, split:], k[:, split:], v[:, split:], causal_seen(T - split, None, 3), past)
    np.testing.assert_allclose(rest, whole[:, split:], atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_windows_count_the_query_itself(window):
    seen = np.asarray(causal_seen(5, None, window))[0]
    for query in range(5):
        first = 0 if window is None else max(0, query - window + 1)
        np.testing.assert_array_equal(np.flatnonzero(seen[query]), np.arange(first, query + 1))


def test_positions_number_real_tokens():
    mask = jnp.array([[False, False, True, True], [True, True, True, False], [False] * 4])
    np.testing.assert_array_equal(token_positions(mask), [[0, 0, 0, 1], [0, 1, 2, 2], [0, 0, 0, 0]])


def test_scores_and_softmax_are_float32_under_bfloat16(equations):
    q, k, v = (x.astype(jnp.bfloat16) for x in (drawn(0), drawn(1, heads=K), drawn(2, heads=K)))
    jaxpr = jax.make_jaxpr(attend)(q, k, v, causal_seen(T))
    exps = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "exp"]
    assert exps and all(eqn.invars[0].aval.dtype == jnp.float32 for eqn in exps)
    assert attend(q, k, v, causal_seen(T)).dtype == jnp.bfloat16
