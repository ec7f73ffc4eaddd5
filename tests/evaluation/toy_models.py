"""Toy language models over a small vocabulary, whose every figure can be computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np


def uniform(params, tokens, mask=None):
    """Every token equally likely; ``params`` is the vocabulary's size as an array ``[V]``."""
    return jnp.zeros((*tokens.shape, params.shape[0]))


def bigram(params, tokens, mask=None):
    """Logits of the next token from the last one alone: ``params [V, V]``."""
    return params[tokens]


def running(params, tokens, mask=None):
    """Logits that depend on every token before, so that the length of the context matters: ``params [V, V]``.

    Tokens outside the mask leave no trace.
    """
    seen = params[tokens]
    if mask is not None:
        seen = jnp.where(mask[..., None], seen, 0.0)
    return jnp.cumsum(seen, axis=1)


def table(seed: int, vocab: int) -> jax.Array:
    """Random logits ``[V, V]``."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(vocab, vocab)), jnp.float32)


def reference_nll(params, window: np.ndarray, position: int, model=running) -> float:
    """-log p of ``window[position]`` given the tokens before it, in float64 numpy."""
    rows = np.asarray(params, np.float64)[window[:position]]
    logits = rows.sum(axis=0) if model is running else rows[-1]
    shifted = logits - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[window[position]])
