"""Flax modules as logits functions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.evaluation.logits import LinenLogits
from compressjax.evaluation.perplexity import perplexity

TRACES = []


class Tiny(nn.Module):
    vocab: int

    @nn.compact
    def __call__(self, tokens, *, mask=None):
        TRACES.append(tokens.shape)
        hidden = nn.Embed(self.vocab, 4)(tokens)
        if mask is not None:
            hidden = jnp.where(mask[..., None], hidden, 0.0)
        return nn.Dense(self.vocab)(jnp.cumsum(hidden, axis=1))


def test_equal_modules_share_a_program():
    tokens = np.arange(12).reshape(2, 6)
    params = Tiny(13).init(jax.random.key(0), jnp.asarray(tokens))["params"]
    TRACES.clear()
    first = perplexity(LinenLogits(Tiny(13)), params, tokens)
    second = perplexity(LinenLogits(Tiny(13)), params, tokens)
    assert first.nll == second.nll
    assert TRACES == [(1, 6)]


def test_the_mask_reaches_the_module():
    tokens = np.arange(12).reshape(2, 6)
    params = Tiny(13).init(jax.random.key(0), jnp.asarray(tokens))["params"]
    mask = np.ones((2, 6), bool)
    mask[0, :3] = False
    cut = perplexity(LinenLogits(Tiny(13)), params, tokens[:1, 3:])
    masked = perplexity(LinenLogits(Tiny(13)), params, tokens, mask=mask)
    assert masked.window_nll[0] == pytest.approx(cut.nll, rel=1e-5)
