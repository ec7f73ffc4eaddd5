"""decoupleQ on a real language model at 2 bits: closed-form scales and zeros, and the block stage, against GPTQ.

Paper: Guo et al., 2024, arXiv 2404.12759. Its README gives 9.49 on WikiText-2 for LLaMA-7B at 2 bits per weight and one
scale and zero per output (5.68 in 16 bits), where GPTQ diverges; those models do not fit here. GPTQ is compared with at
equal total bits: a scale and a real zero cost 32 bits a group, its own scale and 2-bit zero 18.
"""

import functools
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
    "at 2 bits decoupleQ leaves less output error and less perplexity than GPTQ on min-max or mse grids at equal total "
    "bits, at most 0.7 of the log-perplexity gap of the former; tuning its scales, zeros and norms block by block "
    "lowers perplexity further, below GPTQ with the same tuning"
)
SETTING = (
    "SmolLM2-135M-Instruct as shipped, 210 matrices of 30 blocks, embedding left in float; scales, zeros and tables in "
    "float16, all bits counted; GPTQ with act order and static groups; calibration on 32 x 512 tokens where nothing "
    "else is said"
)
GAP = "2 bits: log-perplexity gap against GPTQ on min-max grids"

TUNING = BlockTuning(epochs=4)
_LAYERS = (1, 15, 28)
_ORIGINAL = "decoupleQ as published"
_POLISHED = "decoupleQ with coordinate descent"
_OURS = {
    _ORIGINAL: DecoupleQ(bits=2, group=64, tuning=None),
    _POLISHED: DecoupleQ(bits=2, group=64, polish=4, tuning=None),
}
_SAME_BITS = 36  # inputs a group of GPTQ at which scale and zero cost 18/36 bits, decoupleQ's 32/64


def _gptq(grid: Literal["minmax", "mse", "hessian"], group: int = _SAME_BITS) -> GPTQ:
    return GPTQ(bits=2, group=group, grid=grid)


_BASELINES = {"GPTQ minmax": _gptq("minmax"), "GPTQ mse": _gptq("mse"), "GPTQ hessian": _gptq("hessian")}
_HESSIAN_NOTE = (
    "GPTQ's hessian grids are this library's own and stronger than those the paper compares with; coordinate descent "
    "after the sweeps is in neither paper"
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
    by_output = {
        "decoupleQ, one group": DecoupleQ(bits=2, group=-1, tuning=None),
        "GPTQ mse, groups of 288": _gptq("mse", 288),
    }
    methods = _arms(quick)
    if not quick:
        methods |= by_output | {
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
    scored = {name: _Scored(bed, _compressed(bed, cfg, tokens), text) for name, cfg in _arms(quick).items()}
    on = f"wikipedia:test, {windows} x {length}"
    rows = [printed(f"perplexity, float32 ({on})", ours=plain, why="reference", bits=32.0)]
    for worse, better in _pairs(
        scored,
        ("RTN", "GPTQ minmax"),
        ("GPTQ minmax", "GPTQ mse"),
        ("GPTQ mse", _ORIGINAL),
        ("GPTQ hessian", _POLISHED),
    ):
        rows.append(asserted(f"perplexity, {better} under {worse} ({on})", **scored[better].against(scored[worse])))
    share = math.log(scored[_ORIGINAL].value / plain) / math.log(scored["GPTQ minmax"].value / plain)
    rows.append(asserted(GAP, baseline=1.0, ours=share, limit=0.7, strict=False, unit="of the gap"))
    if "GPTQ hessian" in scored:
        name = f"perplexity, {_ORIGINAL} against GPTQ hessian ({on})"
        rows.append(printed(name, **scored[_ORIGINAL].against(scored["GPTQ hessian"]), why=_HESSIAN_NOTE))
    return rows


def tuned(quick: bool) -> list[Row]:
    """2 bits with the block stage, the same for GPTQ."""
    bed = lm.smollm2(2 if quick else None)
    count, windows, length = (2, 2, 64) if quick else (32, 8, 512)
    tokens, text = lm.calibration("wikipedia:train", count, length), lm.held_out("wikipedia:test", windows, length)
    methods = _OURS[_POLISHED], _gptq("hessian")
    ours, other = ({t: _Scored(bed, _compressed(bed, cfg, tokens, t), text) for t in (None, TUNING)} for cfg in methods)
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


def _aimed(bits: int, group: int) -> DecoupleQ:
    return DecoupleQ(bits=bits, group=group, polish=4, alpha=0.5, tuning=None)


def _gptq_aimed(bits: int, group: int) -> GPTQ:
    return GPTQ(bits=bits, group=group, grid="hessian", asymmetric="target", alpha=0.5)


# Both methods aim at the uncompressed network's outputs, in the closed form and in the tuning. Chosen on the first four
# blocks: relative error of their output on held-out text .0509 without, .0419 with tuning on the block's own inputs,
# .0327 with both.
_ORIGINAL_TARGET = BlockTuning(epochs=4, target="original")
_WIKITEXT2 = {  # bits -> decoupleQ, and GPTQ at no fewer bits
    3: (_aimed(3, 96), _gptq_aimed(3, 57)),
    2: (_aimed(2, 96), _gptq_aimed(2, 54)),
    1: (_aimed(1, 64), DecoupleQ(bits=1, group=64, max_iters=1, alpha=0.5, tuning=None)),
}


def wikitext2(bits: int, quick: bool) -> list[Row]:
    """The WikiText-2 protocol at one bit width, with the block stage."""
    if lm.wikitext2_file("valid") is None or lm.wikitext2_file("test") is None:
        why = "WikiText-2 is not here: set COMPRESSJAX_SHARED to a folder with wikitext2/wiki.{valid,test}.raw"
        return [not_comparable(f"WikiText-2 perplexity, {bits} bits", why=why)]
    bed = lm.smollm2(2 if quick else None)
    tokens = lm.calibration("wikitext2:valid", *((2, 64) if quick else (32, 512)))
    text = lm.held_out("wikitext2:test", *((2, 64) if quick else (30, 1024)))
    cfg, baseline = _WIKITEXT2[bits]
    ours, other = (_Scored(bed, _compressed(bed, m, tokens, _ORIGINAL_TARGET), text) for m in (cfg, baseline))
    grids = "min-max" if bits == 1 else "hessian"
    note = f"against GPTQ on {grids} grids with the same target and tuning, at no fewer bits"
    return [asserted(f"WikiText-2 perplexity, {bits} bits, tuned", **ours.against(other), note=note)]


PARTS = {
    "errors": Part(run=output_error, about="output error at 2 bits, 21 matrices", minutes=4),
    "perplexity": Part(run=perplexity, about="2 bits without the block stage, equal total bits", minutes=12),
    "tuned": Part(run=tuned, about="2 bits with the block stage, the same for GPTQ", minutes=30),
    **{
        f"wikitext2-{bits}": Part(
            run=functools.partial(wikitext2, bits),
            about=f"WikiText-2 protocol, {bits} bits, tuned",
            minutes=25,
        )
        for bits in (3, 2, 1)
    },
}
