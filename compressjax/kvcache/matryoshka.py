"""MatryoshkaKV: keys and values in the leading coordinates of trained orthogonal bases.

``k ~ mu + Q_r Q_r^T (k - mu)`` with the first r columns of an orthogonal Q per layer and head, and the same for values;
only the r coordinates are kept. Attention stays in them: ``q . k = (q Q_r) . c + q . mu``, and averages of values are
turned back once per query. Ranks differ by layer, head, and key or value. "MatryoshkaKV: Adaptive KV Compression via
Trainable Orthogonal Projection", 2024, arXiv 2410.14731. Departures: projection per key head and not per query head,
the first tokens exact, and the coordinates of a layer's heads in one vector, so that no head is padded to another's
rank.

Letters: L layers, B batch, K key heads, n tokens, d head width, r rank, W and V widths of the vectors of coordinates.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.kvcache.blocks import BlockCodec
from compressjax.kvcache.orthogonal import Kind, orthogonal
from compressjax.kvcache.packed import Packed, pack_groups, unpack_groups
from compressjax.kvcache.partial import dot, mix
from compressjax.kvcache.protocol import Segment
from compressjax.kvcache.rounded import check_ring, check_sinks

Ranks = tuple[tuple[int, ...], ...]


class MKVParams(NamedTuple):
    """Bases of all layers and key heads.

    Attributes:
      ak, av: float32 ``[L, K, d, d]``, free matrices; 0 is the start.
      uk, uv: ``[L, K, d, d]``, fixed orthogonal bases, such as principal axes.
      mu_k, mu_v: ``[L, K, d]``, means.
    """

    ak: jax.Array
    av: jax.Array
    uk: jax.Array
    uv: jax.Array
    mu_k: jax.Array
    mu_v: jax.Array

    def bases(self, kind: Kind = "cayley") -> tuple[jax.Array, jax.Array]:
        """Orthogonal ``Q = U map(A)`` of keys and values, ``[L, K, d, d]``."""
        return self.uk @ orthogonal(self.ak, kind), self.uv @ orthogonal(self.av, kind)


class Projections(NamedTuple):
    """What a cache needs of the bases: columns in use, each in its place of the joint vector, zero elsewhere.

    Attributes:
      pk, pv: float32 ``[L, K, d, W]`` and ``[L, K, d, V]``.
      mu_k, mu_v: float32 ``[L, K, d]``.
    """

    pk: jax.Array
    pv: jax.Array
    mu_k: jax.Array
    mu_v: jax.Array


class Coordinates(NamedTuple):
    """A block: ``k [B, 1, n, W]`` and ``v [B, 1, n, V]``, or their codes."""

    k: Any
    v: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatryoshkaKV(BlockCodec):
    """How many coordinates are kept.

    The bases are given to the cache as ``fixed``: `pack_projections`.

    Attributes:
      rank: coordinates of every head, keys and values alike, where no ranks are given.
      ranks_k, ranks_v: coordinates by layer and key head, for example of `greedy_rank_search`.
      pieces: most runs of layers of equal width that a stack is cut into; a layer is padded to its run's widest.
      bits: code width of coordinates, rounded per channel over ``group`` tokens; None keeps them as floats.
      group: tokens that share a scale.
      residual: tokens of the ring.
      sinks: first tokens kept exactly.
    """

    rank: int = 32
    ranks_k: Ranks | None = None
    ranks_v: Ranks | None = None
    pieces: int = 4
    bits: int | None = None
    group: int = 32
    residual: int = 64
    sinks: int = 4

    def __post_init__(self):
        if self.rank < 1 or self.pieces < 1:
            raise ValueError(f"MatryoshkaKV.rank and pieces must be >= 1, got {self.rank} and {self.pieces}")
        if (self.ranks_k is None) != (self.ranks_v is None):
            raise ValueError("MatryoshkaKV.ranks_k and ranks_v must be given together")
        if self.ranks_k is not None and [len(x) for x in self.ranks_k] != [len(x) for x in self.ranks_v or ()]:
            raise ValueError("MatryoshkaKV.ranks_k and ranks_v must have the same layers and heads")
        if any(r < 1 for ranks in (self.ranks_k or ()) + (self.ranks_v or ()) for r in ranks):
            raise ValueError("MatryoshkaKV.ranks_k and ranks_v must be >= 1 everywhere")
        if self.bits not in (None, *range(1, 9)):
            raise ValueError(f"MatryoshkaKV.bits must be None or in 1..8, got {self.bits}")
        check_ring("MatryoshkaKV", self.residual, None if self.bits is None else self.group)
        check_sinks("MatryoshkaKV", self.sinks)

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    def segments(self, layers):
        if self.ranks_k is None or self.ranks_v is None:
            return (Segment(self, 0, layers),)
        if len(self.ranks_k) != layers:
            raise ValueError(f"MatryoshkaKV.ranks_k has {len(self.ranks_k)} layers, the cache {layers}")
        widths = [sum(k) + sum(v) for k, v in zip(self.ranks_k, self.ranks_v, strict=True)]
        return tuple(
            Segment(
                dataclasses.replace(self, ranks_k=self.ranks_k[start:stop], ranks_v=self.ranks_v[start:stop], pieces=1),
                start,
                stop,
            )
            for start, stop in runs_of_equal_width(widths, self.pieces)
        )

    def check(self, spec):
        if spec.shared:
            raise ValueError("MatryoshkaKV projects keys and values apart; latent attention is low-rank already")
        if spec.values != spec.head_dim:
            raise ValueError(f"MatryoshkaKV needs keys and values of one width, got {spec.head_dim} and {spec.values}")
        highest = max((r for x in (self.ranks_k or ()) + (self.ranks_v or ()) for r in x), default=self.rank)
        if highest > spec.head_dim:
            raise ValueError(f"MatryoshkaKV rank {highest} exceeds the head width {spec.head_dim}")
        if self.ranks_k is not None and any(len(x) != spec.kv_heads for x in self.ranks_k):
            raise ValueError(f"MatryoshkaKV.ranks_k must name {spec.kv_heads} heads in every layer")

    def prefill(self, spec, k, v, real, q, fixed):
        if not isinstance(fixed, Projections):
            raise ValueError("MatryoshkaKV needs its bases: pass fixed=pack_projections(...)")
        return super().prefill(spec, k, v, real, q, fixed)

    def compress(self, spec, fixed, k, v, tokens):
        own = []
        for x, p, mu in ((k, fixed.pk, fixed.mu_k), (v, fixed.pv, fixed.mu_v)):
            c = jnp.einsum("bknd,kdw->bnw", x - mu[None, :, None], p)[:, None]
            own.append(self._store(spec, c, tokens.keep))
        return Coordinates(*own)

    def _store(self, spec, c, keep):
        if self.bits is None:
            return c.astype(spec.dtype)
        return pack_groups(c, "channel", bits=self.bits, group=self.group, keep=keep)

    def _load(self, c):
        return unpack_groups(c, "channel", bits=self.bits or 8) if isinstance(c, Packed) else c.astype(jnp.float32)

    def scores(self, spec, fixed, block, q, view, slots, sub):
        b, heads, groups, t, _ = q.shape
        inside = jnp.einsum("bkgtd,kdw->bkgtw", q, fixed.pk).reshape(b, 1, heads * groups, t, -1)
        found = dot(inside, self._load(block.k)).reshape(b, heads, groups, t, -1)
        # Exact tokens share the softmax, so what the mean adds to every projected key does not cancel.
        return found + jnp.einsum("bkgtd,kd->bkgt", q, fixed.mu_k)[..., None], None

    def average(self, spec, fixed, block, weights, again, sub):
        b, heads, groups, t, n = weights.shape
        inside = mix(weights.reshape(b, 1, heads * groups, t, n), self._load(block.v))
        inside = inside.reshape(b, heads, groups, t, -1)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return jnp.einsum("bkgtw,kdw->bkgtd", inside, fixed.pv) + total * fixed.mu_v[None, :, None, None]

    def decompress(self, spec, fixed, block, slots, view, sub):
        return tuple(
            jnp.einsum("bnw,kdw->bknd", self._load(c)[:, 0], p) + mu[None, :, None]
            for c, p, mu in ((block.k, fixed.pk, fixed.mu_k), (block.v, fixed.pv, fixed.mu_v))
        )


def runs_of_equal_width(widths: list[int], pieces: int) -> list[tuple[int, int]]:
    """Cuts layers into at most ``pieces`` runs so that the sum of (widest of the run times its length) is least."""
    layers = len(widths)
    cost = np.full((pieces + 1, layers + 1), np.inf)
    cut = np.zeros((pieces + 1, layers + 1), int)
    cost[:, 0] = 0
    for used in range(1, pieces + 1):
        for stop in range(1, layers + 1):
            for start in range(stop):
                total = cost[used - 1, start] + max(widths[start:stop]) * (stop - start)
                if total < cost[used, stop]:
                    cost[used, stop], cut[used, stop] = total, start
    out, stop, used = [], layers, pieces
    while stop:
        start = int(cut[used, stop])
        out.append((start, stop))
        stop, used = start, used - 1
    return out[::-1]


def pack_projections(params: MKVParams, cfg: MatryoshkaKV, *, kind: Kind = "cayley") -> tuple[Projections, ...]:
    """The projections of every segment of ``cfg.segments(L)``, for ``fixed``.

    Args:
      params: bases and means.
      cfg: ranks.
      kind: the map from free matrices to orthogonal ones.

    Raises:
      ValueError: ranks of other layers or heads, above d, or means that are not finite.
    """
    layers, heads, d, _ = params.uk.shape
    if not bool(jnp.all(jnp.isfinite(params.mu_k)) & jnp.all(jnp.isfinite(params.mu_v))):
        raise ValueError("the means of MKVParams are not finite")
    qk, qv = params.bases(kind)
    out = []
    for codec, start, stop in cfg.segments(layers):
        assert isinstance(codec, MatryoshkaKV)
        placed = []
        for bases, ranks in ((qk, codec.ranks_k), (qv, codec.ranks_v)):
            ranks = np.full((stop - start, heads), codec.rank) if ranks is None else np.asarray(ranks)
            if ranks.shape != (stop - start, heads):
                raise ValueError(f"ranks must be [{stop - start}, {heads}] for these layers, got {ranks.shape}")
            if ranks.max() > d:
                raise ValueError(f"rank {ranks.max()} exceeds the head width {d}")
            placed.append(_placed(bases[start:stop], ranks))
        out.append(Projections(placed[0], placed[1], params.mu_k[start:stop], params.mu_v[start:stop]))
    return tuple(out)


def _placed(bases, ranks):
    """``[L, K, d, d]`` and ranks ``[L, K]`` to ``[L, K, d, W]``."""
    width = int(ranks.sum(1).max())
    first = np.cumsum(ranks, axis=1) - ranks
    column = np.arange(width)[None, None] - first[..., None]
    inside = (column >= 0) & (column < ranks[..., None])
    taken = jnp.take_along_axis(bases, jnp.asarray(np.where(inside, column, 0))[:, :, None, :], axis=-1)
    return jnp.where(jnp.asarray(inside)[:, :, None, :], taken, 0)
