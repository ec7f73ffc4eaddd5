"""``python -m benchmarks.quality.row NAME [--quick]``: measures one row in a process of its own, prints it as JSON.

WikiText-2 protocol: calibration on 32 windows of 512 tokens spread over the validation file, perplexity on the first
30 windows of 1024 tokens of the test file, each by itself. KL against the original on the first 8 of them. Five
multiple-choice tasks, 100 questions each, no examples shown.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp

from benchmarks import language_model as lm
from benchmarks.claims.squeezellm import fisher_information
from benchmarks.one_process import named
from benchmarks.quality.methods import LIMITS, Method, aimed, methods
from compressjax.allocation import KnapsackDP, allocate, model_levels
from compressjax.calibration import Hessian, calibrate
from compressjax.checkpoint import open_model
from compressjax.evaluation.divergence import divergence
from compressjax.evaluation.loglik import LikelihoodEngine
from compressjax.evaluation.perplexity import perplexity
from compressjax.evaluation.tasks import read_multiple_choice
from compressjax.evaluation.zero_shot import multiple_choice
from compressjax.models import Llama, LlamaBlocks
from compressjax.ops import dense
from compressjax.quantization import GPTQ, quantize
from compressjax.sequential import quantize_blockwise

TASKS = ("arc_easy", "piqa", "copa", "openbook_qa", "winogrande")
"""JSON-lines files in the folder ``lm_eval`` of the shared data, in the layout of the Mosaic evaluation gauntlet."""


def measure(method: Method, quick: bool) -> dict:
    """Compresses and evaluates; ``quick`` takes two blocks and short windows, which only shows that it works."""
    count, length, windows, test_length, questions = (2, 64, 2, 64, 2) if quick else (32, 512, 30, 1024, 100)
    bed = lm.smollm2(2 if quick else None)
    tokens = lm.calibration("wikitext2:valid", count, length)
    wall, cpu = time.perf_counter(), time.process_time()
    params = jax.block_until_ready(compressed(bed, method, tokens, quick))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    bits = lm.bits_per_weight(params)
    # Unpacked once; a method that changes what its weights read runs leaf by leaf.
    run = params if method.inputs else dense(params)
    text = lm.held_out("wikitext2:test", windows, test_length)
    away = divergence(bed.logits, bed.params, run, text[:8])
    return {
        "name": method.name,
        "family": method.family,
        "column": method.column,
        "config": None if method.cfg is None else repr(method.cfg),
        "tuning": None if method.tuning is None else repr(method.tuning),
        "bits_per_weight": round(bits, 4),
        "within": method.column not in LIMITS or bits <= LIMITS[method.column],
        "perplexity": perplexity(bed.logits, run, text).perplexity,
        "kl": away.kl,
        "agreement": away.agreement,
        "tasks": tasks(bed, run, questions),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }


def compressed(bed: lm.TestBed, method: Method, tokens, quick: bool) -> dict:
    """The model by one method."""
    if method.cfg is None:
        return bed.params
    if method.fisher:
        few = tokens.reshape(-1, tokens.shape[1] // 2)[: 4 if quick else 32]
        return quantize(bed.params, method.cfg, stats=fisher_information(bed, few))
    blocks = LlamaBlocks(bed.cfg)
    choices = _choices(bed, method, tokens) if method.levels else None
    return quantize_blockwise(
        blocks, bed.params, jnp.asarray(tokens), method.cfg, tuning=method.tuning, choices=choices
    )[0]


def _choices(bed: lm.TestBed, method: Method, tokens) -> dict:
    """The level of every matrix by the least sum of layer errors, at the bits of the method's config everywhere."""
    model = Llama(bed.cfg)

    def hidden(params, ids):
        return model.apply({"params": params}, ids, method="hidden")[0]

    batches = [jnp.asarray(tokens[at : at + 2]) for at in range(0, len(tokens), 2)]
    stats = calibrate(hidden, bed.params, batches, Hessian(), paths="blocks/**")
    plain = [GPTQ(bits=bits, group=method.cfg.group, grid="hessian") for bits in method.levels]
    database = model_levels(bed.params, plain, stats=stats, paths="blocks/**").db
    budget = int(database.cost[:, method.levels.index(method.cfg.bits)].sum())
    state = allocate(database, budget, KnapsackDP()).state
    finals = [aimed(bits) for bits in method.levels]
    return {name: finals[level] for name, level in zip(database.names, state, strict=True)}


def tasks(bed: lm.TestBed, params: dict, questions: int) -> dict[str, float]:
    """Length-normalised accuracy by task, and the mean probability of the right answer as a measure less coarse."""
    folder = lm.shared_data() / "lm_eval"
    tokenizer = open_model(lm.MODEL).tokenizer
    if tokenizer is None:
        raise ValueError(f"{lm.MODEL} has no tokenizer")
    engine = LikelihoodEngine(
        logits_fn=bed.logits,
        params=params,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        context=bed.cfg.max_positions,
    )
    found = {}
    for name in TASKS:
        result = multiple_choice(engine, read_multiple_choice(folder / f"{name}.jsonl", limit=questions))
        found[name] = result.accuracy_norm
        found[f"{name} probability"] = round(result.gold_probability, 4)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measures one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.row")
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    print(json.dumps(measure(named(methods(), args.name), args.quick)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
