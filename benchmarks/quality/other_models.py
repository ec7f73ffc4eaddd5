"""``python -m benchmarks.quality.other_models [MODEL ...]``: the same methods on networks that model no language.

A sentence encoder (all-MiniLM-L6-v2) keeps its sentence vectors or not: one minus the mean cosine to the original's
over 256 sentences of Wikipedia, calibrated on 256 others. An image classifier (EfficientNet-Lite0) names the same class
as before or not: top-1 agreement on 105 crops of photographs, calibrated on 45 crops of others. Every matrix is
compressed by itself on what the uncompressed network reads, in one pass; nothing is trained. Writes
``results/quality_others.json``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import image_classifier as images
from benchmarks import sentence_encoder as sentences
from benchmarks.provenance import RESULTS, provenance, read_result, write_result
from benchmarks.quality.methods import NUPES_STEPS
from compressjax.calibration import calibrate
from compressjax.calibration.joint import HessianAndMoments
from compressjax.factorization import BitStack
from compressjax.ops import dense
from compressjax.quantization import GPTQ, NUPES, RTN, DecoupleQ, SpQR, SqueezeLLM, quantize

_SETTING = (
    "Sentence encoder all-MiniLM-L6-v2: 1 - cosine to the original vectors of 256 sentences. Image classifier "
    "EfficientNet-Lite0: top-1 agreement with the original on 105 crops. Kernels of the blocks, or all pointwise "
    "kernels and the classifier; one pass, nothing trained"
)


class Network(NamedTuple):
    """A network that methods are tried on.

    Attributes:
      params: the original.
      rule: which kernels are compressed.
      apply_fn, batches: what ``calibrate`` runs.
      score: ``params -> how good``, by the name of the measure.
      bits: ``params -> true bits per weight`` over the compressed kernels.
      columns: code widths that are tried.
    """

    params: Any
    rule: str
    apply_fn: Callable[[Any, Any], Any]
    batches: list
    score: Callable[[Any], dict[str, float]]
    bits: Callable[[Any], float]
    columns: tuple[int, ...]


def encoder(quick: bool) -> Network:
    """The sentence encoder."""
    count = 8 if quick else 256
    train, test = (sentences.sentences(f"wikipedia:{part}", count) for part in ("train", "test"))
    params = sentences.bed().params
    reference = sentences.vectors(params, test)
    return Network(
        params=params,
        rule="blocks/**",
        apply_fn=sentences.apply_fn(),
        batches=[tuple(part[at : at + 8] for part in train) for at in range(0, len(train[0]), 8)],
        score=lambda small: {"distance": sentences.distance(reference, sentences.vectors(dense(small), test))},
        bits=sentences.bits_per_weight,
        columns=(4, 3, 2),
    )


def classifier(quick: bool) -> Network:
    """The image classifier."""
    cfg, params = images.bed()
    train, test = images.crops(2 if quick else 45, "calibration"), images.crops(2 if quick else 105)
    reference = images.logits_of(params, test)

    def score(small):
        same, divergence = images.agreement(reference, images.logits_of(small, test))
        return {"agreement": same, "kl": divergence}

    return Network(
        params=params,
        rule="**/kernel",
        apply_fn=images.forward(cfg),
        batches=images.batches(train),
        score=score,
        bits=images.bits_per_weight,
        columns=(4,),
    )


NETWORKS: dict[str, Callable[[bool], Network]] = {"encoder": encoder, "classifier": classifier}


def methods(bits: int, model: str) -> dict[str, Any]:
    """Configs by family, at about equal true bits on inputs of 384 and more.

    decoupleQ's groups must divide the inputs, and 192 does not divide all of the classifier's: there it has one group.
    """
    group = -1 if model == "classifier" else 192 if bits == 4 else 96
    found = {
        "RTN": RTN(bits=bits, group=64, grid="mse"),
        "SqueezeLLM": SqueezeLLM(bits=bits, outlier_share=0.0, sensitive_share=0.0, fisher="act"),
        "SpQR": SpQR(bits=bits, group=64, outlier_share=0.003),
        "decoupleQ": DecoupleQ(bits=bits, group=group, polish=4, tuning=None),
        "GPTQ": GPTQ(bits=bits, group=64, grid="hessian"),
        "GPTQ k-means": GPTQ(bits=bits, group=-1, levels="kmeans"),
        "NUPES": NUPES(bits=bits, group=64, steps=NUPES_STEPS),
    }
    if bits == 2:
        found["BitStack"] = BitStack(levels=2, rank=3)
    return found


def measure(name: str, quick: bool, done: Callable[[dict], None], families: list[str] | None = None) -> None:
    """Hands one row per method and width to ``done`` as soon as it is there."""
    network = NETWORKS[name](quick)
    everything = HessianAndMoments(samples=64)
    stats = calibrate(network.apply_fn, network.params, network.batches, everything, paths=network.rule)
    done({"model": name, "family": "float32", "column": 32, "bits_per_weight": 32.0, **network.score(network.params)})
    for column in network.columns[:1] if quick else network.columns:
        for family, cfg in methods(column, name).items():
            if families is not None and family not in families:
                continue
            cpu = time.process_time()
            small = jax.block_until_ready(quantize(network.params, {network.rule: cfg}, stats=stats))
            cpu = time.process_time() - cpu
            done(
                {
                    "model": name,
                    "family": family,
                    "column": column,
                    "config": repr(cfg),
                    "bits_per_weight": round(network.bits(small), 4),
                    **network.score(small),
                    "cpu_seconds": round(cpu, 1),
                }
            )
            jax.clear_caches()  # a classifier has some forty shapes, and every method compiles for each


def main(arguments: list[str] | None = None) -> int:
    """Measures, and writes after every row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.other_models")
    parser.add_argument("model", nargs="*", help=f"of {', '.join(NETWORKS)}; all when none is named")
    parser.add_argument("--family", action="append", help="this method only; may be given again")
    parser.add_argument("--quick", action="store_true", help="few sentences and crops; shows that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.model if name not in NETWORKS]
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    if args.quick and args.results == RESULTS:
        parser.error("--quick gives no evidence: name another folder with --results")
    path = args.results / "quality_others.json"
    known = (read_result(path) or {"rows": []})["rows"]  # rows that are not measured now are kept
    rows = {(row["model"], row["family"], row["column"]): row for row in known}

    def done(row):
        rows[row["model"], row["family"], row["column"]] = row
        write_result(
            path,
            {**provenance("python -m benchmarks.quality.other_models"), "setting": _SETTING, "rows": [*rows.values()]},
        )
        print({key: value for key, value in row.items() if key != "config"}, flush=True)

    for name in args.model or NETWORKS:
        measure(name, args.quick, done, args.family)
    return 0


if __name__ == "__main__":
    sys.exit(main())
