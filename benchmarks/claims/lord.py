"""LoRD on a real language model: thin MLP layers from the outputs' components, against the SVD of the weights.

Paper: Kaushal et al., 2023, arXiv 2309.14021: ranks fall by up to 39.58 % at under 1 % of perplexity, on code models of
3 to 16 billion weights. A model of 135 million is far less redundant, so what is claimed is the order and its size.
"""

import functools
import math

import jax
import jax.numpy as jnp

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.matrix_errors import hessians
from compressjax.factorization import SVD, LoRD
from compressjax.ops import dense, nbits, size
from compressjax.quantization import GPTQ, quantize
from compressjax.select import weights

METHOD = "lord"
CLAIM = (
    "with the MLPs of a fifth of the blocks factorised, LoRD adds at most 0.2 of the log-perplexity that the SVD of "
    "their weights adds at the same rank, and with factors in 4 bits at most 0.3 of it"
)
SETTING = (
    "SmolLM2-135M-Instruct, gate, up and down of 6 of 30 blocks (all 30 printed); second moments of 24 x 512 tokens of "
    "wikipedia:train in one pass through the original model, factors in float16; perplexity on wikipedia:test, 8 x 512"
)
_LAYERS = (2, 7, 12, 17, 22, 27)
RISE = "rise of log-perplexity, rank 384, LoRD against SVD"


def perplexity(quick: bool) -> list[Row]:
    """Log-perplexity added by rank, for six blocks and for all."""
    bed = lm.smollm2(2 if quick else None)
    count, windows, length = (2, 2, 64) if quick else (24, 8, 512)
    stats = hessians(bed, lm.calibration("wikipedia:train", count, length))
    text = lm.held_out("wikipedia:test", windows, length)
    plain = lm.perplexity_of(bed, bed.params, text)
    layers = [layer for layer in _LAYERS if layer < bed.cfg.num_layers] or [0]

    def rise(cfg, chosen):
        rules = {"blocks/mlp/gate" if quick else "blocks/mlp/*": cfg, "**": None}
        small = quantize(bed.params, rules, stats=stats)
        after = weights(small)
        touched = [path for path, w in after.items() if not isinstance(w, jax.Array)]
        bits = sum(nbits(after[path]) for path in touched) / sum(size(after[path]) for path in touched)
        mixed = jax.tree.map(functools.partial(_some, chosen), dense(small)["blocks"], bed.params["blocks"])
        return math.log(lm.perplexity_of(bed, {**bed.params, "blocks": mixed}, text) / plain), bits

    rows = [printed("perplexity, float32", ours=plain, bits=32.0, why="reference")]
    for rank in (384, 256):
        svd, bits = rise(SVD(rank=rank), layers)
        lord, _ = rise(LoRD(rank=rank, require_saving=False), layers)
        thin, thin_bits = rise(
            LoRD(rank=rank, require_saving=False, factors=GPTQ(bits=4, group=64, grid="hessian")), layers
        )
        shared = {"unit": "nats per token", "bits": bits, "baseline_bits": bits}
        rows.append(
            asserted(
                RISE.replace("384", str(rank)),
                baseline=svd,
                ours=lord,
                limit=0.2,
                strict=False,
                note=f"{len(layers)} blocks",
                **shared,
            )
        )
        rows.append(
            asserted(
                f"rise of log-perplexity, rank {rank}, LoRD with factors in 4 bits against SVD in 16",
                baseline=svd,
                ours=thin,
                limit=0.3,
                strict=False,
                unit="nats per token",
                bits=thin_bits,
                baseline_bits=bits,
                equal_bits=False,
            )
        )
    every = list(range(bed.cfg.num_layers))
    for name, cfg in (("SVD", SVD(rank=384)), ("LoRD", LoRD(rank=384, require_saving=False))):
        value, bits = rise(cfg, every)
        why = "every block at 0.92 of its MLP weights: this model has little rank to spare"
        rows.append(printed(f"rise of log-perplexity, rank 384, all blocks, {name}", ours=value, bits=bits, why=why))
    why = "StarCoder models and HumanEval in the paper; neither fits here"
    return [*rows, not_comparable("rank reduction of 39.58 % at under 1 % of perplexity", baseline=0.01, why=why)]


def _some(layers, new, old):
    """The chosen layers of a stack from ``new``, the others from ``old``."""
    at = jnp.asarray(layers)
    return old.at[at].set(new[at].astype(old.dtype))


PARTS = {"perplexity": Part(run=perplexity, about="log-perplexity added by LoRD and SVD, two ranks", minutes=7)}
