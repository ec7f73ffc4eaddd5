import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Fisher, Hessian, calibrate
from compressjax.models import EfficientNetLite, EfficientNetLiteConfig
from compressjax.models.efficientnet_lite import Block, MBConv, MBConvStage, StoredNorm
from compressjax.ops import dense
from compressjax.quantization import GPTQ, RTN, quantize
from compressjax.select import is_matrix, weights

CFG = EfficientNetLiteConfig(
    num_classes=7,
    stem_features=8,
    head_features=24,
    stages=(
        MBConvStage(repeats=1, kernel=3, stride=1, expand=1, features=8),
        MBConvStage(repeats=1, kernel=5, stride=2, expand=3, features=16),
    ),
)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 18, 13, 3)), jnp.float32)
KERNELS = {
    "blocks_0/project/kernel",
    "blocks_1/expand/kernel",
    "blocks_1/project/kernel",
    "head/kernel",
    "classifier/kernel",
}


def random(shapes: dict, seed: int = 1) -> dict:
    """Parameters with which activations stay of order one and every norm differs from the identity."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        kind = path[-1].key
        if kind in ("scale", "var"):
            values = rng.uniform(0.5, 2.0, shape.shape)
        else:
            fan_in = 1 if len(shape.shape) == 1 else np.prod(shape.shape[:-1])
            values = rng.standard_normal(shape.shape) * (0.5 if len(shape.shape) == 1 else 2 / np.sqrt(fan_in))
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def params() -> dict:
    return random(jax.eval_shape(EfficientNetLite(CFG).init, jax.random.key(0), IMAGES)["params"])


@jax.jit
def logits(params: dict, images: jax.Array) -> jax.Array:
    return EfficientNetLite(CFG).apply({"params": params}, images)


def test_parameters(params):
    norm = lambda width: dict.fromkeys(("scale", "bias", "mean", "var"), (width,))  # noqa: E731

    def block(inputs, inner, outputs, side):
        return {
            "expand": {"kernel": (inputs, inner)},
            "expand_norm": norm(inner),
            "depthwise": {"filters": (side, side, 1, inner)},
            "depthwise_norm": norm(inner),
            "project": {"kernel": (inner, outputs)},
            "project_norm": norm(outputs),
        }

    first = block(8, 8, 8, 3)
    assert jax.tree.map(jnp.shape, params) == {
        "stem": {"filters": (3, 3, 3, 8)},
        "stem_norm": norm(8),
        "blocks_0": {name: shape for name, shape in first.items() if not name.startswith("expand")},
        "blocks_1": block(8, 24, 16, 5),
        "head": {"kernel": (16, 24)},
        "head_norm": norm(24),
        "classifier": {"kernel": (24, 7), "bias": (7,)},
    }
    assert {path for path, w in weights(params).items() if is_matrix(path, w)} == KERNELS


# Millions of trained weights as the public checkpoints of Lite0 to Lite4 have them; statistics of norms not counted.
@pytest.mark.parametrize(
    "width, depth, blocks, millions",
    [(1.0, 1.0, 16, 4.65), (1.0, 1.1, 21, 5.42), (1.1, 1.2, 21, 6.09), (1.2, 1.4, 24, 8.20), (1.4, 1.8, 30, 13.01)],
)
def test_published_sizes(width, depth, blocks, millions):
    cfg = EfficientNetLiteConfig(width=width, depth=depth)
    shapes = jax.eval_shape(EfficientNetLite(cfg).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    trained = sum(s.size for path, s in weights(shapes).items() if path.rpartition("/")[2] not in ("mean", "var"))
    assert len(cfg.blocks) == blocks
    assert trained / 1e6 == pytest.approx(millions, abs=0.005)


def numpy_norm(x: np.ndarray, p: dict) -> np.ndarray:
    return (x - p["mean"]) / np.sqrt(p["var"] + 1e-3) * p["scale"] + p["bias"]


def numpy_depthwise(x: np.ndarray, filters: np.ndarray, stride: int) -> np.ndarray:
    """Pixel by pixel; a side of n gives ceil(n / stride), with what padding is missing put at the end."""
    side, (batch, height, width, channels) = filters.shape[0], x.shape
    rows, cols = -(-height // stride), -(-width // stride)
    up, left = ((max((n - 1) * stride + side - m, 0)) // 2 for n, m in ((rows, height), (cols, width)))
    out = np.zeros((batch, rows, cols, channels))
    for r in range(rows):
        for c in range(cols):
            for i in range(side):
                for j in range(side):
                    y, z = r * stride + i - up, c * stride + j - left
                    if 0 <= y < height and 0 <= z < width:
                        out[:, r, c] += x[:, y, z] * filters[i, j, 0]
    return out


@pytest.mark.parametrize(
    "stride, side, inputs, inner, outputs", [(1, 3, 6, 18, 6), (2, 5, 6, 12, 6), (2, 3, 6, 18, 4), (1, 5, 6, 6, 4)]
)
def test_a_block_against_numpy(stride, side, inputs, inner, outputs):
    cfg = MBConv(stride=stride, kernel=side, inputs=inputs, inner=inner, outputs=outputs)
    x = np.random.default_rng(2).uniform(-2, 2, (2, 8, 7, inputs)).astype(np.float32)
    block = Block(cfg, 1e-3)
    params = random(jax.eval_shape(block.init, jax.random.key(0), x)["params"])
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = x.astype(np.float64)
    if inner != inputs:
        h = np.clip(numpy_norm(h @ p["expand"]["kernel"], p["expand_norm"]), 0, 6)
    h = np.clip(numpy_norm(numpy_depthwise(h, p["depthwise"]["filters"], stride), p["depthwise_norm"]), 0, 6)
    h = numpy_norm(h @ p["project"]["kernel"], p["project_norm"])
    want = h + x if stride == 1 and inputs == outputs else h
    got = jax.jit(block.apply)({"params": params}, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_a_norm_folds_into_the_kernel_before_it():
    rng = np.random.default_rng(3)
    p = {name: jnp.asarray(rng.uniform(0.5, 2, 9), jnp.float32) for name in ("scale", "bias", "mean", "var")}
    x, kernel = rng.standard_normal((4, 5)).astype(np.float32), rng.standard_normal((5, 9)).astype(np.float32)
    gain = p["scale"] / jnp.sqrt(p["var"] + 1e-3)
    folded = x @ (kernel * gain[None]) + (p["bias"] - p["mean"] * gain)[None]
    np.testing.assert_allclose(StoredNorm(1e-3).apply({"params": p}, x @ kernel), folded, rtol=1e-4, atol=1e-5)


def test_images_do_not_see_each_other(params):
    together = logits(params, IMAGES)
    assert together.shape == (3, 7) and together.dtype == jnp.float32
    np.testing.assert_allclose(logits(params, IMAGES[1:2])[0], together[1], rtol=1e-4, atol=1e-5)


def test_compressed_kernels(params):
    small = quantize(params, RTN(bits=8, group=-1))
    found = weights(small)
    assert all(not isinstance(found[path], jax.Array) for path in KERNELS)
    assert all(isinstance(w, jax.Array) for path, w in found.items() if path not in KERNELS)
    got, exact = logits(small, IMAGES), logits(params, IMAGES)
    np.testing.assert_allclose(got, logits(dense(small), IMAGES), rtol=1e-4, atol=1e-4)
    error = float(jnp.abs(got - exact).max() / jnp.abs(exact).max())
    assert 0 < error < 0.05  # 8 bits: a part in 500 per weight, over five layers


def test_statistics_of_every_kernel(params):
    stats = calibrate(logits, params, [IMAGES[:2], IMAGES[2:]], Hessian())
    assert set(stats) == KERNELS
    # Pixels are the tokens: 9 x 7 after the stem, 5 x 4 after the strided block, one per image after pooling.
    pixels = {"blocks_0/project": 63, "blocks_1/expand": 63, "blocks_1/project": 20, "head": 20, "classifier": 1}
    for path, count in pixels.items():
        assert float(stats[f"{path}/kernel"].count) == 3 * count
    features = EfficientNetLite(CFG).apply(
        {"params": params}, IMAGES, capture_intermediates=lambda module, _: module.name == "head_norm"
    )[1]["intermediates"]["head_norm"]["__call__"][0]
    pooled = jnp.clip(features, 0, 6).mean((1, 2))
    np.testing.assert_allclose(stats["classifier/kernel"].xtx, pooled.T @ pooled, rtol=1e-4, atol=1e-5)


def test_second_order_rounding_beats_rounding_on_the_layer_it_saw(params):
    stats = calibrate(logits, params, [IMAGES])
    path, exact = "head/kernel", params["head"]["kernel"]

    def error(cfg) -> float:
        difference = weights(dense(quantize(params, {path: cfg}, stats=stats)))[path] - exact
        return float(jnp.sum(difference * (stats[path].xtx @ difference)))

    assert error(GPTQ(bits=3, group=-1)) < error(RTN(bits=3, group=-1))


def test_gradients_by_image(params):
    loss = lambda out, images: -jax.nn.log_softmax(out)[:, 0]  # noqa: E731
    stats = calibrate(logits, params, [IMAGES], Fisher(loss=loss))
    gradient = jax.jit(jax.grad(lambda p, x: loss(logits(p, x[None]), x)[0]))
    per_image = [weights(gradient(params, x)) for x in IMAGES]
    for path in KERNELS:
        want = sum(g[path] ** 2 for g in per_image)
        np.testing.assert_allclose(stats[path].fisher, want, rtol=1e-3, atol=1e-5 * float(want.max()))


def test_refusals(params):
    with pytest.raises(ValueError, match=r"\[batch, height, width, 3\], got \(18, 13, 3\)"):
        logits(params, IMAGES[0])
    with pytest.raises(ValueError, match=r"got \(3, 18, 13, 1\)"):
        logits(params, IMAGES[..., :1])
    with pytest.raises(TypeError, match="images must be floating point"):
        logits(params, jnp.zeros((1, 8, 8, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"EfficientNetLiteConfig.width must be > 0, got -1"):
        EfficientNetLiteConfig(width=-1)
    with pytest.raises(ValueError, match=r"stages must name at least one"):
        EfficientNetLiteConfig(stages=())
    with pytest.raises(ValueError, match=r"MBConvStage.kernel must be odd, got 4"):
        dataclasses.replace(CFG.stages[0], kernel=4)
    with pytest.raises(ValueError, match=r"MBConvStage.repeats must be >= 1, got 0"):
        dataclasses.replace(CFG.stages[0], repeats=0)
