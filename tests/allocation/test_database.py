import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.allocation import LevelDatabase, assemble

COST = [[1, 2**40], [3, 4]]


def test_costs_are_exact_beyond_32_bits():
    db = LevelDatabase(names=["a", "b"], levels=[4, 8], cost=COST)
    assert db.cost.dtype == np.int64 and db.total_cost([1, 1]) == 2**40 + 4
    with pytest.raises(ValueError, match="holds no errors"):
        db.total_error([0, 0])


def test_stacked_items_are_assembled_under_jit_for_any_choice():
    stacked = {"a": {"w": jnp.asarray([[1.0], [2.0]])}, "b": jnp.asarray([[3.0, 3.0], [4.0, 4.0]])}
    db = LevelDatabase(names=["a", "b"], levels=[4, 8], cost=COST, stacked=stacked)
    chosen = jax.jit(lambda state: assemble(db, state))
    for state in ([0, 1], [1, 0]):
        out = chosen(jnp.asarray(state))
        assert out["a"]["w"][0] == 1 + state[0] and out["b"][0] == 3 + state[1]
    assert chosen._cache_size() == 1


def test_other_items_are_made_one_by_one():
    db = LevelDatabase(names=["a", "b"], levels=[4, 8], cost=COST, materialize=lambda name, i: (name, i))
    assert assemble(db, [1, 0]) == {"a": ("a", 1), "b": ("b", 0)}
    with pytest.raises(ValueError, match="state must lie in 0..1, got 0 to 2"):
        assemble(db, [2, 0])
    with pytest.raises(ValueError, match="stacked or materialize"):
        assemble(LevelDatabase(names=["a", "b"], levels=[4, 8], cost=COST), [0, 0])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"names": ["a", "a"]}, "names must differ"),
        ({"cost": [[1, 2]]}, "cost must be integers >= 0"),
        ({"cost": [[1.0, 2], [3, 4]]}, "cost must be integers >= 0"),
        ({"error": [[1, 2], [3, np.nan]]}, "error must be numbers >= 0"),
        ({"levels": []}, "at least one level"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ValueError, match=message):
        LevelDatabase(**{"names": ["a", "b"], "levels": [4, 8], "cost": COST, **fields})
