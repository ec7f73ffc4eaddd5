import functools

import jax
import numpy as np
import pytest

from compressjax.evaluation.logits import LinenLogits
from compressjax.factorization import (
    levels_for_budget,
    load_stack,
    open_store,
    resize_stack,
    stacks_of,
)
from compressjax.models import Llama, generate
from compressjax.ops import dense
from compressjax.select import weights

TOKENS = np.arange(8, dtype=np.int32)[None]


@pytest.fixture
def store(store_folder):
    return open_store(store_folder)


def budget(store, at):
    return int(store.table.bytes[at])


def check(model, decomposed, store, at):
    """Levels are those of the prefix, and every block that counts is the decomposition's, bit for bit."""
    np.testing.assert_array_equal(model.levels, store.table.levels[at])
    first = 0
    for weight in store.weights:
        leaf, whole = weights(model.params)[weight.path], stacks_of(decomposed)[weight.path]
        levels = model.levels[first : first + weight.layers]
        first += weight.layers
        np.testing.assert_array_equal(leaf.loaded, levels)
        layer, level = np.nonzero(np.arange(store.levels)[None] < levels[:, None])
        place = np.asarray(leaf.slots)[layer, level]
        assert len(set(place.tolist())) == len(place)
        for part in ("signs", "u", "v"):
            held, wanted = (np.asarray(getattr(w, part)) for w in (leaf, whole))
            np.testing.assert_array_equal(held[place], wanted[layer, level])


@pytest.mark.parametrize("at", [0, 17, 42])
def test_a_loaded_model_is_the_prefix_and_takes_its_bytes(store, decomposed, at):
    model = load_stack(store, budget(store, at))
    check(model, decomposed, store, at)
    assert model.nbytes == budget(store, at) == sum(a.nbytes for a in jax.tree.leaves(model.params))


def test_a_budget_between_two_sizes_takes_the_lower(store):
    model = load_stack(store, budget(store, 9) - 1)
    assert model.nbytes == budget(store, 8)


@pytest.mark.parametrize("start, end", [(3, 30), (30, 3), (20, 21), (12, 12)])
def test_resizing_moves_the_difference_and_equals_loading(store, decomposed, start, end):
    model = load_stack(store, budget(store, start))
    old = [w.signs for w in weights(model.params).values() if hasattr(w, "signs")]
    resized = resize_stack(store, model, budget(store, end))
    assert (resized.read, resized.dropped) == (max(end - start, 0), max(start - end, 0))
    assert resized.bytes_read == max(budget(store, end) - budget(store, start), 0)
    check(resized.model, decomposed, store, end)
    assert resized.model.nbytes == budget(store, end)
    if abs(end - start) > 20:
        assert all(array.is_deleted() for array in old)  # freed at once, not when the caller lets go


def test_there_and_back_again_is_where_it_was(store, decomposed):
    model = load_stack(store, budget(store, 5))
    for at in (25, 11, 42, 0, 5):
        model = resize_stack(store, model, budget(store, at)).model
        check(model, decomposed, store, at)


def test_only_new_stack_sizes_compile(store, decomposed, tiny_config):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def logits(f, params, tokens):
        traces.append(1)
        return f(params, tokens)

    f = LinenLogits(Llama(tiny_config))
    top = budget(store, 30)
    model = load_stack(store, budget(store, 10), reserve=top)
    assert model.nbytes == top  # allocated places count
    for at in (10, 22, 30, 4):
        model = resize_stack(store, model, budget(store, at), reserve=top).model
        check(model, decomposed, store, at)
        assert model.nbytes == top
        out = logits(f, model.params, TOKENS)
    assert len(traces) == 1
    plain = jax.jit(lambda p: Llama(tiny_config).apply({"params": p}, TOKENS))(dense(model.params))
    np.testing.assert_allclose(out, plain, atol=1e-4)
    model = resize_stack(store, model, budget(store, 4)).model  # gives the reserve back
    assert model.nbytes == budget(store, 4)
    logits(f, model.params, TOKENS)
    model = resize_stack(store, resize_stack(store, model, top).model, budget(store, 4)).model
    logits(f, model.params, TOKENS)
    assert len(traces) == 2


def test_a_resized_model_generates(store, tiny_config):
    model = load_stack(store, budget(store, 20))
    drawn = generate(tiny_config, model.params, TOKENS, max_new_tokens=3)
    same = generate(tiny_config, dense(model.params), TOKENS, max_new_tokens=3)
    np.testing.assert_array_equal(drawn, same)


def test_refusals(store):
    with pytest.raises(ValueError, match="bytes are not enough"):
        load_stack(store, budget(store, 0) - 1)
    with pytest.raises(ValueError, match="reserve=.* must be at least max_bytes"):
        load_stack(store, budget(store, 5), reserve=budget(store, 4))
    model = load_stack(store, budget(store, 5))
    with pytest.raises(ValueError, match="bytes are not enough"):
        resize_stack(store, model, 10)
    assert not any(a.is_deleted() for a in jax.tree.leaves(model.params))
    np.testing.assert_array_equal(levels_for_budget(store.table, budget(store, 5)), model.levels)
