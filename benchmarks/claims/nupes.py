"""NUPES: what a power grid gains over a uniform one, and what learning codes and exponent adds.

Papers: Yvinec et al., 2023, arXiv 2301.09858 (PowerQuant) and arXiv 2308.05600 (NUPES). Their figures are of ImageNet
networks and 7B language models with quantised activations; neither fits here.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from benchmarks import sentence_encoder as bench
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.matrix_errors import Errors, errors, hessians, pick_layers
from compressjax.calibration import Hessian, calibrate
from compressjax.checkpoint import load_minilm
from compressjax.ops import dense, nbits, size
from compressjax.quantization import GPTQ, NUPES, RTN, PowerQuant, quantize
from compressjax.select import is_matrix, weights

METHOD = "nupes"
CLAIM = (
    "a power grid halves the weight error of a uniform one at 4 bits per tensor, keeps a lead when both search their "
    "range, and learned codes that may travel leave less output error than codes that may only go up or down"
)
SETTING = (
    "MiniLM-L6 (float32 weights) and SmolLM2-135M-Instruct as shipped; scales in float16 and exponents in float32 "
    "counted; calibration on 10 x 512 tokens of Wikipedia"
)
_LAYERS = (1, 15, 28)


def grid(quick: bool) -> list[Row]:
    """Relative weight error by grid, data-free."""
    encoder, decoder = load_minilm().params, lm.smollm2(2 if quick else None).params
    rows = []
    for name, params in (("MiniLM", encoder), ("SmolLM2", decoder)):
        kernels = {p: w for p, w in weights(params).items() if is_matrix(p, w)}
        if quick:
            kernels = dict(list(kernels.items())[:1])

        def error(cfg, kernels=kernels):
            small = {p: quantize({"kernel": w}, cfg)["kernel"] for p, w in kernels.items()}
            each = [_relative(w, small[p]) for p, w in kernels.items()]
            bits = sum(nbits(w) for w in small.values()) / sum(size(w) for w in small.values())
            return float(np.mean(np.concatenate(each))), bits

        def compare(title, worse, better, limit, error=error, name=name):
            (baseline, baseline_bits), (ours, bits) = error(worse), error(better)
            return asserted(
                f"weight error, {name}, {title}",
                baseline=baseline,
                ours=ours,
                limit=limit,
                strict=False,
                bits=bits,
                baseline_bits=baseline_bits,
                equal_bits=False,
                unit="relative",
                note="the exponent costs 32 bits a matrix, under a thousandth of a bit per weight",
            )

        tensor = PowerQuant(bits=4, granularity="tensor", clip="max")
        uniform = functools.partial(dataclasses.replace, exponent=1.0)
        rows.append(compare("4 bits per tensor, largest weight as range", uniform(tensor), tensor, 0.5))
        channel = PowerQuant(bits=4)
        rows.append(compare("4 bits per output, range searched", uniform(channel), channel, 0.95))
        for bits in (3, 4):
            cfg = PowerQuant(bits=bits)
            ours, used = error(cfg)
            for other, baseline in (
                ("uniform, symmetric", uniform(cfg)),
                ("uniform", RTN(bits=bits, group=-1, grid="mse")),
            ):
                value, other_bits = error(baseline)
                rows.append(
                    printed(
                        f"weight error, {name}, {bits} bits per output, against {other} with the range searched",
                        baseline=value,
                        ours=ours,
                        bits=used,
                        baseline_bits=other_bits,
                        unit="relative",
                        why="the power grid has 2^b - 1 levels and no zero point; at 3 bits that is one level in eight",
                    )
                )
    return rows


def _relative(w, leaf):
    w = w.reshape(-1, *w.shape[-2:])
    miss = w - dense(leaf).reshape(w.shape)
    return np.asarray(jnp.sum(miss**2, axis=(1, 2)) / jnp.sum(w**2, axis=(1, 2)))


_FREE = NUPES(bits=3)
_ARMS = {
    "uniform, nearest": PowerQuant(bits=3, exponent=1.0),
    "power, nearest": PowerQuant(bits=3),
    "uniform, codes up or down": NUPES(bits=3, exponent=1.0, exponent_lr=0.0, travel="adjacent"),
    "power, codes up or down": NUPES(bits=3, exponent_lr=0.0, travel="adjacent"),
    "power, codes travel": NUPES(bits=3, exponent_lr=0.0),
    "power, codes travel, exponent learned": _FREE,
}


def codes(quick: bool) -> list[Row]:
    """Output error of 3 blocks of SmolLM2 by how the codes are found."""
    bed = lm.smollm2(2 if quick else None)
    count, length = (2, 64) if quick else (10, 512)
    layers = [layer for layer in _LAYERS if layer < bed.cfg.num_layers]
    seen = hessians(bed, lm.calibration("wikipedia:train", count, length))
    unseen = hessians(bed, lm.held_out("wikipedia:test", count, length))
    some = lm.chosen_blocks(bed, layers), pick_layers(seen, layers), pick_layers(unseen, layers)
    steps = {"steps": 5} if quick else {}
    found = {
        name: errors(some[0], dataclasses.replace(cfg, **steps) if isinstance(cfg, NUPES) else cfg, *some[1:])
        for name, cfg in _ARMS.items()
    }
    gptq = errors(some[0], GPTQ(bits=3, group=-1, grid="hessian"), *some[1:])
    return _code_rows(found, gptq)


def _code_rows(found: dict[str, Errors], gptq: Errors) -> list[Row]:
    rows = []
    for tokens, field in (("calibration tokens", "seen"), ("held-out tokens", "unseen")):
        mean = {name: float(np.mean(getattr(pair, field))) for name, pair in found.items()}
        for better, worse, limit in (
            ("power, nearest", "uniform, nearest", 1.0),
            ("power, codes up or down", "power, nearest", 1.0),
            ("power, codes travel", "power, codes up or down", 0.95),
        ):
            rows.append(
                asserted(
                    f"output error, {better} under {worse} ({tokens})",
                    baseline=mean[worse],
                    ours=mean[better],
                    limit=limit,
                    unit="relative",
                )
            )
        rows.append(
            printed(
                f"output error, exponent learned beside codes ({tokens})",
                baseline=mean["power, codes travel"],
                ours=mean["power, codes travel, exponent learned"],
                unit="relative",
                why="the searched exponent is near its best already, so what learning adds is small",
            )
        )
        rows.append(
            printed(
                f"output error, against GPTQ with one uniform grid per output ({tokens})",
                baseline=float(np.mean(getattr(gptq, field))),
                ours=mean["power, codes travel, exponent learned"],
                unit="relative",
                why="not the paper's baseline; GPTQ compensates in closed form and takes a tenth of the time",
            )
        )
    return rows


def sentences(quick: bool) -> list[Row]:
    """Cosine of MiniLM's sentence embeddings to the float ones at 3 bits per output."""
    params = bench.bed().params
    train, test = (bench.sentences(f"wikipedia:{part}", 8 if quick else 256) for part in ("train", "test"))
    batches = [tuple(a[at : at + 8] for a in train) for at in range(0, len(train[0]), 8)]
    stats = calibrate(bench.apply_fn(), params, batches, Hessian(), paths="blocks/**")
    reference = bench.vectors(params, test)
    steps = {"steps": 5} if quick else {}
    distance, bits = {}, {}
    for name, cfg in _ARMS.items():
        arm = dataclasses.replace(cfg, **steps) if isinstance(cfg, NUPES) else cfg
        small = quantize(params, {"blocks/**": arm}, stats=stats)
        distance[name] = bench.distance(reference, bench.vectors(dense(small), test))
        bits[name] = bench.bits_per_weight(small)
    rows = [
        asserted(
            f"sentence embeddings, 1 - cosine, {better} under {worse}",
            baseline=distance[worse],
            ours=distance[better],
            bits=bits[better],
            baseline_bits=bits[worse],
        )
        for better, worse in (
            ("power, nearest", "uniform, nearest"),
            ("power, codes travel", "power, nearest"),
        )
    ]
    rows += [
        printed(f"sentence embeddings, 1 - cosine, {name}", ours=distance[name], bits=bits[name], why="value")
        for name in _ARMS
    ]
    paper = "needs ImageNet, which is not to be had here"
    return [*rows, not_comparable("ResNet-50 W4A4 top-1, data-free, about 70 in the paper", why=paper)]


PARTS = {
    "grid": Part(run=grid, about="weight error of power and uniform grids, data-free", minutes=5),
    "codes": Part(run=codes, about="output error by how codes are found, 21 matrices", minutes=4),
    "sentences": Part(run=sentences, about="MiniLM sentence embeddings at 3 bits", minutes=4),
}
