"""Sensitivity profiles against losses computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.allocation import chosen_params, items_by_layer, knapsack_dp, profile_layers, uniform
from compressjax.factorization import CompactifAI, lowrank
from compressjax.leaf import ByLayer, TensorTrain
from compressjax.ops import dense, nbits

LAYERS = 3


@pytest.fixture(scope="module")
def problem():
    """A stack whose layers matter as 1, 10 and 100, and one weight by itself."""
    rng = np.random.default_rng(0)
    params = {
        "blocks": {"up": {"kernel": jnp.asarray(rng.normal(size=(LAYERS, 12, 10)), jnp.float32)}},
        "head": {"kernel": jnp.asarray(rng.normal(size=(12, 10)), jnp.float32)},
    }
    weight = np.array([1.0, 10.0, 100.0])

    def evaluate(tree):
        assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(tree))
        miss = np.asarray(tree["blocks"]["up"]["kernel"] - params["blocks"]["up"]["kernel"])
        alone = np.sum(np.asarray(tree["head"]["kernel"] - params["head"]["kernel"]) ** 2)
        return 2.0 + float(np.sum(weight[:, None, None] * miss**2) + alone)

    versions = {bond: lowrank(params, CompactifAI(max_bond=bond, dtype="float32")) for bond in (2, 6)}
    items = items_by_layer(params, {"up": "blocks/up", "head": "head"})
    profile = profile_layers(params, versions, items, evaluate)
    return params, weight, versions, evaluate, profile


def test_every_item_is_measured_alone(problem):
    params, weight, versions, _, profile = problem
    assert profile.database.names == ("0/up", "1/up", "2/up", "head") and profile.baseline == 2.0
    for c, bond in enumerate((2, 6)):
        leaf = versions[bond]["blocks"]["up"]["kernel"]
        lost = np.sum(np.asarray(dense(leaf) - params["blocks"]["up"]["kernel"]) ** 2, axis=(1, 2))
        np.testing.assert_allclose(profile.metric[:3, c], 2 + weight * lost, rtol=1e-4)
        assert set(profile.database.cost[:3, c]) == {nbits(leaf) // LAYERS}
    np.testing.assert_allclose(profile.database.error, profile.metric - 2.0)
    assert np.all(profile.metric[:, 0] > profile.metric[:, 1])


def test_the_allocation_it_leads_to_beats_equal_bonds_of_the_same_size(problem):
    params, _, _, evaluate, profile = problem
    db = profile.database
    budget = int(db.cost[:, 0].sum() + db.cost[0, 1] - db.cost[0, 0])  # one item may have the larger bond
    chosen = knapsack_dp(db, budget).state
    assert chosen.tolist() == [0, 0, 1, 0]
    small = chosen_params(params, profile, chosen)
    assert isinstance(small["blocks"]["up"]["kernel"], ByLayer) and isinstance(small["head"]["kernel"], TensorTrain)
    assert evaluate(dense(small)) == pytest.approx(2 + db.total_error(chosen), rel=1e-4)
    other = chosen_params(params, profile, [1, 0, 0, 0])
    assert evaluate(dense(small)) < evaluate(dense(other))
    alike = chosen_params(params, profile, uniform(db, 1).state)
    assert isinstance(alike["blocks"]["up"]["kernel"], TensorTrain)


def test_the_original_is_a_level_that_costs_no_measurement(problem):
    params, _, versions, evaluate, profile = problem
    seen = []
    again = profile_layers(
        params,
        {2: versions[2], "whole": params},
        items_by_layer(params, {"head": "head"}),
        lambda tree: seen.append(1) or evaluate(tree),
    )
    assert again.metric[0, 1] == again.baseline == 2.0 and len(seen) == 2
    assert again.metric[0, 0] == pytest.approx(profile.metric[3, 0])
    assert again.database.cost[0].tolist() == [nbits(versions[2]["head"]["kernel"]), 32 * 120]
    assert chosen_params(params, again, [1])["head"]["kernel"] is params["head"]["kernel"]


def test_refusals(problem):
    params, _, versions, evaluate, _ = problem
    with pytest.raises(ValueError, match="must name kernels of one depth"):
        items_by_layer(params, {"all": "**"})
    with pytest.raises(ValueError, match="must name kernels of one depth"):
        items_by_layer(params, {"none": "blocks/down"})
    with pytest.raises(ValueError, match="names 'blocks/up/kernel', layer 3"):
        profile_layers(params, versions, {"a": (("blocks/up/kernel", 3),)}, evaluate)
    with pytest.raises(ValueError, match="needs items and levels, got 0 and 2"):
        profile_layers(params, versions, {}, evaluate)
