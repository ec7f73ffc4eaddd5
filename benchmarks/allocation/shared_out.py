"""One model's bits shared out by every search, and what each choice costs on held-out text."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.byte_model import byte_llama, byte_text, llama_loss, train
from compressjax.allocation import (
    EvoPress,
    Greedy,
    KnapsackDP,
    ModelLevels,
    NeighbourDP,
    TextFitness,
    Uniform,
    allocate,
    assemble_dense,
    model_levels,
)
from compressjax.calibration import Hessian, calibrate
from compressjax.evaluation.divergence import divergence
from compressjax.evaluation.logits import LinenLogits
from compressjax.models import Llama
from compressjax.models.config import LlamaConfig

BYTE_NETWORK = "a Llama over bytes (6 layers of width 128, trained here on Python's manual)"


class Shared(NamedTuple):
    """What became of one choice.

    Attributes:
      kl: divergence from the original on held-out text, nats a token.
      error: sum of relative layer errors.
      bits: per weight, everything counted.
    """

    kl: float
    error: float
    bits: float


@functools.cache
def byte_decoder(quick: bool) -> tuple[LlamaConfig, dict]:
    """A trained Llama over bytes: architecture and parameters."""
    model, cfg = byte_llama(2, 128, 4) if quick else byte_llama(6, 128, 4)
    steps, batch, length = (4, 2, 17) if quick else (800, 16, 97)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 4, steps)
    batches = byte_text().windows(0, steps * batch, length).reshape(steps, batch, length)
    return cfg, train(llama_loss(model), params, optax.adam(rate), batches)[0]


def byte_texts(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Windows to search on and windows to measure on."""
    text = byte_text()
    return text.windows(1, 8 if quick else 128, 128), text.held_out_windows(4 if quick else 96, 128)


def byte_search(quick: bool) -> EvoPress:
    """A hundred generations, three stages of selection."""
    if quick:
        return EvoPress(generations=2, offspring=4, survivors=(2, 1), tokens=(256, 512))
    return EvoPress(generations=100, offspring=32, survivors=(8, 2, 1), tokens=(1024, 4096, 16384))


def share_out(
    cfg: LlamaConfig,
    params: dict,
    tokens: np.ndarray,
    text: np.ndarray,
    levels: Sequence[Any],
    search: EvoPress,
    *,
    bits: float | None = None,
    from_best: bool = False,
    others: Callable[[ModelLevels, Mapping[str, Any]], dict[str, np.ndarray]] | None = None,
) -> dict[str, Shared]:
    """Every search's choice within one budget.

    Args:
      cfg, params: the model.
      tokens: int ``[windows, length]`` to calibrate and to search on.
      text: int ``[windows, length]`` to measure on.
      levels: configs from the smallest to the largest.
      search: of the whole network.
      bits: budget per weight; by default what the middle level costs everywhere.
      from_best: the search starts from the best of the other choices on its own text, else from one drawn at random.
      others: further choices from levels and statistics.
    """
    network = Llama(cfg)

    def hidden(tree, ids):
        return network.apply({"params": tree}, ids, method="hidden")[0]

    batches = [jnp.asarray(tokens[at : at + 2]) for at in range(0, len(tokens), 2)]
    stats = calibrate(hidden, params, batches, Hessian(), paths="blocks/**")
    found = model_levels(params, levels, stats=stats, paths="blocks/**")
    db, logits, data = found.db, LinenLogits(network), (params, found.dense)
    numbers = sum(stack[0].size for stack in found.dense.values())
    budget = int(db.cost[:, len(levels) // 2].sum()) if bits is None else int(bits * numbers)
    fitness = TextFitness(logits_fn=logits, params=params, assemble=assemble_dense, data=data, tokens=tokens)
    states = {
        "one level everywhere": allocate(db, budget, Uniform()).state,
        "greedy over layer errors": allocate(db, budget, Greedy()).state,
        "DP over layer errors": allocate(db, budget, KnapsackDP()).state,
        "DP between neighbours": allocate(db, budget, NeighbourDP()).state,
        **({} if others is None else others(found, stats)),
    }
    start = None
    if from_best:
        drawn = fitness.draw(search.tokens[-1], np.random.default_rng(0))
        start = min(states.values(), key=lambda state: fitness(state, drawn))
    states["EvoPress"] = allocate(db, budget, search, fitness, start=start).state
    result = {}
    for name, state in states.items():
        if db.total_cost(state) > budget:
            raise ValueError(f"{name} costs more than the budget")
        away = divergence(logits, params, assemble_dense(data, jnp.asarray(state)), text)
        result[name] = Shared(away.kl, db.total_error(state), db.total_cost(state) / numbers)
    return result
