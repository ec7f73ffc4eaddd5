"""Shapes of real layers, from the published configurations of three language models."""

from typing import NamedTuple


class Layer(NamedTuple):
    """One weight ``[inputs, outputs]`` of a model."""

    model: str
    name: str
    inputs: int
    outputs: int

    @property
    def title(self) -> str:
        """Model and layer in one word."""
        return f"{self.model}/{self.name}"


def _layers(model, width, heads_width, kv_width, hidden):
    return (
        Layer(model, "q", width, heads_width),
        Layer(model, "kv", width, kv_width),
        Layer(model, "o", heads_width, width),
        Layer(model, "gate", width, hidden),
        Layer(model, "down", hidden, width),
    )


SMOLLM2_135M = _layers("SmolLM2-135M", 576, 576, 192, 1536)
LLAMA3_8B = _layers("Llama-3-8B", 4096, 4096, 1024, 14336)
QWEN3_600M = _layers("Qwen3-0.6B", 1024, 2048, 1024, 3072)
LAYERS = (*SMOLLM2_135M, *LLAMA3_8B, *QWEN3_600M)


def pack_tile(rows: int) -> int:
    """Tile height that a matrix of ``rows`` inputs is packed with: the largest that adds no padding."""
    return next(tile for tile in (256, 128, 64, 32) if -(-rows // 32) * 32 % tile == 0)


def layer(title: str) -> Layer:
    """The layer of a title such as ``Llama-3-8B/gate``."""
    return next(found for found in LAYERS if found.title == title)
