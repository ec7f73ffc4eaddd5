import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from compressjax.numerics.one_equation import one_equation


def formula(x, y, *, power):
    return (x**power + jnp.sin(y)).astype(jnp.float32)


call = one_equation("mixed", formula, lambda x, y, **_: x.shape, lambda **_: jnp.float32)
X, Y = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.linspace(0, 2, 12).reshape(3, 4)


def test_it_is_one_equation_with_its_name():
    (equation,) = jax.make_jaxpr(lambda x, y: call(x, y, power=3))(X, Y).eqns
    assert str(equation.primitive) == "mixed" and equation.params == {"power": 3}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_numbers_are_the_formulas(wrap):
    np.testing.assert_allclose(wrap(lambda x, y: call(x, y, power=2))(X, Y), formula(X, Y, power=2), rtol=1e-6)


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_gradients_are_the_formulas(argnums):
    def total(f):
        return jax.jit(jax.grad(lambda x, y: jnp.sum(f(x, y, power=3) ** 2), argnums))(X, Y)

    for got, wanted in zip(jax.tree.leaves(total(call)), jax.tree.leaves(total(formula)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes, x, y", [((0, 0), X, Y), ((1, None), X, Y[:, 0]), ((None, 0), X[0], Y)])
def test_vmap_is_the_formulas(axes, x, y):
    got, wanted = (jax.vmap(lambda x, y, f=f: f(x, y, power=2), axes)(x, y) for f in (call, formula))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_integers_have_no_gradient_and_need_none():
    codes = jnp.arange(4)
    take = one_equation("pick", lambda c, t, **_: t[c], lambda c, t, **_: c.shape, lambda **_: jnp.float32)
    got = jax.grad(lambda t: jnp.sum(take(codes, t) * jnp.arange(4.0)))(jnp.ones(5))
    np.testing.assert_array_equal(got, [0, 1, 2, 3, 0])


def test_inside_scan_and_remat():
    def body(carry, x):
        return carry + jnp.sum(jax.checkpoint(lambda v: call(v, v, power=2))(x)), None

    def run(x):
        return jax.lax.scan(body, 0.0, x)[0]

    want = jax.grad(lambda x: jnp.sum(formula(x, x, power=2)))(X)
    np.testing.assert_allclose(jax.grad(run)(X), want, rtol=1e-5)


def test_inside_shard_map_a_result_varies_as_its_operands_do():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.arange(8.0)
    f = jax.shard_map(lambda x, y: call(x, y, power=2), mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    g = jax.shard_map(lambda y, x: call(y, x, power=2), mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    y = jnp.ones(2)
    np.testing.assert_allclose(jax.jit(f)(x, y), formula(x, jnp.ones(8), power=2), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(g)(y, x), formula(jnp.ones(8), x, power=2), rtol=1e-6)
