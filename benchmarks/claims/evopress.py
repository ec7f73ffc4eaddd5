"""EvoPress on real language models: a choice judged by the whole network against choices by layer scores.

Paper: Sieberling et al., 2024, arXiv 2410.14649: errors of single layers do not add up in language models, and a search
that judges whole choices beats scores (ShortGPT) and dynamic programming over layer errors (SPDY) at equal budgets.
There, 7B models and some hundred generations on a GPU; here a 135M model and 24, and a model over bytes and more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import language_model as lm
from benchmarks.byte_model import byte_llama, byte_text, llama_loss, train
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from compressjax.allocation import (
    EvoPress,
    Greedy,
    KnapsackDP,
    TextFitness,
    Uniform,
    allocate,
    assemble_dense,
    depth_database,
    model_levels,
    mute_parts,
    owl_sparsity,
    part_cosines,
    random_drops,
)
from compressjax.calibration import Hessian, calibrate
from compressjax.evaluation.divergence import divergence
from compressjax.evaluation.logits import LinenLogits
from compressjax.models import Llama
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


@functools.cache
def _byte_model(quick: bool):
    """A trained Llama over bytes and its parameters."""
    model, cfg = byte_llama(2, 64, 2) if quick else byte_llama(6, 128, 4)
    steps, batch, length = (4, 2, 17) if quick else (800, 16, 97)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 4, steps)
    batches = byte_text().windows(0, steps * batch, length).reshape(steps, batch, length)
    return cfg, train(llama_loss(model), params, optax.adam(rate), batches)[0]


def _shared_out(cfg, params, tokens, text, configs, search, from_dp=False, owl=None):
    """Held-out divergence, summed layer error and bits of every allocation at the cost of the middle level everywhere.

    ``owl`` adds the states that a function of levels and statistics names.
    """
    network = Llama(cfg)

    def hidden(tree, ids):
        return network.apply({"params": tree}, ids, method="hidden")[0]

    batches = [jnp.asarray(tokens[at : at + 2]) for at in range(0, len(tokens), 2)]
    stats = calibrate(hidden, params, batches, Hessian(), paths="blocks/**")
    levels = model_levels(params, configs, stats=stats, paths="blocks/**")
    db, logits, data = levels.db, LinenLogits(network), (params, levels.dense)
    budget = int(db.cost[:, len(configs) // 2].sum())
    fitness = TextFitness(logits_fn=logits, params=params, assemble=assemble_dense, data=data, tokens=tokens)
    states = {
        "one level everywhere": allocate(db, budget, Uniform()).state,
        "greedy over layer errors": allocate(db, budget, Greedy()).state,
        "DP over layer errors": allocate(db, budget, KnapsackDP()).state,
        **({} if owl is None else owl(levels, stats)),
    }
    start = states["DP over layer errors"] if from_dp else None
    states["EvoPress"] = allocate(db, budget, search, fitness, start=start).state
    numbers = sum(stack[0].size for stack in levels.dense.values())
    found = {}
    for name, state in states.items():
        if db.total_cost(state) > budget:
            raise ValueError(f"{name} costs more than the budget")
        away = divergence(logits, params, assemble_dense(data, jnp.asarray(state)), text)
        found[name] = (away.kl, db.total_error(state), db.total_cost(state) / numbers)
    return found


def _byte_text(quick):
    text = byte_text()
    search = EvoPress(generations=100, offspring=32, survivors=(8, 2, 1), tokens=(1024, 4096, 16384))
    if quick:
        search = EvoPress(generations=2, offspring=4, survivors=(2, 1), tokens=(256, 512))
    return text.windows(1, 8 if quick else 128, 128), text.held_out_windows(4 if quick else 96, 128), search


def _under(kind, found, baselines, ours):
    """EvoPress asserted under each baseline."""
    return [
        asserted(
            f"byte model, {kind}: divergence, EvoPress under {name}",
            baseline=found[name][0],
            ours=ours[0],
            bits=ours[2],
            baseline_bits=found[name][2],
            equal_bits=False,
            unit="nats",
            note="one budget for all; a search may leave a step of it unspent",
        )
        for name in baselines
    ]


def bits(quick: bool) -> list[Row]:
    """Divergence of a byte model at equal bits, by how they are shared out."""
    cfg, params = _byte_model(quick)
    tokens, held_out, search = _byte_text(quick)
    found = _shared_out(cfg, params, tokens, held_out, [GPTQ(bits=b, group=64) for b in (2, 3, 4)], search)
    ours, dp, greedy = (found[n] for n in ("EvoPress", "DP over layer errors", "greedy over layer errors"))
    why = "one step at a time over the same layer errors"
    return [
        *_under("bits", found, ("one level everywhere", "DP over layer errors"), ours),
        asserted(
            "byte model, bits: sum of layer errors, DP's no larger than EvoPress's",
            baseline=ours[1],
            ours=dp[1],
            strict=False,
            note="so errors of layers do not decide: the row above has the divergences the other way round",
        ),
        printed("byte model, bits: divergence, greedy", ours=greedy[0], bits=greedy[2], unit="nats", why=why),
    ]


def sparsity(quick: bool) -> list[Row]:
    """Divergence of a byte model with half of its weights dropped, by where they go."""
    cfg, params = _byte_model(quick)
    tokens, held_out, search = _byte_text(quick)
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

    found = _shared_out(cfg, params, tokens, held_out, configs, search, owl=owl)
    ours, greedy = found["EvoPress"], found["greedy over layer errors"]
    why = "one step at a time over the same layer errors"
    return [
        *_under("half dropped", found, ("one level everywhere", "OWL", "DP over layer errors"), ours),
        printed("byte model, half dropped: divergence, greedy", ours=greedy[0], bits=greedy[2], unit="nats", why=why),
    ]


def model(quick: bool) -> list[Row]:
    """Divergence of SmolLM2 at equal bits after a short search from the DP's choice."""
    bed = lm.smollm2(2 if quick else None)
    tokens = lm.calibration("wikipedia:train", *((4, 64) if quick else (32, 256)))
    text = lm.held_out("wikipedia:test", *((2, 64) if quick else (8, 512)))
    search = EvoPress(generations=16, offspring=8, survivors=(2, 1), tokens=(256, 1024))
    if quick:
        search = EvoPress(generations=2, offspring=4, survivors=(2, 1), tokens=(128, 256))
    configs = [GPTQ(bits=b, group=64) for b in (2, 3, 4)]
    found = _shared_out(bed.cfg, bed.params, tokens, text, configs, search, from_dp=True)
    why = "16 generations of 8 over 210 matrices, from the choice of the DP: far from the paper's 150 of 128"
    return [
        printed(f"SmolLM2: divergence, {name}", ours=kl, bits=width, unit="nats", why=why)
        for name, (kl, _, width) in found.items()
    ]


PARTS = {
    "depth": Part(run=depth, about="parts of blocks dropped, by score and by search", minutes=8.0),
    "bits": Part(run=bits, about="bits of a byte model, by DP and by search", minutes=4.0),
    "sparsity": Part(run=sparsity, about="where a byte model's weights go, by OWL, DP and search", minutes=5.0),
    "model": Part(run=model, about="bits of SmolLM2, a short search", minutes=8.0),
}
