"""How long a model with compressed leaves takes to trace and compile: against width, against depth, against dense.

Only shapes are needed, so no weight is ever made. Times are CPU seconds of the process, the best of a few. "trace"
starts with every cache of jax cleared; "trace_again" is a second, equal model in the same process; "compile" is XLA
alone.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration import Record
from compressjax.leaf import pack_codebook
from compressjax.models import Llama, LlamaConfig
from compressjax.quantization import GPTQ, RTN, gptq, quantize
from compressjax.select import is_matrix, replace, weights

FORMS = ("dense", "affine", "codebook")
_GROUP, _BITS = 32, 3


def decoder(width: int, depth: int) -> LlamaConfig:
    """A Llama-family decoder of a width (a multiple of 64) and depth, proportioned like SmolLM2."""
    return LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=depth,
        num_heads=width // 32,
        num_kv_heads=width // 64,
        head_dim=32,
        tie_embeddings=True,
    )


def shapes(cfg: LlamaConfig, form: str) -> Any:
    """Parameters of a decoder as shapes, dense or with every kernel compressed to 3 bits.

    Raises:
      ValueError: a form that is not one of FORMS.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    dense = jax.eval_shape(Llama(cfg).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    if form == "dense":
        return dense
    if form == "affine":
        return jax.eval_shape(lambda p: quantize(p, RTN(bits=_BITS, group=_GROUP)), dense)
    kernels = {path: w for path, w in weights(dense).items() if is_matrix(path, w)}
    return replace(dense, {path: _codebook(w) for path, w in kernels.items()})


def _codebook(w):
    lead, (rows, cols) = w.shape[:-2], w.shape[-2:]
    codes = jax.ShapeDtypeStruct((*lead, rows, cols), jnp.uint8)
    levels = jax.ShapeDtypeStruct((*lead, 1, 2**_BITS, cols), jnp.float16)
    return jax.eval_shape(functools.partial(pack_codebook, group=-1), codes, levels)


def forward_times(cfg: LlamaConfig, form: str, repeats: int = 3) -> dict[str, float]:
    """CPU seconds to trace, to trace again and to compile one forward pass of ``[1, 32]`` tokens."""
    params = shapes(cfg, form)
    model = Llama(cfg)
    tokens = jax.ShapeDtypeStruct((1, 32), jnp.int32)

    def forward(params, tokens):
        return model.apply({"params": params}, tokens)

    return _times(forward, (params, tokens), repeats)


def gptq_times(width: int, repeats: int = 2) -> dict[str, float]:
    """CPU seconds to trace, to trace again and to compile GPTQ of one ``[width, width]`` weight."""
    w = jax.ShapeDtypeStruct((width, width), jnp.float32)
    record = Record(
        count=jax.ShapeDtypeStruct((), jnp.float32),  # pyright: ignore[reportArgumentType]
        xtx=jax.ShapeDtypeStruct((width, width), jnp.float32),  # pyright: ignore[reportArgumentType]
    )
    cfg = GPTQ(bits=_BITS, group=_GROUP)
    return _times(lambda w, record: gptq(w, record, cfg), (w, record), repeats)


def _times(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> dict[str, float]:
    cold, warm, compiles = [], [], []
    for _ in range(repeats):
        jax.clear_caches()
        cold.append(_seconds(_jitted(function).trace, *arguments))
        # Another function of the same body: what a second model with weights of these shapes costs in one process.
        second = _jitted(function)
        warm.append(_seconds(second.trace, *arguments))
        lowered = second.trace(*arguments).lower()
        compiles.append(_seconds(lowered.compile))
    return {"trace": round(min(cold), 4), "trace_again": round(min(warm), 4), "compile": round(min(compiles), 4)}


def _jitted(function):
    # A new function object, so that jit has not seen it, while what it calls may be known.
    return jax.jit(functools.partial(function))


def _seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start
