"""A whole click-through-rate model made small: tables first, then the MLP on what those give it, then the fusion."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.calibration import calibrate
from compressjax.calibration.joint import HessianAndMoments
from compressjax.calibration.records import Record
from compressjax.factorization.afm import AFM, table_record
from compressjax.factorization.lord import centred_moment
from compressjax.factorization.lowrank import lowrank
from compressjax.factorization.svd import SVD
from compressjax.models.deepfm import DeepFM, DeepFMConfig
from compressjax.numerics.whitened_svd import output_basis, scaled_fit, whiten
from compressjax.select import weights


class Thin(NamedTuple):
    """A linear layer as two: ``y = (x A + a) B + b``.

    Attributes:
      first, first_bias: ``A [in, r]`` and ``a [r]``.
      second, second_bias: ``B [r, out]`` and ``b [out]``.
    """

    first: jax.Array
    first_bias: jax.Array
    second: jax.Array
    second_bias: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTRCompression:
    """How a :class:`DeepFM` is made small.

    Attributes:
      embed_ranks: of the tables: one for all (no more than a table has rows), or by field, each of them named.
      mlp_ranks: per hidden layer a rank or None, or None for no layer.
      method: "afm", or "svd" of the weights as its baseline.
      middle: activation between the two thin layers. "relu" is not the layer any more, so it needs training after.
      weighting, center: as for :class:`AFM`.
      fuse: let the MLP read codes, the projector multiplied into its first layer; the factorisation machine, which is
        not linear, goes on reading expanded embeddings. Without, tables stay compressed leaves.
      recompute: gather statistics anew for every layer from the layers before it as they have become; otherwise all in
        one pass behind the compressed tables.
    """

    embed_ranks: int | Mapping[str, int] | tuple[tuple[str, int], ...] = 2
    mlp_ranks: tuple[int | None, ...] | None = None
    method: Literal["afm", "svd"] = "afm"
    middle: Literal["none", "relu"] = "none"
    weighting: Literal["frequency", "uniform"] = "frequency"
    center: bool = True
    fuse: bool = True
    recompute: bool = False

    def __post_init__(self):
        if isinstance(self.embed_ranks, Mapping):
            object.__setattr__(self, "embed_ranks", tuple(sorted(self.embed_ranks.items())))
        ranks = [self.embed_ranks] if isinstance(self.embed_ranks, int) else [r for _, r in self.embed_ranks]
        if not all(rank >= 1 for rank in [*ranks, *(r for r in self.mlp_ranks or () if r is not None)]):
            raise ValueError(f"CTRCompression ranks must be >= 1, got {self.embed_ranks} and {self.mlp_ranks}")
        for field, allowed in (("method", ("afm", "svd")), ("middle", ("none", "relu"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"CTRCompression.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        AFM(weighting=self.weighting)


def afm_linear(w: jax.Array, b: jax.Array, record: Record, rank: int, *, center: bool = True) -> Thin:
    """The affine map of rank r that mimics a layer best over its inputs.

    ``A = W U``, ``a = Uᵀ b``, ``B = Uᵀ``, ``b' = (1 - U Uᵀ) μ`` with ``μ`` the mean output and ``U`` the leading
    eigenvectors of the outputs' covariance. The signs of ``U`` are such that the mean code is not negative, for a
    rectifier behind it would else cut off the half-space that most inputs lie in.

    Args:
      w, b: ``[in, out]`` and ``[out]``.
      record: ``xtx``, ``x_sum`` and ``count`` of at least two inputs.
      rank: r.
      center: use the covariance and keep the mean; without, the second moment of ``x W`` and the bias as it is.

    Raises:
      ValueError: a rank that does not fit, or statistics that are missing or of fewer than two inputs.
    """
    if not 1 <= rank <= min(w.shape):
        raise ValueError(f"rank must be in 1..{min(w.shape)} for a layer {w.shape}, got {rank}")
    if record.xtx is None or record.x_sum is None or record.count is None or float(record.count) < 2:
        raise ValueError("afm_linear needs xtx, x_sum and count of at least two inputs: use HessianAndMoments()")
    c = centred_moment(record, AFM()) if center else record.xtx
    basis, _ = output_basis(w, whiten(c), rank)
    mean = jnp.matmul(record.x_sum[None] / record.count, w, precision="highest")[0] + b
    basis = basis * jnp.where(jnp.matmul(mean[None], basis, precision="highest") < 0, -1.0, 1.0)
    first_bias = jnp.matmul(b[None], basis, precision="highest")[0]
    offset = mean if center else b
    kept = jnp.matmul(jnp.matmul(offset[None], basis, precision="highest"), basis.T, precision="highest")[0]
    return Thin(jnp.matmul(w, basis, precision="highest"), first_bias, basis.T, offset - kept)


def svd_linear(w: jax.Array, b: jax.Array, rank: int) -> Thin:
    """The product nearest to the weight, the bias behind it: the baseline."""
    fit = scaled_fit(w, None, rank)
    return Thin(fit.left, jnp.zeros((rank,)), fit.right, b)


def compress_ctr(
    params: Any,
    model: DeepFMConfig,
    batches: Sequence[Mapping[str, jax.Array]],
    cfg: CTRCompression,
) -> tuple[Any, DeepFMConfig]:
    """A trained model made small.

    Args:
      params: of a ``DeepFM(model)`` without codes and pairs.
      model: its sizes.
      batches: training data, ``{"ids": int [B, F], "numeric": [B, D]}`` each.
      cfg: the options.

    Returns:
      Parameters and sizes of the small model.

    Raises:
      ValueError: a model that is small already, a field without rank or a rank without field, layers that are not as
        many as ranks, or ids outside their table.
    """
    if model.codes is not None or model.middle:
        raise ValueError(f"the model is compressed already: codes={model.codes}, middle={model.middle}")
    names = [name for name, _ in model.fields]
    if isinstance(cfg.embed_ranks, int):
        ranks = {name: min(cfg.embed_ranks, size) for name, size in model.fields}
    else:
        ranks = dict(cfg.embed_ranks)
    if set(ranks) != set(names):
        raise ValueError(f"embed_ranks must name every field once, {names}, got {sorted(ranks)}")
    layers = cfg.mlp_ranks or (None,) * len(model.hidden)
    if len(layers) != len(model.hidden):
        raise ValueError(f"mlp_ranks must have {len(model.hidden)} entries, got {layers}")
    stats, rules = {}, {}
    for at, (name, size) in enumerate(model.fields):
        path = f"embed_{name}/embedding"
        stats[path] = table_record(jnp.concatenate([batch["ids"][:, at] for batch in batches]), size)
        afm = AFM(rank=ranks[name], weighting=cfg.weighting, center=cfg.center, dtype="float32")
        rules[path] = afm if cfg.method == "afm" else SVD(rank=ranks[name], dtype="float32")
    small = lowrank(params, {**rules, "**": None}, stats=stats)
    small, model = _thin_layers(small, model, batches, layers, cfg)
    return fuse_tables(small, model) if cfg.fuse else (small, model)


def forward(model: DeepFMConfig) -> Callable[[Any, Mapping[str, jax.Array]], Any]:
    """``(params, batch) -> logits`` of a model."""

    def apply(params, batch):
        return DeepFM(model).apply({"params": params}, batch["ids"], batch["numeric"])

    return apply


def _thin_layers(params, model, batches, ranks, cfg):
    chosen = [at for at, rank in enumerate(ranks) if rank is not None]
    stats: Mapping[str, Record] = {}
    for turn, at in enumerate(chosen):
        if cfg.method == "afm" and (cfg.recompute or not turn):
            later = tuple(f"mlp{i}" for i in (chosen if not cfg.recompute else [at]))
            stats = calibrate(forward(model), params, batches, HessianAndMoments(), paths=later)
        layer = params[f"mlp{at}"]
        if cfg.method == "afm":
            thin = afm_linear(layer["kernel"], layer["bias"], stats[f"mlp{at}/kernel"], ranks[at], center=cfg.center)
        else:
            thin = svd_linear(layer["kernel"], layer["bias"], ranks[at])
        params = {name: value for name, value in params.items() if name != f"mlp{at}"} | {
            f"mlp{at}_first": {"kernel": thin.first, "bias": thin.first_bias},
            f"mlp{at}_second": {"kernel": thin.second, "bias": thin.second_bias},
        }
        pairs = model.middle or (None,) * len(model.hidden)
        model = dataclasses.replace(model, middle=(*pairs[:at], (ranks[at], cfg.middle), *pairs[at + 1 :]))
    return params, model


def fuse_embedding_into_dense(
    right: jax.Array, mean: jax.Array, w: jax.Array, b: jax.Array, rows: slice
) -> tuple[jax.Array, jax.Array]:
    """A dense layer that reads a field's code where it read ``code right + mean``.

    Args:
      right: ``[r, d]``.
      mean: ``[d]``.
      w, b: ``[in, out]`` and ``[out]``.
      rows: of ``w``, d of them, that read the field.

    Raises:
      ValueError: rows that are not as many as the embedding is wide.
    """
    block = w[rows]
    if block.shape[0] != right.shape[1]:
        raise ValueError(f"rows {rows} of a weight {w.shape} are {block.shape[0]}, the embedding has {right.shape[1]}")
    folded = jnp.matmul(right, block, precision="highest")
    return (
        jnp.concatenate([w[: rows.start], folded, w[rows.stop :]]),
        b + jnp.matmul(mean[None], block, precision="highest")[0],
    )


def fuse_tables(params: Any, model: DeepFMConfig, *, expand: bool = True) -> tuple[Any, DeepFMConfig]:
    """Compressed tables as tables of codes that the MLP reads.

    Args:
      params: whose ``embed_*`` are low-rank leaves, shifted or not.
      model: its sizes.
      expand: keep the projectors for a factorisation machine.

    Raises:
      ValueError: no projectors asked for and a factorisation machine there that reads embeddings.
      TypeError: a table that is not low-rank.
    """
    if not expand and model.interaction == "fm":
        raise ValueError("the factorisation machine reads embeddings too and is not linear: keep expand=True")
    first = "mlp0_first" if model.middle and model.middle[0] else "mlp0"
    w, b = params[first]["kernel"], params[first]["bias"]
    new, widths, at = dict(params), [], 0
    for name, _ in model.fields:
        leaf = params[f"embed_{name}"]["embedding"]
        mean = getattr(leaf, "shift", jnp.zeros((model.width,)))
        product = getattr(leaf, "weight", leaf)
        if not hasattr(product, "left"):
            raise TypeError(f"embed_{name} must hold a low-rank leaf, got {type(leaf).__name__}")
        rank = product.right.shape[0]
        w, b = fuse_embedding_into_dense(product.right, mean, w, b, slice(at, at + model.width))
        new[f"embed_{name}"] = {"embedding": product.left}
        if model.interaction == "fm":
            new[f"expand_{name}"] = {"kernel": product.right, "bias": mean}
        widths, at = [*widths, rank], at + rank
    new[first] = {"kernel": w, "bias": b}
    return new, dataclasses.replace(model, codes=tuple(widths))


def macs_per_sample(params: Any) -> int:
    """Multiply-accumulates with kernels for one sample; look-ups and the interaction are not counted."""
    return sum(w.size for path, w in weights(params).items() if path.endswith("kernel"))
