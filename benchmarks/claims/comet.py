"""COMET on a real language model: activations in blocks of 4 and 8 bits over INT4 weights, and a 4-bit cache.

Paper: Zhao et al., 2024, arXiv 2410.12168: with outlier channels gathered in a few 8-bit blocks, W4A4 for the rest and
a 4-bit cache, quality is kept. Its speed figures are those of GPU kernels and cannot be set beside a run on a CPU.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from compressjax.calibration import calibrate
from compressjax.calibration.joint import HessianAndMoments
from compressjax.evaluation.perplexity import perplexity
from compressjax.kvcache import KV4
from compressjax.kvcache.kv4 import attention_as_decoded, round_trip
from compressjax.leaf import leaf, pack_w4ax
from compressjax.leaf.w4ax import act_as_read, activation_bits
from compressjax.models import Llama, LlamaConfig
from compressjax.models.llama import Attention, Block
from compressjax.models.stack import apply
from compressjax.numerics.integer_blocks import dequantize_blocks, largest_code, quantize_blocks
from compressjax.ops import dense, logical_shape, matmul
from compressjax.quantization import COMET
from compressjax.quantization.comet_plan import fmpq_plan
from compressjax.select import replace

METHOD = "comet"
CLAIM = (
    "with at most a quarter of the activation blocks at 8 bits, sorted channels leave at most 0.35 of the "
    "log-perplexity that 4-bit block activations cost, and no more than unsorted ones at the same number of 8-bit "
    "blocks; one scale per token is far worse; a 4-bit cache adds at most 3 % perplexity"
)
SETTING = (
    "SmolLM2-135M-Instruct, 210 matrices of 30 blocks, INT4 weights by GPTQ in blocks of 64 with float16 scales, "
    "embedding and head in float; 8 x 512 tokens of wikipedia:train for calibration, 8 x 512 of wikipedia:test scored; "
    "activations by rule='error', which uses the same number of 8-bit blocks in every layer"
)

_INPUTS = {"attn/q": "attention input", "attn/o": "attention output", "mlp/gate": "MLP input", "mlp/down": "MLP inner"}
_BLOCK = COMET(block=64, max_hi_fraction=0.0, permute=False)
_FMPQ = COMET(block=64, rule="error")
_UNSORTED = COMET(block=64, rule="error", permute=False)


@leaf()
class TokenScaled:
    """The baseline: 4-bit activations with one scale per token, over the weights of ``inner``."""

    inner: Any


@matmul.register(TokenScaled)
def _matmul(x, w: TokenScaled):
    flat = x.reshape(-1, 1, x.shape[-1]).astype(jnp.float32)
    limit = jnp.full((1,), largest_code(4), jnp.float32)
    read = dequantize_blocks(quantize_blocks(flat, limit, bits=4))
    return (read.reshape(x.shape) @ dense(w.inner)).astype(x.dtype)


@dense.register(TokenScaled)
def _dense(w: TokenScaled):
    return dense(w.inner)


@logical_shape.register(TokenScaled)
def _shape(w: TokenScaled):
    return logical_shape(w.inner)


@dataclasses.dataclass(frozen=True)
class KV4Logits:
    """The model's logits with every key and value as a 4-bit cache would hold it when it is read."""

    cfg: LlamaConfig
    kv: KV4

    def __call__(self, params: Any, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits ``[B, T, V]`` of full windows."""
        if mask is not None:
            raise ValueError("KV4Logits takes windows without padding")
        model = Llama(self.cfg)
        rest = {name: value for name, value in params.items() if name != "blocks"}
        hidden, _ = jax.lax.scan(self._block, apply(model, rest, tokens, method="lookup"), params["blocks"])
        return apply(model, rest, hidden, method="logits")

    def _block(self, x, params):
        block = Block(self.cfg)
        carry = apply(block, params, {"x": x}, method="attention_in")
        q, k, v = _project(self.cfg, params, carry["h"])
        carry = carry | {"h": attention_as_decoded(q, k, v, self.kv)}
        for method in ("mlp_in", "mlp_act"):
            carry = apply(block, params, carry, method=method)
        return apply(block, params, carry, method="finish"), None


def _project(cfg, params, h):
    return apply(Attention(cfg), params["attn"], h, jnp.arange(h.shape[1])[None], method="project")


def _scored(bed: lm.TestBed, params: dict, text: np.ndarray, logits: Any = None) -> float:
    """Perplexity with the leaves as they are, for they quantise what they read."""
    return perplexity(logits or bed.logits, params, text).perplexity


def _texts(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    count, length = (2, 64) if quick else (8, 512)
    return lm.calibration("wikipedia:train", count, length), lm.held_out("wikipedia:test", count, length)


def activations(quick: bool) -> list[Row]:
    """Relative error of the quantised inputs themselves, on tokens that set no plan."""
    bed = lm.smollm2(2 if quick else None)
    seen, unseen = (_statistics(bed, text) for text in _texts(quick))
    layers = [layer for layer in (1, 15, 28) if layer < bed.cfg.num_layers]
    rows = []
    for key, name in _INPUTS.items():
        found = {}
        for layer in layers:
            record, x = jax.tree.map(
                lambda a, at=layer: a[at], (seen[f"blocks/{key}/kernel"], unseen[f"blocks/{key}/kernel"].samples)
            )
            for variant, error in _input_errors(record, x).items():
                found.setdefault(variant, []).append(error)
        mean = {variant: float(np.mean(errors)) for variant, errors in found.items()}
        for worse, better in (("token, 4 bits", "blocks, 4 bits"), ("unsorted", "sorted")):
            on = f"{name}, {len(layers)} layers"
            rows.append(
                asserted(f"input error, {better} under {worse} ({on})", baseline=mean[worse], ours=mean[better])
            )
        rows += [
            printed(f"input error | {variant} | {name}", ours=value, baseline=mean["blocks, 4 bits"], why="value")
            for variant, value in mean.items()
        ]
    return rows


def _statistics(bed, tokens):
    # Samples leave first tokens out: one of them outweighs all others in a sum of squares.
    model = Llama(bed.cfg)

    def hidden(params, ids):
        return model.apply({"params": params}, ids, method="hidden")[0]

    batches = [jnp.asarray(tokens[at : at + 2]) for at in range(0, len(tokens), 2)]
    return calibrate(hidden, bed.params, batches, HessianAndMoments(samples=64), paths="blocks/**")


@jax.jit
def _input_errors(record, x):
    """``|x - read|² / |x|²`` by variant; one wide block, sorted and unsorted, and none or all."""
    width = x.shape[-1]
    blocks = width // 64
    ones = jnp.ones((width,), jnp.float32)
    one_wide = {"block": 64, "rule": "error", "max_hi_fraction": 1.01 / blocks}
    variants = {
        "blocks, 4 bits": (None, 0),
        "unsorted": (fmpq_plan(record, ones, COMET(**one_wide, permute=False)).perm, 1),
        "sorted": (fmpq_plan(record, ones, COMET(**one_wide)).perm, 1),
        "blocks, 8 bits": (None, blocks),
    }
    codes, scale = jnp.zeros((width, 1), jnp.int32), jnp.ones((blocks, 1), jnp.float16)
    total = jnp.sum(x**2)
    out = {
        name: jnp.sum((x - act_as_read(x, pack_w4ax(codes, scale, perm, n_hi, block=64))) ** 2) / total
        for name, (perm, n_hi) in variants.items()
    }
    limit = jnp.full((1,), largest_code(4), jnp.float32)
    read = dequantize_blocks(quantize_blocks(x[:, None], limit, bits=4))[:, 0]
    return {"token, 4 bits": jnp.sum((x - read) ** 2) / total, **out}


def quality(quick: bool) -> list[Row]:
    """Perplexity of W4A4 by token, by block, and with a quarter of the blocks at 8 bits."""
    bed = lm.smollm2(2 if quick else None)
    tokens, text = _texts(quick)
    rows, gaps, found, bits = [], {}, {}, {}
    exact = _scored(bed, bed.params, text)
    rows.append(printed("perplexity, float32", ours=exact, why="reference", bits=32.0))
    for name, cfg in (("blocks", _BLOCK), ("unsorted", _UNSORTED), ("sorted", _FMPQ)):
        # The column sweep takes longer to compile than a small setting takes to run.
        params = lm.blockwise(bed, dataclasses.replace(cfg, weight_solver="rtn") if quick else cfg, tokens)
        bits[name] = lm.bits_per_weight(params)
        found[name] = _scored(bed, params, text)
        weights_only = lm.perplexity_of(bed, params, text)
        gaps[name] = math.log(found[name] / weights_only)
        leaves = lm.projections(params)
        sizes = [w.shape[0] for w in leaves.values()]
        act = float(np.average([activation_bits(w) for w in leaves.values()], weights=sizes))
        why = (
            f"weights at {bits[name]:.3f} bits, activations at {act:.2f} with scales of 32; baseline: the same weights "
            "and exact activations"
        )
        rows.append(printed(f"perplexity, {name}", ours=found[name], baseline=weights_only, why=why, bits=bits[name]))
        if name == "blocks":
            by_token = replace(params, {path: TokenScaled(inner=w) for path, w in leaves.items()})
            found["token"] = _scored(bed, by_token, text)
            gaps["token"] = math.log(found["token"] / weights_only)
        if name == "sorted":
            cached = _scored(bed, params, text, KV4Logits(bed.cfg, _cache(quick)))
            rows.append(
                printed(
                    "perplexity, W4A4KV4", ours=cached, baseline=exact, why="all three parts together, against float32"
                )
            )
    note = "the sorting index costs a few hundredths of a bit per weight, which the 4-bit blocks do not have"
    costs = (
        ("4-bit blocks at most half of one scale per token", "token", "blocks", 0.5),
        ("mixed blocks at most 0.35 of 4-bit blocks", "blocks", "sorted", 0.35),
        ("sorted at most unsorted, as many 8-bit blocks", "unsorted", "sorted", 1.0),
    )
    rows += [
        asserted(
            f"activation cost, {name}",
            baseline=gaps[worse],
            ours=gaps[better],
            limit=limit,
            strict=False,
            unit="log-perplexity over the same weights with exact activations",
            note=note,
        )
        for name, worse, better, limit in costs
    ]
    rows.append(
        asserted(
            "perplexity, mixed blocks under 4-bit blocks", baseline=found["blocks"], ours=found["sorted"], note=note
        )
    )
    why = "the speed of GPU kernels on an A100; there is no GPU here"
    rows.append(not_comparable("kernel speed against 16-bit cuBLAS", baseline=2.88, unit="x", why=why))
    rows.append(not_comparable("throughput against TensorRT-LLM, LLaMA-3-70B", baseline=2.02, unit="x", why=why))
    return rows


def _cache(quick: bool) -> KV4:
    # In windows of 64 tokens the default would leave almost nothing to compress.
    return KV4(group=32, residual=32) if quick else KV4()


def cache(quick: bool) -> list[Row]:
    """Perplexity with a 4-bit cache, weights and activations exact, and the error of keys by axis."""
    bed = lm.smollm2(2 if quick else None)
    _, text = _texts(quick)
    kv = _cache(quick)
    exact = _scored(bed, bed.params, text)
    ours = _scored(bed, bed.params, text, KV4Logits(bed.cfg, kv))
    by_token = _scored(bed, bed.params, text, KV4Logits(bed.cfg, dataclasses.replace(kv, k_axis="token")))
    errors = _key_errors(bed.cfg, kv, bed.params, jnp.asarray(text[:2]))
    return [
        asserted(
            "perplexity with a 4-bit cache, at most 1.03 of exact",
            baseline=exact,
            ours=ours,
            limit=1.03,
            strict=False,
            bits=kv.bits + 32 / kv.group,
            note=f"bits per frozen value, scales counted; the newest 0 to {kv.residual - 1} tokens stay exact",
        ),
        asserted(
            "squared error of keys, by channel under by token",
            baseline=float(errors["token"]),
            ours=float(errors["channel"]),
            unit="relative, mean over layers",
        ),
        printed("perplexity, keys by token", baseline=exact, ours=by_token, why="the other axis, for comparison"),
    ]


def _key_errors(cfg, kv, params, tokens):
    def body(x, block):
        carry = apply(Block(cfg), block, {"x": x}, method="attention_in")
        _, k, _ = _project(cfg, block, carry["h"])
        k = k[:, : k.shape[1] // kv.residual * kv.residual]
        error = {axis: jnp.sum((round_trip(k, axis, kv) - k) ** 2) / jnp.sum(k**2) for axis in ("channel", "token")}
        return apply(Block(cfg), block, {"x": x})[0], error

    rest = {name: value for name, value in params.items() if name != "blocks"}
    hidden = apply(Llama(cfg), rest, tokens, method="lookup")
    return jax.tree.map(jnp.mean, jax.jit(lambda x, b: jax.lax.scan(body, x, b)[1])(hidden, params["blocks"]))


PARTS = {
    "activations": Part(run=activations, about="error of quantised inputs, 4 inputs of 3 layers", minutes=1.5),
    "quality": Part(run=quality, about="perplexity of W4A4 and of mixed 4/8-bit activations", minutes=5),
    "cache": Part(run=cache, about="perplexity with a 4-bit cache", minutes=1.5),
}
