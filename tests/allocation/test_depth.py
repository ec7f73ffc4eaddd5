"""Leaving out parts of blocks: silent candidates, models without the parts, and the cosine baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.allocation import depth_database, drop_parts, mute_parts, part_cosines, random_drops
from compressjax.models.llama import Llama
from compressjax.models.stack import apply
from compressjax.ops import nbits

from .models import CFG, LOGITS, decoder


@pytest.fixture(scope="module")
def model():
    return decoder()


def test_all_parts_kept_is_the_model(model):
    params, tokens = model
    kept = np.ones(6, np.int64)
    jax.tree.map(np.testing.assert_array_equal, mute_parts(params, jnp.asarray(kept)), params)
    np.testing.assert_array_equal(LOGITS(drop_parts(params, kept), tokens), LOGITS(params, tokens))


def test_nothing_kept_leaves_embedding_norm_and_head(model):
    params, tokens = model
    silent = mute_parts(params, jnp.zeros(6, jnp.int32))
    expected = apply(Llama(CFG), params, apply(Llama(CFG), params, tokens, method="lookup"), method="logits")
    np.testing.assert_allclose(LOGITS(silent, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("state", [(0, 1, 1, 1, 0, 1), (1, 0, 0, 0, 1, 0)])
def test_a_model_without_its_parts_is_the_silent_one_and_smaller(model, state):
    params, tokens = model
    small = drop_parts(params, np.asarray(state))
    silent = mute_parts(params, jnp.asarray(state))
    np.testing.assert_allclose(LOGITS(small, tokens), LOGITS(silent, tokens), atol=1e-4)
    db = depth_database(params)
    assert db.names[:2] == ("blocks/0/attn", "blocks/1/attn") and db.names[3] == "blocks/0/mlp"
    indices = 7 * 2 * 32 * CFG.num_layers
    gone = db.total_cost([1] * 6) - db.total_cost(np.asarray(state))
    assert gone > 0 and nbits(params) - nbits(small) == gone - indices


def test_cosines_by_hand(model):
    params, tokens = model
    found = part_cosines(CFG, params, tokens)
    # A part is undone by silencing it: the stream after it is then the stream before it.
    states = [np.r_[np.arange(3) < a, np.arange(3) < m].astype(int) for a, m in ((0, 0), (1, 0), (1, 1))]
    model_fn = Llama(CFG)
    before, middle, after = (
        np.asarray(apply(model_fn, mute_parts(params, jnp.asarray(s)), tokens, method="hidden")[0], np.float64)
        for s in states
    )

    def cosine(a, b):
        return ((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))).mean()

    assert found[0] == pytest.approx(cosine(before, middle), abs=1e-5)
    assert found[3] == pytest.approx(cosine(middle, after), abs=1e-5)
    quiet = part_cosines(CFG, mute_parts(params, jnp.asarray([1, 0, 1, 1, 1, 1])), tokens)
    assert quiet[1] == pytest.approx(1.0, abs=1e-6)


def test_random_drops_are_as_many_of_each_kind(model):
    db, rng = depth_database(model[0]), np.random.default_rng(0)
    drawn = np.asarray([random_drops(db, 2, rng) for _ in range(50)])
    assert (drawn[:, :3].sum(axis=1) == 1).all() and (drawn[:, 3:].sum(axis=1) == 1).all()
    assert len(np.unique(drawn, axis=0)) == 9
    with pytest.raises(ValueError, match="dropped must be 0 to 3, the number of attn parts, got 4"):
        random_drops(db, 4, rng)
