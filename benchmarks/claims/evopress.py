"""EvoPress on real language models: a choice judged by the whole network against choices by layer scores.

Paper: Sieberling et al., 2024, arXiv 2410.14649: errors of single layers do not add up in language models, and a search
that judges whole choices beats scores (ShortGPT) and dynamic programming over layer errors (SPDY) at equal budgets.
There, 7B models and some hundred generations on a GPU; here a 135M model and 24, and a model over bytes and more.
"""

import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from benchmarks.allocation.shared_out import byte_decoder, byte_search, byte_texts, share_out
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from compressjax.allocation import (
    EvoPress,
    TextFitness,
    allocate,
    depth_database,
    mute_parts,
    owl_sparsity,
    part_cosines,
    random_drops,
)
from compressjax.quantization import GPTQ
from compressjax.sparsity import SparseGPT

METHOD = "evopress"
CLAIM = (
    "at an equal number of dropped attention and feed-forward parts EvoPress leaves a lower held-out perplexity than "
    "dropping by cosine or by the divergence of leaving one out; at equal exact bits its held-out divergence is below "
    "that of dynamic programming over layer errors and of equal bits, though the sum of its layer errors is not; so "
    "too with half of the weights dropped, OWL included"
)
SETTING = (
    "depth: SmolLM2-135M-Instruct, 7 of 30 attention and 7 of 30 feed-forward parts dropped, searched on 24 x 256 "
    "tokens of wikipedia:train, perplexity on wikipedia:test, 8 x 512; bits: a Llama over bytes (6 layers of width "
    "128, trained here on Python's manual) and SmolLM2, GPTQ at 2, 3 and 4 bits in groups of 64, budget that of 3 bits "
    "everywhere; sparsity: the byte model by SparseGPT, half of the weights dropped in all, steps of 1024 weights"
)
DEPTH = "perplexity, 7 + 7 parts dropped, EvoPress under the best score"
_DROPPED = 7


def depth(quick: bool) -> list[Row]:
    """Perplexity without some of the parts, by how they were chosen."""
    bed = lm.smollm2(4 if quick else None)
    windows, dropped = (4, 1) if quick else (24, _DROPPED)
    tokens = lm.calibration("wikipedia:train", windows, 256)
    text = lm.held_out("wikipedia:test", *((2, 64) if quick else (8, 512)))
    db = depth_database(bed.params)
    parts = len(db.names) // 2
    fitness = TextFitness(
        logits_fn=bed.logits, params=bed.params, assemble=mute_parts, data=bed.params, tokens=tokens, topk=None
    )
    rng = np.random.default_rng(0)
    one = fitness.draw(256 if quick else 1024, rng)
    cosines = part_cosines(bed.cfg, bed.params, jnp.asarray(tokens))
    alone = np.asarray([fitness(_without(len(db.names), [i]), one) for i in range(len(db.names))])
    # Whole blocks by cosine, as ShortGPT drops them, and parts of each kind by either score.
    ranked = {
        "cosine of blocks": np.tile(_first(-(cosines[:parts] + cosines[parts:]), dropped), 2),
        "cosine of parts": np.concatenate([_first(-own, dropped) for own in np.split(cosines, 2)]),
        "divergence of leaving one out": np.concatenate([_first(own, dropped) for own in np.split(alone, 2)]),
    }
    kinds = np.repeat([0, parts], dropped)
    states = {name: _without(len(db.names), list(order + kinds)) for name, order in ranked.items()}
    drawn = [random_drops(db, dropped, rng) for _ in range(4 if quick else 64)]
    scores = [fitness(state, one) for state in drawn]
    states["best of 64 random choices"] = start = drawn[int(np.argmin(scores))]
    search = EvoPress(generations=2 if quick else 24, offspring=4 if quick else 8, survivors=(2, 1), tokens=(256, 1024))
    states["EvoPress"] = allocate(db, db.total_cost(start), search, fitness, start=start).state
    found = {
        name: lm.perplexity_of(bed, mute_parts(bed.params, jnp.asarray(state)), text) for name, state in states.items()
    }
    plain = lm.perplexity_of(bed, bed.params, text)
    rows = [printed("perplexity, nothing dropped", ours=plain, why="reference")]
    best = min((name for name in found if name != "EvoPress"), key=lambda name: found[name])
    rows.append(asserted(DEPTH, baseline=found[best], ours=found["EvoPress"], note=f"best score: {best}"))
    for name in ranked:
        rows.append(asserted(f"perplexity, EvoPress under {name}", baseline=found[name], ours=found["EvoPress"]))
    name = "best of 64 random choices"
    rows.append(printed(f"perplexity, {name}", ours=found[name], why="where EvoPress starts"))
    return [
        *rows,
        not_comparable("perplexity of Llama-2 7B with a quarter dropped", why="7B models do not fit here"),
    ]


def _first(scores, count):
    return np.argsort(scores, kind="stable")[:count]


def _without(count, indices):
    state = np.ones(count, np.int64)
    state[indices] = 0
    return state


def _under(kind, found, baselines, ours):
    """EvoPress asserted under each baseline."""
    return [
        asserted(
            f"byte model, {kind}: divergence, EvoPress under {name}",
            baseline=found[name].kl,
            ours=ours.kl,
            bits=ours.bits,
            baseline_bits=found[name].bits,
            equal_bits=False,
            unit="nats",
            note="one budget for all; a search may leave a step of it unspent",
        )
        for name in baselines
    ]


def bits(quick: bool) -> list[Row]:
    """Divergence of a byte model at equal bits, by how they are shared out."""
    cfg, params = byte_decoder(quick)
    levels = [GPTQ(bits=b, group=64) for b in (2, 3, 4)]
    found = share_out(cfg, params, *byte_texts(quick), levels, byte_search(quick))
    ours, dp, greedy = (found[n] for n in ("EvoPress", "DP over layer errors", "greedy over layer errors"))
    why = "one step at a time over the same layer errors"
    return [
        *_under("bits", found, ("one level everywhere", "DP over layer errors"), ours),
        asserted(
            "byte model, bits: sum of layer errors, DP's no larger than EvoPress's",
            baseline=ours.error,
            ours=dp.error,
            strict=False,
            note="so errors of layers do not decide: the row above has the divergences the other way round",
        ),
        printed("byte model, bits: divergence, greedy", ours=greedy.kl, bits=greedy.bits, unit="nats", why=why),
    ]


def sparsity(quick: bool) -> list[Row]:
    """Divergence of a byte model with half of its weights dropped, by where they go."""
    cfg, params = byte_decoder(quick)
    step, reach = (256, 2) if quick else (1024, 6)
    configs = [SparseGPT(extra=step * k) for k in range(reach, -reach - 1, -1)]

    def owl(levels, stats):
        share = owl_sparsity(params, stats, 0.5)
        state = []
        for stack in levels.dense.values():
            numel = stack[0, 0].size
            # Rounded towards more dropped weights, so that the budget is kept.
            offset = np.clip(np.ceil((share - 0.5) * numel / step), -reach, reach)
            state += list(reach - offset.astype(np.int64))
        return {"OWL": np.asarray(state)}

    found = share_out(cfg, params, *byte_texts(quick), configs, byte_search(quick), others=owl)
    ours, greedy = found["EvoPress"], found["greedy over layer errors"]
    why = "one step at a time over the same layer errors"
    return [
        *_under("half dropped", found, ("one level everywhere", "OWL", "DP over layer errors"), ours),
        printed("byte model, half dropped: divergence, greedy", ours=greedy.kl, bits=greedy.bits, unit="nats", why=why),
    ]


def model(quick: bool) -> list[Row]:
    """Divergence of SmolLM2 at equal bits after a short search from the best of the others."""
    bed = lm.smollm2(2 if quick else None)
    tokens = lm.calibration("wikipedia:train", *((4, 64) if quick else (32, 256)))
    text = lm.held_out("wikipedia:test", *((2, 64) if quick else (8, 512)))
    search = EvoPress(generations=16, offspring=8, survivors=(2, 1), tokens=(256, 1024))
    if quick:
        search = EvoPress(generations=2, offspring=4, survivors=(2, 1), tokens=(128, 256))
    configs = [GPTQ(bits=b, group=64) for b in (2, 3, 4)]
    found = share_out(bed.cfg, bed.params, tokens, text, configs, search, from_best=True)
    why = "16 generations of 8 over 210 matrices, from the best cheap choice: far from the paper's 150 of 128"
    return [
        printed(f"SmolLM2: divergence, {name}", ours=own.kl, bits=own.bits, unit="nats", why=why)
        for name, own in found.items()
    ]


PARTS = {
    "depth": Part(run=depth, about="parts of blocks dropped, by score and by search", minutes=8.0),
    "bits": Part(run=bits, about="bits of a byte model, by DP and by search", minutes=4.0),
    "sparsity": Part(run=sparsity, about="where a byte model's weights go, by OWL, DP and search", minutes=5.0),
    "model": Part(run=model, about="bits of SmolLM2, a short search", minutes=8.0),
}
