import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from compressjax.adapters import apply_compressed, linen_apply
from compressjax.leaf import leaf
from compressjax.ops import dense as dense_eagerly
from compressjax.ops import logical_shape, matmul

from .leaf_samples import EMBEDDINGS, KINDS, affine

D, F, V, L = 32, 48, 40, 3
# One compilation instead of one per primitive.
dense = jax.jit(dense_eagerly)


class Mlp(nn.Module):
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(F, name="up", dtype=self.dtype)(x)
        return nn.Dense(D, use_bias=False, name="down", dtype=self.dtype)(jnp.tanh(h))


class Tied(nn.Module):
    def setup(self):
        self.embed = nn.Embed(V, D)
        self.mlp = Mlp()
        self.norm = nn.LayerNorm()

    def __call__(self, ids):
        return self.embed.attend(self.norm(self.mlp(self.embed(ids))))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + Mlp(name="mlp")(x), None


class Stack(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        scanned = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=L)
        return scanned(name="blocks")(x, None)[0]


def mlp_params(kind, lead=()):
    make = KINDS[kind]
    return {
        "up": {"kernel": make((*lead, D, F), 1), "bias": jnp.broadcast_to(jnp.linspace(-1, 1, F), (*lead, F))},
        "down": {"kernel": make((*lead, F, D), 2)},
    }


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_module_equals_the_plain_one_on_dense_weights(kind):
    params, x = mlp_params(kind), inputs(5, D)
    plain = jax.jit(lambda p, x: Mlp().apply({"params": p}, x))
    apply_fn = jax.jit(linen_apply(Mlp()))
    close(apply_fn(params, x), plain(dense(params), x))
    close(apply_fn(dense(params), x), plain(dense(params), x))
    batch = inputs(2, 5, D)
    close(jax.jit(jax.vmap(apply_fn, (None, 0)))(params, batch), plain(dense(params), batch))


def test_eager_equals_jitted():
    params, x = mlp_params("affine"), inputs(5, D)
    close(linen_apply(Mlp())(params, x), jax.jit(linen_apply(Mlp()))(params, x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_inputs_and_of_the_dense_rest_equal_those_of_the_dense_model(kind):
    params, x = mlp_params(kind), inputs(5, D)
    apply_fn = linen_apply(Mlp())

    def loss(x, bias, params, apply_fn):
        return (apply_fn({**params, "up": {**params["up"], "bias": bias}}, x) ** 2).sum()

    grad = jax.jit(jax.grad(loss, (0, 1)), static_argnums=3)
    got = grad(x, params["up"]["bias"], params, apply_fn)
    wanted = grad(x, params["up"]["bias"], dense(params), lambda p, x: Mlp().apply({"params": p}, x))
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_look_up_and_attend(kind):
    params = {
        "embed": {"embedding": EMBEDDINGS[kind]((V, D))},
        "mlp": mlp_params("affine"),
        "norm": {"scale": jnp.ones(D), "bias": jnp.zeros(D)},
    }
    ids = jnp.asarray([[0, 3, V - 1], [7, 7, 1]])
    wanted = jax.jit(Tied().apply)({"params": dense(params)}, ids)
    close(jax.jit(linen_apply(Tied()))(params, ids), wanted)
    close(
        jax.jit(linen_apply(Tied(), method=lambda m, i: m.embed(i)))(params, ids),
        dense(params)["embed"]["embedding"][ids],
    )
    with pytest.raises(ValueError, match="Embed at 'embed' wants integer inputs, got float32"):
        linen_apply(Tied())(params, ids.astype(jnp.float32))


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_kernels_run_inside_scan_and_remat(kind, remat):
    params, x = {"blocks": {"mlp": mlp_params(kind, (L,))}}, inputs(4, D)
    plain = lambda p, x: Stack().apply({"params": p}, x)  # noqa: E731

    def loss(x, params, apply_fn):
        y = apply_fn(params, x)
        return (y**2).sum(), y

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    got, wanted = grad(x, params, linen_apply(Stack(remat))), grad(x, dense(params), plain)
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_trace_is_flat_in_depth_and_made_once():
    apply_fn = linen_apply(Stack())

    def equations(layers):
        params = {"blocks": {"mlp": mlp_params("affine", (layers,))}}
        return str(jax.make_jaxpr(linen_apply(Stacked(layers)))(params, inputs(4, D))).count("\n")

    class Stacked(nn.Module):
        layers: int

        @nn.compact
        def __call__(self, x):
            scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
            return scanned(name="blocks")(x, None)[0]

    assert equations(2) == equations(6)
    counted = jax.jit(chex.assert_max_traces(apply_fn, n=1))
    for seed in (0, 1):
        params = {"blocks": {"mlp": {**mlp_params("affine", (L,)), "down": {"kernel": affine((L, F, D), seed)}}}}
        counted(params, inputs(4, D, seed=seed))


def test_shard_map_over_the_batch():
    params, x = mlp_params("sum"), inputs(8, D)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    apply_fn = linen_apply(Mlp())
    spread = jax.jit(jax.shard_map(apply_fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")))
    close(spread(params, x), jax.jit(apply_fn)(params, x))


@pytest.mark.standard_promotion("flax layers promote bfloat16 biases against float32 inputs")
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_output_dtypes_are_those_of_the_plain_module(dtype, x_dtype):
    params, x = mlp_params("affine"), inputs(5, D).astype(x_dtype)
    got = jax.jit(linen_apply(Mlp(dtype)))(params, x)
    wanted = jax.jit(Mlp(dtype).apply)({"params": dense(params)}, x)
    assert got.dtype == wanted.dtype
    # bfloat16 keeps 8 bits; errors of 48 summed terms grow with the square root of their number.
    chex.assert_trees_all_close(got.astype(jnp.float32), wanted.astype(jnp.float32), atol=2**-8 * 48**0.5)


@pytest.mark.parametrize("axis, features", [(-1, (4, 6)), ((-2, -1), 5), ((1, 3), (2, 3)), ((-1, 0), (7,))])
def test_dense_general_with_the_kernel_as_a_matrix(axis, features):
    x, module = inputs(2, 4, 3, 8), nn.DenseGeneral(features, axis=axis)
    plain = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    axes = sorted(a % 4 for a in np.atleast_1d(axis).tolist())
    rows = int(np.prod([x.shape[a] for a in axes]))
    kernel = affine((rows, plain["kernel"].size // rows), group=8)
    bias = jnp.linspace(0, 1, plain["bias"].size).reshape(plain["bias"].shape)
    full = {"kernel": dense(kernel).reshape(plain["kernel"].shape), "bias": bias}
    wanted = jax.jit(module.apply)({"params": full}, x)
    close(jax.jit(linen_apply(module))({"kernel": kernel, "bias": bias}, x), wanted)


def test_attention_of_flax_runs_on_matrices():
    x, module = inputs(2, 5, D), nn.MultiHeadDotProductAttention(num_heads=4)
    plain = jax.jit(module.init)(jax.random.key(0), x)["params"]
    leaves = {name: affine((D, D), seed) for seed, name in enumerate(("query", "key", "value", "out"))}
    params = {name: {**plain[name], "kernel": w} for name, w in leaves.items()}
    full = {
        name: {**plain[name], "kernel": dense(w).reshape(plain[name]["kernel"].shape)} for name, w in leaves.items()
    }
    close(jax.jit(linen_apply(module))(params, x), jax.jit(module.apply)({"params": full}, x))


def test_other_collections_and_methods():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(F, name="up")(x))

    x = inputs(6, D)
    variables = Net().init(jax.random.key(0), x)
    kernel = affine((D, F))
    with_kernel = lambda k: {**variables, "params": {**variables["params"], "up": {"kernel": k, "bias": jnp.ones(F)}}}  # noqa: E731
    got = apply_compressed(Net(), with_kernel(kernel), x, mutable=["batch_stats"])
    close(got, Net().apply(with_kernel(dense(kernel)), x, mutable=["batch_stats"]))


def test_boxed_parameters_and_precision():
    x, kernel = inputs(3, D), affine((D, F))
    boxed = {
        "kernel": nn.Partitioned(kernel, names=(None, "model")),
        "bias": nn.Partitioned(jnp.ones(F), names=("model",)),
    }
    for precision in ("highest", jax.lax.Precision.HIGHEST):
        module = nn.Dense(F, precision=precision)
        close(linen_apply(module)(boxed, x), x @ dense(kernel) + 1)
        jaxpr = str(jax.make_jaxpr(linen_apply(module))(boxed, x))
        assert "HIGHEST" in jaxpr
    with pytest.raises(NotImplementedError, match="precision"):
        linen_apply(nn.Dense(F, precision=(jax.lax.Precision.HIGH,) * 2))(boxed, x)


def test_every_product_goes_through_matmul_so_that_taps_see_inputs():
    @leaf()
    class Tap:
        inner: jax.Array

    seen = []
    dense_eagerly.register(Tap)(lambda w: dense_eagerly(w.inner))
    logical_shape.register(Tap)(lambda w: logical_shape(w.inner))
    matmul.register(Tap)(lambda x, w: seen.append(x.shape) or matmul(x, w.inner))
    params, x = mlp_params("affine"), inputs(5, D)
    tapped = {name: {**p, "kernel": Tap(inner=p["kernel"])} for name, p in params.items()}
    close(linen_apply(Mlp())(tapped, x), linen_apply(Mlp())(params, x))
    assert seen == [(5, D), (5, F)]


# ---------------------------------------------------------------------------------------------- refusals


class Own(nn.Module):
    read: str = "param"

    @nn.compact
    def __call__(self, x):
        if self.read == "param":
            return x @ self.param("w", nn.initializers.zeros, (D, F))
        w = self.get_variable("params", "w")
        return x @ w if self.read == "plain" else matmul(x, w)


class Changed(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return super().__call__(x) * 2


class Kept(nn.Dense):
    pass


class Replaced(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", self.kernel_init, (x.shape[-1], self.features))


def test_layers_without_a_rule_are_refused_and_named():
    x, kernel = inputs(2, 6, D), affine((D, F))
    with pytest.raises(NotImplementedError, match="Conv at 'layers_0' cannot use its compressed kernel"):
        linen_apply(nn.Sequential([nn.Conv(F, (3,))]))({"layers_0": {"kernel": kernel}}, x)
    with pytest.raises(NotImplementedError, match="Einsum at the top cannot use"):
        linen_apply(nn.Einsum((D, F), "bti,io->bto"))({"kernel": kernel}, x)
    with pytest.raises(NotImplementedError, match="Dense at .* has a dot_general of its own"):
        linen_apply(nn.Dense(F, dot_general=jax.lax.dot_general))({"kernel": kernel, "bias": jnp.ones(F)}, x)
    with pytest.raises(NotImplementedError, match="batch_dims"):
        linen_apply(nn.DenseGeneral(F, batch_dims=(0,)))({"kernel": kernel, "bias": jnp.ones(F)}, x)
    with pytest.raises(ValueError, match=r"kernel of logical shape \[32, 48\] does not apply to inputs \[2, 6, 31\]"):
        linen_apply(nn.Dense(F))({"kernel": kernel, "bias": jnp.ones(F)}, x[..., 1:])
    with pytest.raises(ValueError, match=r"kernel of logical shape \[3, 32, 48\]"):
        linen_apply(nn.Dense(F))({"kernel": affine((3, D, F)), "bias": jnp.ones(F)}, x)


def test_own_modules_may_read_leaves_but_not_use_them_as_arrays():
    x, kernel = inputs(2, D), affine((D, F))
    close(linen_apply(Own("ops"))({"w": kernel}, x), x @ dense(kernel))
    for read in ("param", "plain"):
        with pytest.raises(NotImplementedError, match="Own at the top cannot use its compressed w"):
            linen_apply(Own(read))({"w": kernel}, x)
    with pytest.raises(TypeError):
        linen_apply(Own("plain"))({"w": None}, x)


def test_subclasses_keep_the_rule_where_they_run_the_layers_own_code():
    x, params = inputs(2, D), {"kernel": affine((D, F)), "bias": jnp.ones(F)}
    plain = x @ dense(params["kernel"]) + 1
    close(linen_apply(Kept(F))(params, x), plain)
    close(linen_apply(Changed(F))(params, x), plain * 2)
    close(linen_apply(nn.remat(nn.Dense)(F))(params, x), plain)
    with pytest.raises(NotImplementedError, match="Replaced at the top cannot use its compressed kernel"):
        linen_apply(Replaced(F))(params, x)


def test_dense_modules_and_init_are_untouched():
    x = inputs(2, D)
    variables = Mlp().init(jax.random.key(0), x)
    chex.assert_trees_all_equal(linen_apply(Mlp())(variables["params"], x), Mlp().apply(variables, x))
