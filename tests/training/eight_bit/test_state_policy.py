import jax
import pytest

from compressjax.training.eight_bit import StatePolicy


def path(*keys):
    kinds = {str: jax.tree_util.GetAttrKey, int: jax.tree_util.SequenceKey}
    return tuple(key if not isinstance(key, (str, int)) else kinds[type(key)](key) for key in keys)


W = jax.tree_util.DictKey("w")
MU = path(0, "mu", jax.tree_util.DictKey("block"), W)
NU = path(0, "nu", jax.tree_util.DictKey("block"), W)


def test_fields_choose_their_map_and_small_leaves_stay():
    policy = StatePolicy()
    assert (policy.map_for(MU, 4096), policy.map_for(NU, 4096)) == ("signed", "unsigned")
    assert policy.map_for(MU, 4095) == "f32"
    assert policy.map_for(path(0, "unknown", W), 10**6) == "f32"


def test_a_parameter_called_like_a_field_is_none():
    assert StatePolicy().map_for(path(0, "count", jax.tree_util.DictKey("mu")), 10**6) == "f32"


def test_the_first_override_that_is_found_wins_over_size():
    policy = StatePolicy(overrides=[("mu/block", "unsigned"), ("block", "f32")])
    assert policy.map_for(MU, 1) == "unsigned"
    assert policy.map_for(NU, 10**6) == "f32"


def test_tables_of_embeddings_stay_by_default():
    assert StatePolicy().map_for(path("mu", jax.tree_util.DictKey("embedding")), 10**6) == "f32"
    assert StatePolicy().map_for(path("mu", jax.tree_util.DictKey("my_embedding")), 10**6) == "signed"


def test_a_policy_can_be_a_static_argument():
    assert hash(StatePolicy(stochastic={"nu"}, overrides=[["a", "f32"]])) == hash(
        StatePolicy(stochastic=frozenset({"nu"}), overrides=(("a", "f32"),))
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"min_size": -1}, "min_size must be >= 0, got -1"),
        ({"block_size": 0}, "block_size must be >= 1, got 0"),
        ({"axis_mode": "x"}, "axis_mode must be 'flat' or 'last', got 'x'"),
        ({"overrides": [("a", "int4")]}, "'a' must map to one of .* got 'int4'"),
        ({"overrides": [("(", "f32")]}, r"'\(' is no regular expression"),
        ({"stochastic": {"momentum"}}, "stochastic must name fields among"),
        ({"floor_zeros": {"v"}}, "floor_zeros must name fields among"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ValueError, match=message):
        StatePolicy(**fields)
