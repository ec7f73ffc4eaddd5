"""decoupleQ on a real language model at 2 bits: closed-form scales and zeros, and the block stage, against GPTQ.

Paper: Guo et al., 2024, arXiv 2404.12759. Its README gives 9.49 on WikiText-2 for LLaMA-7B at 2 bits per weight and one
scale and zero per output (5.68 in 16 bits), where GPTQ diverges; those models do not fit here. GPTQ is compared with at
equal total bits: a scale and a real zero cost 32 bits a group, its own scale and 2-bit zero 18.
"""

import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.matrix_errors import errors, hessians, pick_layers
from compressjax.models import LlamaBlocks
from compressjax.quantization import GPTQ, RTN, DecoupleQ
from compressjax.sequential import quantize_blockwise
from compressjax.training import BlockTuning

METHOD = "decoupleq"
CLAIM = (
    "at 2 bits decoupleQ leaves less output error than GPTQ on min-max, mse or hessian grids at equal total bits, and "
    "less perplexity than GPTQ on min-max grids, at most 0.7 of its log-perplexity gap, and, with one scale and zero "
    "per output, than GPTQ on mse grids; tuning scales, zeros and norms block by block towards the original network "
    "lowers perplexity further, below GPTQ with the same target and tuning"
)
SETTING = (
    "SmolLM2-135M-Instruct as shipped, 210 matrices of 30 blocks, embedding left in float; scales, zeros and tables in "
    "float16, all bits counted; GPTQ with act order and static groups; calibration on 32 x 512 tokens where nothing "
    "else is said"
)
GAP = "2 bits: log-perplexity gap against GPTQ on min-max grids"

_LAYERS = (1, 15, 28)
_ORIGINAL = "decoupleQ as published"
_POLISHED = "decoupleQ with coordinate descent"
_OURS = {
    _ORIGINAL: DecoupleQ(bits=2, group=64, tuning=None),
    _POLISHED: DecoupleQ(bits=2, group=64, polish=4, tuning=None),
}
# Both methods aim at the uncompressed network's outputs, in the closed form and in the tuning. Chosen on the first four
# blocks: relative error of their output on held-out text .0509 without, .0419 with tuning on the block's own inputs,
# .0327 with both.
TUNING = BlockTuning(epochs=4, target="original")
_AIMED = (
    DecoupleQ(bits=2, group=96, polish=4, alpha=0.5, tuning=None),
    GPTQ(bits=2, group=54, grid="hessian", asymmetric="target", alpha=0.5),
)
_SAME_BITS = 36  # inputs a group of GPTQ at which scale and zero cost 18/36 bits, decoupleQ's 32/64


def _gptq(grid: Literal["minmax", "mse", "hessian"], group: int = _SAME_BITS) -> GPTQ:
    return GPTQ(bits=2, group=group, grid=grid)


_BASELINES = {"GPTQ minmax": _gptq("minmax"), "GPTQ mse": _gptq("mse"), "GPTQ hessian": _gptq("hessian")}
_BY_OUTPUT = {
    "decoupleQ, one group": DecoupleQ(bits=2, group=-1, tuning=None),
    "GPTQ mse, groups of 288": _gptq("mse", 288),
}
_NOT_HERE = (
    "does not hold here: less error in every matrix's output (part errors) is not less perplexity of the whole where "
    "each block is calibrated behind the ones already rounded; the paper's lead over GPTQ is at one group per output"
)

_PUBLISHED = (
    not_comparable(
        "LLaMA-7B, 2 bits, one group per output: WikiText-2 perplexity",
        baseline=9.49,
        why="the model does not fit here; fp16 has 5.68",
    ),
    not_comparable(
        "ResNet-18, 2 bits: ImageNet top-1", baseline=64.134, unit="%", why="needs ImageNet; float has 69.76"
    ),
)


def _arms(quick: bool) -> dict[str, Any]:
    """What is compared; a quick run compiles the published method and its nearest baselines only."""
    if quick:
        return {name: _BASELINES[name] for name in ("GPTQ minmax", "GPTQ mse")} | {_ORIGINAL: _OURS[_ORIGINAL]}
    return {"RTN": RTN(bits=2, group=_SAME_BITS), **_BASELINES, **_OURS}


def _pairs(methods: dict[str, Any], *pairs: tuple[str, str]) -> list[tuple[str, str]]:
    """The pairs (worse, better) of which both are measured."""
    return [pair for pair in pairs if pair[0] in methods and pair[1] in methods]


def output_error(quick: bool) -> list[Row]:
    """Relative output error over three layers, every matrix by itself, on calibration and on held-out tokens."""
    bed = lm.smollm2(2 if quick else None)
    count, length = (2, 64) if quick else (10, 512)
    layers = [layer for layer in _LAYERS if layer < bed.cfg.num_layers]
    seen = pick_layers(hessians(bed, lm.calibration("wikipedia:train", count, length)), layers)
    unseen = pick_layers(hessians(bed, lm.held_out("wikipedia:test", count, length)), layers)
    some = lm.chosen_blocks(bed, layers)
    methods = _arms(quick)
    if not quick:
        methods |= _BY_OUTPUT | {
            f"decoupleQ, {n} iterations": DecoupleQ(bits=2, max_iters=n, tuning=None) for n in (1, 2)
        }
    found = {name: errors(some, cfg, seen, unseen) for name, cfg in methods.items()}
    rows = []
    for tokens, field in (("calibration tokens", "seen"), ("held-out tokens", "unseen")):
        mean = {name: float(np.mean(getattr(pair, field))) for name, pair in found.items()}
        for worse, better in _pairs(
            methods,
            ("RTN", "GPTQ minmax"),
            ("GPTQ minmax", _ORIGINAL),
            ("GPTQ mse", _ORIGINAL),
            ("GPTQ hessian", _ORIGINAL),
            (_ORIGINAL, _POLISHED),
            ("GPTQ mse, groups of 288", "decoupleQ, one group"),
        ):
            name = f"output error, {better} under {worse} ({tokens})"
            rows.append(asserted(name, baseline=mean[worse], ours=mean[better], unit="relative"))
        rows += [
            printed(f"output error | {name} | {tokens}", ours=value, baseline=mean["GPTQ minmax"], why="value")
            for name, value in mean.items()
        ]
    return [*rows, *_PUBLISHED]


class _Scored:
    """A compressed model's perplexity and its bits, as keyword arguments of rows."""

    def __init__(self, bed: lm.TestBed, params: dict, text: np.ndarray):
        self.value = lm.perplexity_of(bed, params, text)
        self.bits = lm.bits_per_weight(params)

    def against(self, other: "_Scored") -> dict[str, Any]:
        """The fields of a row in which this is ours and ``other`` the baseline."""
        return {"ours": self.value, "bits": self.bits, "baseline": other.value, "baseline_bits": other.bits}


def _compressed(bed: lm.TestBed, cfg: Any, tokens: np.ndarray, tuning: BlockTuning | None = None) -> dict:
    return quantize_blockwise(LlamaBlocks(bed.cfg), bed.params, jnp.asarray(tokens), cfg, tuning=tuning)[0]


def perplexity(quick: bool) -> list[Row]:
    """2 bits without the block stage: decoupleQ against GPTQ on three kinds of grids, at equal total bits."""
    bed = lm.smollm2(2 if quick else None)
    count, windows, length = (2, 2, 64) if quick else (32, 8, 512)
    tokens, text = lm.calibration("wikipedia:train", count, length), lm.held_out("wikipedia:test", windows, length)
    plain = lm.perplexity_of(bed, bed.params, text)
    arms = _arms(quick) | ({} if quick else _BY_OUTPUT)
    scored = {name: _Scored(bed, _compressed(bed, cfg, tokens), text) for name, cfg in arms.items()}
    on = f"wikipedia:test, {windows} x {length}"
    rows = [printed(f"perplexity, float32 ({on})", ours=plain, why="reference", bits=32.0)]
    for worse, better in _pairs(
        scored,
        ("RTN", "GPTQ minmax"),
        ("GPTQ minmax", "GPTQ mse"),
        ("GPTQ minmax", _ORIGINAL),
        (_ORIGINAL, _POLISHED),
        ("GPTQ mse, groups of 288", "decoupleQ, one group"),
    ):
        rows.append(asserted(f"perplexity, {better} under {worse} ({on})", **scored[better].against(scored[worse])))
    share = math.log(scored[_ORIGINAL].value / plain) / math.log(scored["GPTQ minmax"].value / plain)
    rows.append(asserted(GAP, baseline=1.0, ours=share, limit=0.7, strict=False, unit="of the gap"))
    for other, ours in _pairs(
        scored, ("GPTQ mse", _ORIGINAL), ("GPTQ hessian", _ORIGINAL), ("GPTQ hessian", _POLISHED)
    ):
        row = scored[ours].against(scored[other])
        rows.append(printed(f"perplexity, {ours} against {other} ({on})", **row, why=_NOT_HERE))
    return rows


def tuned(quick: bool) -> list[Row]:
    """2 bits, aimed at the original network, without and with the block stage; the same for GPTQ."""
    bed = lm.smollm2(2 if quick else None)
    count, windows, length = (2, 2, 64) if quick else (32, 8, 512)
    tokens, text = lm.calibration("wikipedia:train", count, length), lm.held_out("wikipedia:test", windows, length)
    ours, other = ({t: _Scored(bed, _compressed(bed, cfg, tokens, t), text) for t in (None, TUNING)} for cfg in _AIMED)
    on = f"wikipedia:test, {windows} x {length}"
    return [
        asserted(f"perplexity, decoupleQ, tuned under untuned ({on})", **ours[TUNING].against(ours[None])),
        asserted(f"perplexity, decoupleQ under GPTQ hessian, both tuned ({on})", **ours[TUNING].against(other[TUNING])),
        printed(
            f"perplexity, GPTQ hessian, tuned under untuned ({on})",
            **other[TUNING].against(other[None]),
            why="what the block stage alone does",
        ),
    ]


PARTS = {
    "errors": Part(run=output_error, about="output error at 2 bits, 21 matrices", minutes=4),
    "perplexity": Part(run=perplexity, about="2 bits without the block stage, equal total bits", minutes=12),
    "tuned": Part(
        run=tuned,
        about="2 bits towards the original network, with and without tuning",
        minutes=30,
    ),
}
