"""Feeds random keys, values and queries to a cache, and says what attention over it should have been."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.kvcache import append_token, flush, kv_compress, view_of
from compressjax.kvcache.partial import attend_exact, combine, finish, log_sum_exp

from .rows import BATCH, HEADS, KV_HEADS, LAYERS, WIDTH

GROUPS = HEADS // KV_HEADS
ROPE = (100.0, None)


@dataclasses.dataclass(frozen=True)
class Data:
    """``k, v [L, B, S, K, d]``, ``q [L, B, S, H, d]`` and ``mask [B, S]``."""

    k: np.ndarray
    v: np.ndarray
    q: np.ndarray
    mask: np.ndarray


def random_data(slots, seed=0, padding=(0, 9), layers=LAYERS):
    """Keys with a large channel, as models have them; row 1 padded on the left."""
    rng = np.random.default_rng(seed)
    draw = lambda heads: rng.standard_normal((layers, BATCH, slots, heads, WIDTH)).astype(np.float32)  # noqa: E731
    k = draw(KV_HEADS)
    k[..., 3] += 4.0
    mask = np.arange(slots)[None] >= np.array(padding)[:, None]
    return Data(k, draw(KV_HEADS), 2 * draw(HEADS), mask)


def compressed(codec, data, prompt, max_len, *, fixed=(), window=None, dtype=None):
    """The cache after the first ``prompt`` slots."""
    cache = {name: jnp.asarray(getattr(data, name)[:, :, :prompt]) for name in ("k", "v")}
    cache["mask"] = jnp.asarray(data.mask[:, :prompt])
    queries = jnp.asarray(data.q[:, :, :prompt])
    return kv_compress(
        cache, codec, max_len=max_len, queries=queries, fixed=fixed, window=window, rope=ROPE, dtype=dtype
    )


def token(data, at):
    """The unscaled ``q`` and ``k, v`` of one slot, heads first, leading with the layer."""
    q = data.q[:, :, at] * WIDTH**-0.5
    return (
        jnp.asarray(q.reshape(LAYERS, BATCH, KV_HEADS, GROUPS, 1, WIDTH)),
        jnp.asarray(data.k[:, :, at][:, :, :, None]),
        jnp.asarray(data.v[:, :, at][:, :, :, None]),
    )


def step(cache, q, k, v):
    """One decoding step in all layers: outputs of attention, what they should be, and the next cache."""
    spec, got, want, made, looked = cache.layout.spec, [], [], [], []
    for (codec, start, stop), state in zip(cache.layout.segments, cache.states, strict=True):
        view = view_of(cache.layout, codec, cache.real, cache.frozen, cache.hot, 1)

        def unit(own, q, k, v, codec=codec, view=view):
            out, oracle, noted = [], [], []
            for sub in range(codec.unit):
                part, stats = codec.attend(spec, own, q[sub], view, sub)
                whole = combine(part, attend_exact(q[sub], k[sub], v[sub], jnp.ones((1, 1, 1, 1, 1), bool)))
                out.append(finish(whole))
                oracle.append(plain_attention(codec.materialize(spec, own, view, sub), q[sub], k[sub], v[sub]))
                noted.append((stats, log_sum_exp(whole)))
            return jnp.stack(out), jnp.stack(oracle), jax.tree.map(lambda *a: jnp.stack(a), *noted)

        parts = [x[start:stop].reshape(-1, codec.unit, *x.shape[1:]) for x in (q, k, v)]
        out, oracle, noted = jax.vmap(unit)(state, *parts)
        got.append(out.reshape(-1, *out.shape[2:]))
        want.append(oracle.reshape(-1, *oracle.shape[2:]))
        made.append((parts[1], parts[2], parts[0]))
        looked.append(noted)
    return jnp.concatenate(got), jnp.concatenate(want), append_token(cache, tuple(made), tuple(looked))


def plain_attention(plain, q, k, v):
    """Softmax over a materialised cache and the new token."""
    scores = jnp.einsum("bkgtd,bksd->bkgts", q, plain.k) + plain.bias[:, :, None, None]
    scores = jnp.where(plain.seen[:, :, None], scores, -jnp.inf)
    own = jnp.einsum("bkgtd,bksd->bkgts", q, k)
    weights = jax.nn.softmax(jnp.concatenate([scores, own], -1), axis=-1)
    return jnp.einsum("bkgts,bkse->bkgte", weights, jnp.concatenate([plain.v, v], axis=2))


@functools.cache
def programs():
    """The jitted step and flush, shared by all tests."""
    return jax.jit(step), jax.jit(flush)


def replay(cache, data, start, stop):
    """Decodes the slots ``start .. stop - 1``: outputs and oracle ``[steps, L, B, K, G, 1, e]``, and the cache."""
    advance, compress = programs()
    got, want, hot = [], [], int(cache.hot)
    for at in range(start, stop):
        out, oracle, cache = advance(cache, *token(data, at))
        got.append(np.asarray(out))
        want.append(np.asarray(oracle))
        hot += 1
        if hot == cache.layout.chunk:
            cache, hot = compress(cache), 0
    return np.stack(got), np.stack(want), cache
