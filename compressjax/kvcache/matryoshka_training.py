"""MatryoshkaKV's bases: principal axes to start from, a distillation loss with random ranks, and a search for ranks.

The projected model is the real one with every key and value replaced by what its first r coordinates say, in every
layer; ranks are arrays, so one program serves all of them. Only the bases and means are trained.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.kvcache.decoding import LlamaForm, plain_prompt
from compressjax.kvcache.matryoshka import MKVParams, Ranks
from compressjax.kvcache.orthogonal import Kind, principal_axes
from compressjax.leaf.pools import split_pools
from compressjax.models.attention import attend, causal_seen
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Attention, Block, Llama
from compressjax.models.stack import apply


class KVMoments(NamedTuple):
    """Sums over tokens, per layer and key head, of keys and of values; those of two texts are added.

    Attributes:
      count: float32 scalar, tokens.
      total: ``[2, L, K, d]``.
      second: ``[2, L, K, d, d]``, of outer products.
    """

    count: jax.Array
    total: jax.Array
    second: jax.Array


def kv_moments(cfg: LlamaConfig, params: Any, batches: Iterable[Any], *, skip: int = 4) -> KVMoments:
    """Moments of rotated keys and of values over texts ``int [B, T]``; the first ``skip`` tokens of each are left out.

    First tokens draw attention with tiny values and odd keys; caches keep them exactly.

    Raises:
      ValueError: no batch.
    """

    @jax.jit
    def of(params, tokens):
        plain, _ = plain_prompt(LlamaForm(cfg), params, tokens, jnp.ones(tokens.shape, bool))
        x = jnp.stack([plain["k"], plain["v"]])[:, :, :, skip:].astype(jnp.float32)
        count = jnp.float32(x.shape[2] * x.shape[3])
        return KVMoments(count, jnp.sum(x, axis=(2, 3)), jnp.einsum("xlbtkd,xlbtke->xlkde", x, x))

    found = None
    for tokens in batches:
        new = of(params, jnp.asarray(tokens, jnp.int32))
        found = new if found is None else jax.tree.map(jnp.add, found, new)
    if found is None:
        raise ValueError("kv_moments needs at least one batch of texts")
    return found


def pca_init(moments: KVMoments) -> MKVParams:
    """Principal axes of keys and values, with free matrices at 0.

    Raises:
      ValueError: fewer tokens than the head's width, or moments that are not finite.
    """
    count, width = float(moments.count), moments.total.shape[-1]
    if count < width:
        raise ValueError(f"principal axes of {width} channels need at least as many tokens, got {count:.0f}")
    mean = np.asarray(moments.total, np.float64) / count
    second = np.asarray(moments.second, np.float64) / count
    if not (np.isfinite(mean).all() and np.isfinite(second).all()):
        raise ValueError("the moments of keys and values are not finite")
    axes = jnp.asarray(principal_axes(second, mean), jnp.float32)
    zero = jnp.zeros(axes.shape[1:], jnp.float32)
    means = jnp.asarray(mean, jnp.float32)
    return MKVParams(zero, zero, axes[0], axes[1], means[0], means[1])


def projected_hidden(
    cfg: LlamaConfig,
    params: Any,
    mkv: MKVParams,
    tokens: jax.Array,
    ranks_k: jax.Array,
    ranks_v: jax.Array,
    *,
    sinks: int = 4,
    kind: Kind = "cayley",
) -> jax.Array:
    """Residual stream ``[B, T, D]`` of the model with keys and values of these ranks.

    Args:
      cfg, params: the model.
      mkv: bases and means.
      tokens: int ``[B, T]``.
      ranks_k, ranks_v: int ``[L, K]``, traced.
      sinks: first tokens left exact.
      kind: the map from free matrices to orthogonal ones.
    """
    model, block = Llama(cfg), Block(cfg)
    layers, join = split_pools(params["blocks"])
    rest = {name: value for name, value in params.items() if name != "blocks"}
    positions = jnp.arange(tokens.shape[1])[None]
    exact = (positions < sinks)[..., None, None]
    seen = causal_seen(tokens.shape[1], None, cfg.sliding_window)

    def kept(x, q, mu, ranks):
        column = jnp.arange(x.shape[-1])[None] < ranks[:, None]
        inside = jnp.einsum("btkd,kdr->btkr", x - mu[None, None], q) * column[None, None].astype(x.dtype)
        return jnp.where(exact, x, mu[None, None] + jnp.einsum("btkr,kdr->btkd", inside, q))

    def body(x, own):
        layer, qk, qv, mu_k, mu_v, rk, rv = own
        layer = join(layer)
        h = apply(block, layer, {"x": x}, method="attention_in")["h"]
        q, k, v = apply(Attention(cfg), layer["attn"], h, positions, method="project")
        carry = {"x": x, "h": attend(q, kept(k, qk, mu_k, rk), kept(v, qv, mu_v, rv), seen, causal=True)}
        for method in ("mlp_in", "mlp_act"):
            carry = apply(block, layer, carry, method=method)
        return apply(block, layer, carry, method="finish"), None

    qk, qv = mkv.bases(kind)
    x = apply(model, rest, tokens, method="lookup")
    return jax.lax.scan(body, x, (layers, qk, qv, mkv.mu_k, mkv.mu_v, ranks_k, ranks_v))[0]


def mkv_logits(cfg: LlamaConfig, params: Any, mkv: MKVParams, tokens, ranks_k, ranks_v, **options: Any) -> jax.Array:
    """Logits float32 ``[B, T, V]`` of `projected_hidden`."""
    hidden = projected_hidden(cfg, params, mkv, tokens, ranks_k, ranks_v, **options)
    rest = {name: value for name, value in params.items() if name != "blocks"}
    return apply(Llama(cfg), rest, hidden, method="logits")


def sample_ranks(key: jax.Array, layers: int, heads: int, width: int, grid: int = 8) -> tuple[jax.Array, jax.Array]:
    """Independent ranks of every layer and head, for keys and values: uniform on ``{1 .. grid} * d / grid``."""
    drawn = jax.random.randint(key, (2, layers, heads), 1, grid + 1) * (width // grid)
    return drawn[0], drawn[1]


def distill_loss(
    cfg: LlamaConfig,
    params: Any,
    mkv: MKVParams,
    tokens: jax.Array,
    teacher: jax.Array,
    ranks: tuple[jax.Array, jax.Array],
    *,
    kl_weight: float = 0.25,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """``w KL(teacher || student) + (1 - w) CE(labels)``, means over tokens.

    Args:
      cfg, params, mkv, tokens: as for `projected_hidden`.
      teacher: logits ``[B, T, V]`` of the model itself.
      ranks: of keys and values.
      kl_weight: w; the paper's code takes 0.25.
      **options: ``sinks`` and ``kind``.

    Returns:
      The loss, and the KL alone.
    """
    student = jax.nn.log_softmax(mkv_logits(cfg, params, mkv, tokens, *ranks, **options))
    exact = jax.nn.log_softmax(teacher)
    divergence = jnp.mean(jnp.sum(jnp.exp(exact) * (exact - student), axis=-1))
    labels = jnp.take_along_axis(student[:, :-1], tokens[:, 1:, None], axis=-1)
    return kl_weight * divergence - (1 - kl_weight) * jnp.mean(labels), divergence


def _trained(mkv: MKVParams) -> dict[str, jax.Array]:
    return {"ak": mkv.ak, "av": mkv.av, "mu_k": mkv.mu_k, "mu_v": mkv.mu_v}


def _with_trained(mkv: MKVParams, free: Any) -> MKVParams:
    return MKVParams(free["ak"], free["av"], mkv.uk, mkv.uv, free["mu_k"], free["mu_v"])


class TrainState(NamedTuple):
    """Bases in training."""

    mkv: MKVParams
    optimizer: Any
    step: jax.Array


def trainer(
    cfg: LlamaConfig,
    *,
    steps: int,
    lr: float = 1e-3,
    warmup: int | None = None,
    grid: int = 8,
    fixed_rank: int | None = None,
    kl_weight: float = 0.25,
    sinks: int = 4,
    kind: Kind = "cayley",
) -> tuple[Callable[[MKVParams], TrainState], Callable[..., tuple[TrainState, jax.Array]]]:
    """Training of bases and means with a new draw of ranks at every step, by AdamW with a cosine and clipped gradients.

    Args:
      cfg: the model, which is not trained.
      steps: of training.
      lr: highest learning rate.
      warmup: steps until it; None is a tenth, 100 at most.
      grid: ranks are multiples of ``d / grid``.
      fixed_rank: train at this rank only, for comparison.
      kl_weight, sinks, kind: as for `distill_loss`.

    Returns:
      ``init(mkv) -> state`` and ``step(state, params, tokens, key) -> (state, [loss, kl])``, for the caller to jit.
    """
    warmup = min(100, max(1, steps // 10)) if warmup is None else warmup
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup, max(steps, warmup + 1))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))

    def init(mkv):
        return TrainState(mkv, optimizer.init(_trained(mkv)), jnp.int32(0))

    def step(state, params, tokens, key):
        layers, heads, width = state.mkv.mu_k.shape
        if fixed_rank is None:
            ranks = sample_ranks(key, layers, heads, width, grid)
        else:
            one = jnp.full((layers, heads), fixed_rank, jnp.int32)
            ranks = (one, one)
        teacher = apply(Llama(cfg), params, tokens)

        def loss(free):
            mkv = _with_trained(state.mkv, free)
            return distill_loss(cfg, params, mkv, tokens, teacher, ranks, kl_weight=kl_weight, sinks=sinks, kind=kind)

        (value, kl), grads = jax.value_and_grad(loss, has_aux=True)(_trained(state.mkv))
        updates, moments = optimizer.update(grads, state.optimizer, _trained(state.mkv))
        free = optax.apply_updates(_trained(state.mkv), updates)
        return TrainState(_with_trained(state.mkv, free), moments, state.step + 1), jnp.stack([value, kl])

    return init, step


class RankPlan(NamedTuple):
    """Ranks by layer and key head, hashable, for `MatryoshkaKV`."""

    ranks_k: Ranks
    ranks_v: Ranks

    @property
    def mean(self) -> float:
        """Mean rank over layers, heads, keys and values."""
        return float(np.mean([self.ranks_k, self.ranks_v]))


def greedy_rank_search(
    errors: Callable[[np.ndarray, np.ndarray], np.ndarray],
    shape: tuple[int, int],
    width: int,
    budget: float,
    *,
    step: int | None = None,
    share: float = 0.25,
) -> RankPlan:
    """Lowers ranks where it costs least until their mean is within a budget.

    In a round every entry (layer, head, key or value) is lowered by ``step`` alone, its error against the current plan
    is measured, and the cheapest are lowered for good.

    Args:
      errors: ``(ranks [2, L, K], tried [n, 2, L, K]) -> float [n]``, the error of each tried plan against the present.
      shape: L, K.
      width: d, the rank to start from.
      budget: largest mean rank, as a share of d.
      step: of a rank; None is ``d / 8``.
      share: most entries lowered in a round, as a share of all.

    Raises:
      ValueError: a budget below the floor ``step / d`` or above 1, or a step that does not divide d.
    """
    step = width // 8 if step is None else step
    if step < 1 or width % step:
        raise ValueError(f"step must divide the head width {width}, got {step}")
    if not step / width <= budget <= 1:
        raise ValueError(f"budget must be in [{step / width}, 1] for steps of {step} of {width}, got {budget}")
    ranks = np.full((2, *shape), width)
    most = max(1, int(share * ranks.size))
    while ranks.mean() > budget * width:
        places = np.argwhere(ranks > step)
        tried = np.repeat(ranks[None], len(places), axis=0)
        tried[(np.arange(len(places)), *places.T)] -= step
        order = np.argsort(np.asarray(errors(ranks, tried)), kind="stable")
        needed = int(np.ceil((ranks.mean() - budget * width) * ranks.size / step))
        for place in places[order[: min(most, needed)]]:
            ranks[tuple(place)] -= step
    return RankPlan(*(tuple(tuple(int(r) for r in row) for row in half) for half in ranks))


def hidden_errors(cfg: LlamaConfig, params: Any, mkv: MKVParams, tokens: Any, **options: Any) -> Callable:
    """The error function of `greedy_rank_search` on texts ``int [B, T]``: relative change of the last hidden states."""
    tokens = jnp.asarray(tokens, jnp.int32)

    @jax.jit
    def measure(params, mkv, ranks, tried):
        now = projected_hidden(cfg, params, mkv, tokens, ranks[0], ranks[1], **options)

        def one(plan):
            other = projected_hidden(cfg, params, mkv, tokens, plan[0], plan[1], **options)
            return jnp.linalg.norm(other - now) / jnp.linalg.norm(now)

        return jax.lax.map(one, tried)

    def errors(ranks, tried):
        # Padded to one length, so that rounds with fewer entries left are not compiled anew.
        room = ranks.size - len(tried)
        plans = np.concatenate([tried, np.repeat(ranks[None], room, axis=0)]).astype(np.int32)
        found = measure(params, mkv, jnp.asarray(ranks, jnp.int32), jnp.asarray(plans))
        return np.asarray(found)[: len(tried)]

    return errors
