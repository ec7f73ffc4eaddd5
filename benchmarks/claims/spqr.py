"""SpQR on a real language model at 3 bits: quantised statistics and outliers against GPTQ with small groups.

Paper: Dettmers et al., 2023, arXiv 2306.03078: less than 1 % of perplexity lost at about 4.6 bits, for LLaMA-7B on
WikiText-2 5.73 at 4.63 bits and 5.87 at 3.94 bits against 5.68 in 16 bits; those models do not fit here. GPTQ with
groups of 16 spends on its 16-bit scales what SpQR spends on statistics and outliers together.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.matrix_errors import errors, hessians, pick_layers
from compressjax.calibration import Stats
from compressjax.quantization import GPTQ, SpQR, quantize

METHOD = "spqr"
CLAIM = (
    "at 3 bits SpQR with 1 % outliers leaves at most 0.9 of the output error of the best of GPTQ's options with groups "
    "of 16 inputs, and less perplexity, at fewer bits per weight; its error falls with the share of outliers, and "
    "without any it is under that of GPTQ with groups of 64"
)
SETTING = (
    "SmolLM2-135M-Instruct as shipped, kernels of the blocks, embedding left in float; act order, statistics in 3 bits "
    "per group of 16, outliers with 16-bit value and 16-bit index in slots that are all counted, with the order of the "
    "inputs and the starts of the rows; GPTQ with min-max, mse and hessian grids, both with damping of 0.01, 0.1 and 1"
)

_LAYERS = (1, 15, 28)
_DAMPINGS = (0.01, 0.1, 1.0)
_GRIDS = ("minmax", "mse", "hessian")
_SHARES = (0.003, 0.01, 0.02)
GAP = "perplexity, SpQR with 1 % outliers under GPTQ with groups of 16, 3 bits"


def _ours(share: float | None, damp: float = 0.01, **options: Any) -> SpQR:
    if share is None:
        return SpQR(bits=3, outlier_threshold=float("inf"), damp=damp, **options)
    return SpQR(bits=3, outlier_share=share, damp=damp, **options)


def _bits(bed: lm.TestBed, cfg: Any, stats: Stats) -> float:
    """Bits per weight, from shapes alone."""
    return lm.bits_per_weight(jax.eval_shape(lambda p, s: quantize(p, cfg, stats=s), bed.params, stats))


def output_error(quick: bool) -> list[Row]:
    """Relative output error over three layers, every matrix by itself, on calibration and on held-out tokens."""
    bed = lm.smollm2(2 if quick else None)
    count, length = (2, 64) if quick else (10, 512)
    layers = [layer for layer in _LAYERS if layer < bed.cfg.num_layers]
    seen = pick_layers(hessians(bed, lm.calibration("wikipedia:train", count, length)), layers)
    unseen = pick_layers(hessians(bed, lm.held_out("wikipedia:test", count, length)), layers)
    some = lm.chosen_blocks(bed, layers)
    if quick:
        attn = some.params["blocks"]["attn"]
        some = dataclasses.replace(some, params={"blocks": {"attn": {"v": attn["v"]}}})
    dampings, grids = (_DAMPINGS[:1], _GRIDS[:1]) if quick else (_DAMPINGS, _GRIDS)
    baselines = {
        f"GPTQ group 16, {grid}, damp {damp}": GPTQ(bits=3, group=16, grid=grid, damp=damp)
        for grid in grids
        for damp in dampings
    }
    ours = {f"SpQR 1 %, damp {damp}": _ours(0.01, damp) for damp in dampings}
    sizes = _SHARES[1:2] if quick else _SHARES
    shares = {share: ours[f"SpQR 1 %, damp {_DAMPINGS[0]}"] if share == 0.01 else _ours(share) for share in sizes}
    wide = {"GPTQ group 64, minmax": GPTQ(bits=3, group=64), "SpQR without outliers": _ours(None)}
    without = {"SpQR 1 %, no leave-one-out": _ours(0.01, loo=False)}
    by_share = {f"SpQR {share:.1%}": cfg for share, cfg in shares.items()}
    methods = {**baselines, **ours, **wide, **without, **by_share}
    once = {cfg: errors(some, cfg, seen, unseen) for cfg in dict.fromkeys(methods.values())}
    bits = {name: _bits(some, cfg, seen) for name, cfg in methods.items()}
    rows = []
    for tokens, field in (("calibration tokens", "seen"), ("held-out tokens", "unseen")):
        mean = {name: float(np.mean(getattr(once[cfg], field))) for name, cfg in methods.items()}
        best, mine = min(baselines, key=mean.__getitem__), min(ours, key=mean.__getitem__)
        chain = ["GPTQ group 64, minmax", "SpQR without outliers", *by_share]
        rows.append(
            asserted(
                f"output error, SpQR 1 % at most 0.9 of GPTQ group 16 ({tokens})",
                baseline=mean[best],
                ours=mean[mine],
                limit=0.9,
                strict=False,
                bits=bits[mine],
                baseline_bits=bits[best],
                unit="relative",
                note=f"the best of each on these tokens: {best}; {mine}",
            )
        )
        rows += [
            asserted(
                f"output error, {better} under {worse} ({tokens})",
                baseline=mean[worse],
                ours=mean[better],
                bits=bits[better],
                baseline_bits=bits[worse],
                equal_bits=False,
                unit="relative",
                note="an order of one method's settings, each with more bits than the one before",
            )
            for worse, better in zip(chain, chain[1:], strict=False)
        ]
        rows += [
            printed(f"output error | {name} | {tokens}", ours=mean[name], bits=bits[name], why="value", unit="relative")
            for name in methods
        ]
    return rows


def perplexity(quick: bool) -> list[Row]:
    """Perplexity block by block, on two texts."""
    bed = lm.smollm2(2 if quick else None)
    count, windows, length = (2, 2, 64) if quick else (16, 8, 512)
    tokens = lm.calibration("wikipedia:train", count, length)
    texts = {name: lm.held_out(name, windows, length) for name in ("wikipedia:test", "topics")}
    arms = {
        "GPTQ group 16, hessian": GPTQ(bits=3, group=16, grid="hessian"),
        "SpQR 1 %, damp 0.01": _ours(0.01),
        "SpQR 1 %, damp 1": _ours(0.01, 1.0),
    }
    found, bits = {}, {}
    for name, cfg in arms.items():
        rules = {"blocks/attn/v/kernel": cfg, "**": None} if quick else cfg
        compressed = lm.blockwise(bed, rules, tokens)
        bits[name] = lm.bits_per_weight(compressed)
        found[name] = {text: lm.perplexity_of(bed, compressed, at) for text, at in texts.items()}
    base, main, damped = arms
    rows = [
        asserted(
            f"{GAP} (wikipedia:test)",
            baseline=found[base]["wikipedia:test"],
            ours=found[main]["wikipedia:test"],
            bits=bits[main],
            baseline_bits=bits[base],
            note=f"{windows} x {length}; {count} x {length} calibration tokens",
        ),
        printed(
            f"{GAP} (topics)",
            baseline=found[base]["topics"],
            ours=found[main]["topics"],
            bits=bits[main],
            baseline_bits=bits[base],
            why="the text changes with the Python version, so nothing is asserted on it",
        ),
    ]
    why = "the reference's recommended damping, made for much larger models: worse on the calibration objective"
    for text, at in texts.items():
        rows.append(printed(f"perplexity, {damped} ({text})", ours=found[damped][text], bits=bits[damped], why=why))
        plain = lm.perplexity_of(bed, bed.params, at)
        rows.append(printed(f"perplexity, float32 ({text})", ours=plain, bits=32.0, why="reference"))
    return rows


def paper(quick: bool) -> list[Row]:
    """The paper's own figures."""
    why = "LLaMA-7B and WikiText-2 in the paper; neither the model nor its 128 x 2048 calibration tokens fit here"
    return [
        not_comparable("WikiText-2 perplexity, LLaMA-7B, 4.63 bits", baseline=5.73, why=why),
        not_comparable("WikiText-2 perplexity, LLaMA-7B, 3.94 bits", baseline=5.87, why=why),
    ]


PARTS = {
    "output-error": Part(run=output_error, about="output error over 21 matrices, 3 bits", minutes=6),
    "perplexity": Part(run=perplexity, about="perplexity of three arms, 3 bits", minutes=7),
    "paper": Part(run=paper, about="the paper's figures", minutes=0),
}
