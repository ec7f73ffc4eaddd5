import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from compressjax.adapters import nnx_apply
from compressjax.leaf import leaf
from compressjax.ops import dense as dense_eagerly
from compressjax.ops import logical_shape, matmul

from .leaf_samples import EMBEDDINGS, KINDS, affine

D, F, V, L = 32, 48, 40, 3
# One compilation instead of one per primitive.
dense = jax.jit(dense_eagerly)


class Mlp(nnx.Module):
    def __init__(self, rngs, dtype=None):
        self.up = nnx.Linear(D, F, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(F, D, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))

    def half(self, x):
        return self.up(x)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.layers = nnx.List([Mlp(rngs), Mlp(rngs)])
        self.norm = nnx.BatchNorm(D, use_running_average=True, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.embed.attend(self.norm(x))


class Stack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=L)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return Mlp(rngs)

        self.blocks = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def step(x, block):
            return x + block(x)

        return step(x, self.blocks)


def compressed(params, kind, lead=()):
    make = KINDS[kind]
    up = {**params["up"], "kernel": make((*lead, D, F), 1)}
    return {"up": up, "down": {"kernel": make((*lead, F, D), 2)}}


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=2e-5)


def module_with(make, params):
    """The user's own way with dense weights: a module updated in place and called."""
    module = make(nnx.Rngs(0))
    flat = {}

    def walk(node, path):
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
            else:
                flat[(*path, key)] = value

    walk(params, ())
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        variable.set_value(flat[tuple(map(str, path))])
    nnx.update(module, nnx.state(module))
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_module_equals_the_plain_one_on_dense_weights(kind):
    apply_fn, params = nnx_apply(Mlp(nnx.Rngs(0)))
    params, x = compressed(params, kind), inputs(5, D)
    plain = nnx.jit(module_with(Mlp, dense(params)))
    close(jax.jit(apply_fn)(params, x), plain(x))
    close(jax.jit(apply_fn)(dense(params), x), plain(x))
    batch = inputs(2, 5, D)
    close(jax.jit(jax.vmap(apply_fn, (None, 0)))(params, batch), plain(batch))


def test_eager_equals_jitted_and_the_module_is_not_changed():
    module = Mlp(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(module))
    apply_fn, params = nnx_apply(module)
    x, small = inputs(5, D), compressed(params, "affine")
    close(apply_fn(small, x), jax.jit(apply_fn)(small, x))
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(module)), before)
    assert type(module.up) is nnx.Linear
    chex.assert_trees_all_equal(apply_fn(params, x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_inputs_and_of_the_dense_rest_equal_those_of_the_dense_model(kind):
    apply_fn, params = nnx_apply(Mlp(nnx.Rngs(0)))
    params, x = compressed(params, kind), inputs(5, D)

    def loss(x, bias, params):
        return (apply_fn({**params, "up": {**params["up"], "bias": bias}}, x) ** 2).sum()

    grad = jax.jit(jax.grad(loss, (0, 1)))
    bias = jnp.linspace(-1, 1, F)
    chex.assert_trees_all_close(grad(x, bias, params), grad(x, bias, dense(params)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_lists_and_other_state(kind):
    apply_fn, params = nnx_apply(Tied(nnx.Rngs(0)))
    assert set(params) == {"embed", "layers", "norm"} and set(params["layers"]) == {"0", "1"}
    layers = {name: compressed(p, "affine") for name, p in params["layers"].items()}
    params = {**params, "embed": {"embedding": EMBEDDINGS[kind]((V, D))}, "layers": layers}
    ids = jnp.asarray([[0, 3, V - 1], [7, 7, 1]])
    close(jax.jit(apply_fn)(params, ids), nnx.jit(module_with(Tied, dense(params)))(ids))
    with pytest.raises(ValueError, match="Embed wants integer inputs, got float32"):
        apply_fn(params, ids.astype(jnp.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_kernels_run_inside_scan(kind):
    apply_fn, params = nnx_apply(Stack(nnx.Rngs(0)))
    params, x = {"blocks": compressed(params["blocks"], kind, (L,))}, inputs(4, D)

    def loss(x, params):
        y = apply_fn(params, x)
        return (y**2).sum(), y

    grad = jax.jit(jax.grad(loss, has_aux=True))
    chex.assert_trees_all_close(grad(x, params), grad(x, dense(params)), rtol=1e-4, atol=1e-4)


def test_one_trace_for_many_weights():
    apply_fn, params = nnx_apply(Mlp(nnx.Rngs(0)))
    counted = jax.jit(chex.assert_max_traces(apply_fn, n=1))
    for seed in (0, 1):
        counted({**compressed(params, "affine"), "down": {"kernel": affine((F, D), seed)}}, inputs(4, D, seed=seed))


def test_shard_map_over_the_batch():
    apply_fn, params = nnx_apply(Mlp(nnx.Rngs(0)))
    params, x = compressed(params, "sum"), inputs(8, D)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    spread = jax.jit(jax.shard_map(apply_fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")))
    close(spread(params, x), jax.jit(apply_fn)(params, x))


@pytest.mark.standard_promotion("flax layers promote bfloat16 biases against float32 inputs")
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_output_dtypes_are_those_of_the_plain_module(dtype):
    make = lambda rngs: Mlp(rngs, dtype)  # noqa: E731
    apply_fn, params = nnx_apply(make(nnx.Rngs(0)))
    params, x = compressed(params, "affine"), inputs(5, D).astype(jnp.bfloat16)
    got, wanted = jax.jit(apply_fn)(params, x), nnx.jit(module_with(make, dense(params)))(x)
    assert got.dtype == wanted.dtype
    # bfloat16 keeps 8 bits; errors of 48 summed terms grow with the square root of their number.
    chex.assert_trees_all_close(got.astype(jnp.float32), wanted.astype(jnp.float32), atol=2**-8 * 48**0.5)


@pytest.mark.parametrize("axis, out", [((-1,), (4, 6)), ((-2, -1), (5,)), ((1, 3), (2, 3))])
def test_linear_general_with_the_kernel_as_a_matrix(axis, out):
    x = inputs(2, 4, 3, 8)
    module = nnx.LinearGeneral(tuple(x.shape[a] for a in axis), out, axis=axis, rngs=nnx.Rngs(0))
    apply_fn, params = nnx_apply(module)
    rows = int(np.prod([x.shape[a] for a in axis]))
    kernel = affine((rows, int(np.prod(out))), group=8)
    module.kernel.set_value(dense(kernel).reshape(params["kernel"].shape))
    close(apply_fn({**params, "kernel": kernel}, x), module(x))


def test_attention_of_flax_runs_on_matrices():
    module = nnx.MultiHeadAttention(num_heads=4, in_features=D, decode=False, rngs=nnx.Rngs(0))
    apply_fn, params = nnx_apply(module)
    leaves = {name: affine((D, D), seed) for seed, name in enumerate(("query", "key", "value", "out"))}
    small = {**params, **{name: {**params[name], "kernel": w} for name, w in leaves.items()}}
    full = {
        **params,
        **{
            name: {**params[name], "kernel": dense(w).reshape(params[name]["kernel"].shape)}
            for name, w in leaves.items()
        },
    }
    x = inputs(2, 5, D)
    close(jax.jit(apply_fn)(small, x), jax.jit(apply_fn)(full, x))


def test_other_methods_and_shared_layers():
    class Shared(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(D, D, rngs=rngs)
            self.again = self.first

        def __call__(self, x):
            return self.again(self.first(x))

    half, params = nnx_apply(Mlp(nnx.Rngs(0)), method="half")
    small, x = compressed(params, "affine"), inputs(5, D)
    close(half(small, x), x @ dense(small)["up"]["kernel"])
    apply_fn, params = nnx_apply(Shared(nnx.Rngs(0)))
    assert len(params) == 1
    ((name, layer),) = params.items()
    kernel = affine((D, D))
    close(apply_fn({name: {**layer, "kernel": kernel}}, x), x @ dense(kernel) @ dense(kernel))


def test_every_product_goes_through_matmul_so_that_taps_see_inputs():
    @leaf()
    class Tap:
        inner: jax.Array

    seen = []
    dense_eagerly.register(Tap)(lambda w: dense_eagerly(w.inner))
    logical_shape.register(Tap)(lambda w: logical_shape(w.inner))
    matmul.register(Tap)(lambda x, w: seen.append(x.shape) or matmul(x, w.inner))
    apply_fn, params = nnx_apply(Mlp(nnx.Rngs(0)))
    x = inputs(5, D)
    tapped = {name: {**p, "kernel": Tap(inner=p["kernel"])} for name, p in params.items()}
    close(apply_fn(tapped, x), apply_fn(params, x))
    assert seen == [(5, D), (5, F)]


# ---------------------------------------------------------------------------------------------- refusals


class Own(nnx.Module):
    def __init__(self, rngs, planned):
        self.w = nnx.Param(rngs.params.normal((D, F)))
        self.planned = planned

    def __call__(self, x):
        return matmul(x, self.w.get_value()) if self.planned else x @ self.w[...]


class Changed(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x) * 2


@pytest.mark.parametrize(
    "make, path, name",
    [
        (lambda r: nnx.Sequential(nnx.Conv(D, F, (3,), rngs=r)), ("layers", "0"), "Conv at 'layers/0'"),
        (lambda r: nnx.Einsum("bti,io->bto", (D, F), rngs=r), (), "Einsum at the top"),
        (lambda r: Changed(D, F, rngs=r), (), "Changed at the top"),
    ],
)
def test_layers_without_a_rule_are_refused_and_named(make, path, name):
    apply_fn, params = nnx_apply(make(nnx.Rngs(0)))
    small = {"kernel": affine((D, F)), "bias": jnp.ones(F)}
    here = params
    for key in path:
        here = here[key]
    small = {key: small[key] for key in here}
    for key in reversed(path):
        small = {key: small}
    with pytest.raises(NotImplementedError, match=f"{name} cannot use its compressed kernel"):
        apply_fn(small, inputs(2, 6, D))


def test_options_that_a_compressed_layer_cannot_honour():
    kernel, x = {"kernel": affine((D, F))}, inputs(2, 6, D)
    rngs = nnx.Rngs(0)
    own = lambda *args, **kwargs: jax.lax.dot_general(*args, **kwargs)  # noqa: E731
    for module in (
        nnx.Linear(D, F, use_bias=False, dot_general=own, rngs=rngs),
        nnx.Linear(D, F, use_bias=False, preferred_element_type=jnp.float32, rngs=rngs),
        nnx.LinearGeneral(D, F, use_bias=False, batch_axis={0: 2}, rngs=rngs),
    ):
        with pytest.raises(NotImplementedError, match="with a compressed kernel takes no"):
            nnx_apply(module)[0](kernel, x)
    with pytest.raises(ValueError, match=r"kernel of logical shape \[32, 48\] does not apply to inputs \[2, 6, 31\]"):
        nnx_apply(nnx.Linear(D, F, use_bias=False, rngs=rngs))[0](kernel, x[..., 1:])


def test_own_modules_may_read_leaves_but_not_use_them_as_arrays():
    x, kernel = inputs(2, D), affine((D, F))
    close(nnx_apply(Own(nnx.Rngs(0), True))[0]({"w": kernel}, x), x @ dense(kernel))
    with pytest.raises(TypeError):
        nnx_apply(Own(nnx.Rngs(0), False))[0]({"w": kernel}, x)


def test_params_must_have_the_paths_of_the_module():
    apply_fn, params = nnx_apply(Mlp(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"missing \['down/kernel'\], not in the module \['more'\]"):
        apply_fn({"up": params["up"], "more": jnp.ones(3)}, inputs(2, D))
