"""A click-through-rate model of late flights: training, scores and seconds."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.data.flights import FIELDS, Flights, load_flights, split_by_days
from compressjax.evaluation.auc import roc_auc
from compressjax.factorization.afm_ctr import forward
from compressjax.models.deepfm import DeepFM, DeepFMConfig

BATCH = 1024
_SCORED = 8192  # rows of one forward pass when scores are wanted


@functools.cache
def flights(rows: int | None = None) -> dict[str, Flights]:
    """Parts by days; of every part only the first rows, spread over its days, where a number is given."""
    parts = split_by_days(load_flights())
    if rows is None:
        return parts
    picked = {name: np.linspace(0, len(part.late) - 1, rows).astype(int) for name, part in parts.items()}
    return {
        name: Flights(part.ids[at], part.numeric[at], part.late[at], part.day[at], part.sizes)
        for (name, part), at in zip(parts.items(), picked.values(), strict=True)
    }


def sizes(part: Flights, hidden: int) -> DeepFMConfig:
    """The model: embeddings of 16 and three hidden layers."""
    fields = tuple(zip(FIELDS, part.sizes, strict=True))
    return DeepFMConfig(fields=fields, numeric=part.numeric.shape[1], hidden=(hidden,) * 3)


def start(model: DeepFMConfig, seed: int) -> Any:
    """Untrained parameters."""
    ids, numeric = jnp.zeros((1, len(model.fields)), jnp.int32), jnp.zeros((1, model.numeric))
    return DeepFM(model).init(jax.random.key(seed), ids, numeric)["params"]


def batches(part: Flights, size: int, order: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Whole batches of a part, in an order or as it is; what is left over at the end is left out."""
    order = np.arange(len(part.late)) if order is None else order
    for at in range(0, len(order) - size + 1, size):
        rows = order[at : at + size]
        yield {"ids": part.ids[rows], "numeric": part.numeric[rows], "late": part.late[rows]}


def train(model: DeepFMConfig, params: Any, part: Flights, *, epochs: int, seed: int, rate: float = 1e-3) -> Any:
    """Adam on the binary cross entropy, a new order every epoch; compressed models train the same way."""
    held, rng = optax.adam(rate).init(params), np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in batches(part, min(BATCH, len(part.late)), rng.permutation(len(part.late))):
            params, held = _step(model, params, held, batch, jnp.float32(rate))
    return params


@functools.partial(jax.jit, static_argnums=0)
def _step(model, params, held, batch, rate):
    def loss(params):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(forward(model)(params, batch), batch["late"]))

    updates, held = optax.adam(rate).update(jax.grad(loss)(params), held, params)
    return optax.apply_updates(params, updates), held


def scores(model: DeepFMConfig, params: Any, part: Flights) -> np.ndarray:
    """Logits of a part."""
    run = _scorer(model)
    rows = len(part.late)
    size = min(_SCORED, rows)
    found = []
    for at in range(0, rows, size):
        first = min(at, rows - size)  # the last batch reaches back, so that all have one shape
        batch = {"ids": part.ids[first : first + size], "numeric": part.numeric[first : first + size]}
        found.append(np.asarray(run(params, batch))[at - first :])
    return np.concatenate(found)


@functools.cache
def _scorer(model):
    return jax.jit(forward(model))


def auc(model: DeepFMConfig, params: Any, part: Flights, at: np.ndarray | None = None) -> float:
    """AUC over a part, or over some of its rows."""
    found, late = scores(model, params, part), part.late
    return roc_auc(found, late) if at is None else roc_auc(found[at], late[at])


def milliseconds(model: DeepFMConfig, params: Any, part: Flights, size: int, tries: int = 30) -> float:
    """Least time of a forward pass over a batch."""
    run, batch = _scorer(model), jax.device_put(next(batches(part, size)))
    jax.block_until_ready(run(params, batch))
    best = float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        jax.block_until_ready(run(params, batch))
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best
