"""``python -m benchmarks.quantize.speed``: FLOP/s of calibration passes beside those of a plain jitted forward pass.

Counted are the products of weights and of attention scores, and for calibration half of each Gram matrix, which is
symmetric. Norms, rotations and softmax are left out of both.
"""

import argparse
import functools
import json
import sys
import time

import jax
import jax.numpy as jnp

from benchmarks import language_model as lm
from compressjax.models import Llama, LlamaBlocks, LlamaConfig
from compressjax.quantization import GPTQ
from compressjax.sequential import compress_blocks, in_chunks


def forward_flops(cfg: LlamaConfig, windows: int, length: int) -> float:
    """Floating-point operations of all blocks on ``windows x length`` tokens; attention is computed in full."""
    d, f, q, kv = cfg.hidden_size, cfg.intermediate_size, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    weights = d * (q + 2 * kv) + q * d + 3 * d * f
    return cfg.num_layers * windows * length * (2.0 * weights + 4.0 * length * q)


def gram_flops(cfg: LlamaConfig, windows: int, length: int) -> float:
    """Operations of the four Hessians of every block, each a symmetric product."""
    widths = (cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.hidden_size, cfg.intermediate_size)
    return cfg.num_layers * windows * length * float(sum(width * (width + 1) for width in widths))


def measure(bed: lm.TestBed, windows: int, length: int, batch: int = 2) -> dict:
    """Both rates in the same process, compilation excluded, best of two."""
    tokens = jnp.asarray(lm.calibration("wikipedia:train", windows, length))
    plain = _best(lambda: _plain(bed, tokens, batch))
    calibrated = _best(lambda: _calibration(bed, tokens, batch))
    forward, gram = forward_flops(bed.cfg, windows, length), gram_flops(bed.cfg, windows, length)
    rates = {"plain_gflops": forward / plain / 1e9, "calibration_gflops": (forward + gram) / calibrated / 1e9}
    return {
        **{key: round(value, 2) for key, value in rates.items()},
        "ratio": round(rates["calibration_gflops"] / rates["plain_gflops"], 3),
        "plain_seconds": round(plain, 2),
        "calibration_seconds": round(calibrated, 2),
        "tokens": windows * length,
    }


def _plain(bed, tokens, batch):
    for at in range(0, len(tokens), batch):
        _hidden(bed.cfg, bed.params, tokens[at : at + batch]).block_until_ready()


@functools.partial(jax.jit, static_argnums=0)
def _hidden(cfg, params, tokens):
    return Llama(cfg).apply({"params": params}, tokens, method="hidden")[0]


def _calibration(bed, tokens, batch):
    rest = {name: value for name, value in bed.params.items() if name != "blocks"}

    def block(index):
        return jax.tree.map(lambda a: a[index], bed.params["blocks"])

    # Blocks said to be finished are run and measured, but not compressed.
    for _ in compress_blocks(LlamaBlocks(bed.cfg), rest, block, in_chunks(tokens, None, batch), GPTQ(), finished=block):
        raise RuntimeError("a block was compressed, so this does not time calibration alone")


def _best(function) -> float:
    function()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize.speed")
    parser.add_argument("--quick", action="store_true", help="two blocks, short windows")
    args = parser.parse_args(arguments)
    windows, length = (4, 64) if args.quick else (8, 512)
    print(json.dumps(measure(lm.smollm2(2 if args.quick else None), windows, length)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
