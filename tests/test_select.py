"""Rules by path: first match wins, nothing goes unsaid."""

import jax.numpy as jnp
import pytest

from compressjax.leaf import pack_affine
from compressjax.select import matches, replace, resolve, weights


@pytest.fixture
def params():
    return {
        "embed": {"embedding": jnp.ones((8, 4))},
        "blocks": {
            "attn": {"q": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}},
            "mlp": {"up": {"kernel": jnp.ones((2, 4, 8))}, "down": {"kernel": jnp.ones((2, 8, 4))}},
        },
        "norm": {"scale": jnp.ones(4)},
    }


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("**", "blocks/mlp/up/kernel", True),
        ("**/mlp/*", "blocks/mlp/up/kernel", True),
        ("**/mlp/*", "mlp/up/kernel", True),
        ("**/mlp/*", "blocks/attn/q/kernel", False),
        ("blocks/mlp/up", "blocks/mlp/up/kernel", True),
        ("*/up", "blocks/mlp/up/kernel", False),
        ("**/u?/kernel", "blocks/mlp/up/kernel", True),
        ("**/up*", "blocks/mlp/up/kernel", True),
        ("a.b/kernel", "aXb/kernel", False),
    ],
)
def test_matches(glob, path, expected):
    assert matches(glob, path) is expected


def test_first_match_wins_and_none_leaves_alone(params):
    chosen = resolve(params, {"**/up": "a", "**/mlp/*": None, "**": "b"})
    assert chosen == {"blocks/mlp/up/kernel": "a", "blocks/attn/q/kernel": "b"}


def test_only_kernels_unless_named(params):
    assert set(resolve(params, {"**": "a"})) == {
        "blocks/attn/q/kernel",
        "blocks/mlp/up/kernel",
        "blocks/mlp/down/kernel",
    }
    assert set(resolve(params, {"embed/embedding": "a"})) == {"embed/embedding"}


def test_unmatched_rule_is_an_error_that_lists_the_weights(params):
    with pytest.raises(ValueError, match=r"rules \['\*\*/attn/z'\] match no weight.*blocks/attn/q/kernel"):
        resolve(params, {"**/attn/z": "a", "**": "b"})


def test_replace_and_weights_round_trip_with_leaves(params):
    leaf = pack_affine(jnp.zeros((4, 8), jnp.uint8), jnp.ones((1, 8)), None, bits=4, group=-1, zero_kind="none")
    new = replace(params, {"blocks/mlp/up/kernel": leaf})
    assert weights(new)["blocks/mlp/up/kernel"] is leaf
    assert weights(params)["blocks/mlp/up/kernel"].shape == (2, 4, 8)
    with pytest.raises(KeyError, match="nowhere"):
        replace(params, {"nowhere": leaf})


def test_other_containers_are_refused():
    with pytest.raises(TypeError, match="found list at 'a'"):
        weights({"a": [jnp.ones(1)]})
