"""EoRA on a real language model: how much of what compression cost a low-rank path brings back, without training.

Paper: Liu et al., 2024, arXiv 2410.21271: on LLaMA models the path in the inputs' eigenspace is ahead of one from
weighed inputs and of the plain SVD of the error, for quantised and for pruned weights. At a hidden width of 576 a path
of rank 32 costs 1.2 to 1.8 bits per weight, so plain methods at equal total bits are shown beside it.
"""

import dataclasses
import math

import jax.numpy as jnp

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from compressjax.calibration import calibrate
from compressjax.calibration.joint import HessianAndMoments
from compressjax.factorization import EoRA, compensate
from compressjax.models import Llama
from compressjax.quantization import GPTQ, RTN, quantize
from compressjax.sparsity import NM

METHOD = "eora"
CLAIM = (
    "on weights pruned 2:4 by magnitude (survivors in 8 bits) and on weights rounded to 3 bits, paths of rank 32 lower "
    "perplexity in the paper's order: none, SVD of the error, inputs weighed, EoRA; after pruning EoRA closes at least "
    "70 % of the log-perplexity gap"
)
SETTING = (
    "SmolLM2-135M-Instruct, 210 matrices of 30 blocks, one pass through the original model (24 x 512 tokens of "
    "wikipedia:train), factors in float16, all bits counted; perplexity on wikipedia:test, 8 x 512"
)
GAP = "2:4: log-perplexity gap left by EoRA of rank 32"
_RANK = 32
_STEPS = {"SVD": "none", "ACT-S": "act", "EoRA": "whiten"}


def perplexity(quick: bool) -> list[Row]:
    """Perplexity by path, for pruned and for rounded weights."""
    bed = lm.smollm2(2 if quick else None)
    count, windows, length = (2, 2, 64) if quick else (24, 8, 512)
    model = Llama(bed.cfg)
    tokens = lm.calibration("wikipedia:train", count, length)
    rule = "blocks/attn/v" if quick else "blocks/**"

    def hidden(params, ids):
        return model.apply({"params": params}, ids, method="hidden")[0]

    batches = [jnp.asarray(tokens[at : at + 2]) for at in range(0, count, 2)]
    stats = calibrate(hidden, bed.params, batches, HessianAndMoments(), paths=rule)
    text = lm.held_out("wikipedia:test", windows, length)
    plain = lm.perplexity_of(bed, bed.params, text)
    rows = [printed("perplexity, float32", ours=plain, bits=32.0, why="reference")]

    def measured(params):
        return lm.perplexity_of(bed, params, text), lm.bits_per_weight(params)

    for base, cfg in (
        ("2:4", NM(n=2, m=4, bits=8, score="magnitude", init="mask")),
        ("RTN 3 bits", RTN(bits=3, group=64)),
    ):
        rough = quantize(bed.params, {rule: cfg, "**": None}, stats=stats)
        found = {"none": measured(rough)}
        path = EoRA(rank=_RANK)
        for name, scale in _STEPS.items():
            found[name] = measured(compensate(bed.params, rough, dataclasses.replace(path, scale=scale), stats=stats))
        rows += [
            asserted(
                f"{base}: perplexity, {better} under {worse}",
                baseline=found[worse][0],
                ours=found[better][0],
                bits=found[better][1],
                baseline_bits=found[worse][1],
                equal_bits=False,
                note="paths of one rank cost the same; the first row is against no path",
            )
            for worse, better in zip(found, list(found)[1:], strict=False)
        ]
        gap = {name: math.log(value / plain) for name, (value, _) in found.items()}
        if base == "2:4":
            rows.append(
                asserted(
                    GAP,
                    baseline=gap["none"],
                    ours=gap["EoRA"],
                    limit=0.3,
                    strict=False,
                    bits=found["EoRA"][1],
                    baseline_bits=found["none"][1],
                    equal_bits=False,
                    unit="nats per token",
                )
            )
        thin = dataclasses.replace(path, factors=GPTQ(bits=4, group=32))
        value, bits = measured(compensate(bed.params, rough, thin, stats=stats))
        rows.append(
            printed(
                f"{base}: perplexity, EoRA with factors in 4 bits",
                baseline=found["EoRA"][0],
                ours=value,
                bits=bits,
                baseline_bits=found["EoRA"][1],
                why="the path at a quarter of its size",
            )
        )
    for name, cfg in (("RTN 4 bits", RTN(bits=4, group=64)), ("GPTQ 4 bits", GPTQ(bits=4, group=64, grid="hessian"))):
        value, bits = measured(quantize(bed.params, {rule: cfg, "**": None}, stats=stats))
        why = "what the bits of a path buy when they are spent on codes instead"
        rows.append(printed(f"perplexity, {name}, no path", ours=value, bits=bits, why=why))
    why = "LLaMA3-8B and its tasks in the paper; the model does not fit here"
    return [*rows, not_comparable("ARC-C gained by EoRA at 3 bits, LLaMA3-8B, points", baseline=10.84, why=why)]


PARTS = {"perplexity": Part(run=perplexity, about="perplexity by path, pruned and rounded weights", minutes=12)}
