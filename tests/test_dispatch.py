"""Verbs find rules by type, and say what is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.dispatch import verb


def make():
    @verb(on="w")
    def act(x, w, scale=1):
        """Doc."""

    @act.register(jax.Array)
    def _(x, w, scale=1):
        return "array"

    @act.register(dict)
    def _(x, w, scale=1):
        return f"dict*{scale}"

    return act


class Sub(dict):
    """Finds its parent's rule."""


def test_rules_are_found():
    act = make()
    assert act(0, jnp.ones(1)) == "array"
    assert act(0, np.ones(1)) == "array"
    assert act(0, jax.ShapeDtypeStruct((1,), jnp.float32)) == "array"
    assert act(0, w=Sub(), scale=3) == "dict*3"
    assert jax.eval_shape(lambda w: jnp.zeros(len(act(0, w))), jnp.ones(2)).shape == (5,)
    assert act.__doc__ == "Doc."


def test_missing_rule_names_verb_type_and_known():
    with pytest.raises(NotImplementedError, match=r"act has no rule for w of type set; known: Array, dict"):
        make()(0, set())


def test_missing_argument():
    with pytest.raises(TypeError, match="misses the argument 'w'"):
        make()(0)
    with pytest.raises(TypeError, match="no such argument"):
        verb(on="z")(lambda x: x)
