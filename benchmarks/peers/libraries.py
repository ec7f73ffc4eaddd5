"""``python -m benchmarks.peers.libraries LIBRARY MODEL OUT TOKENS BITS GROUP``: one library's call, in its own process.

Imports of torch and of the libraries stay inside the functions, so that only this process needs them.
"""

import json
import resource
import sys
import time
from importlib.metadata import version

import numpy as np


def llm_compressor(model: str, out: str, tokens: np.ndarray, bits: int, group: int) -> str:
    """GPTQ of llm-compressor, asymmetric, with its default static activation order; its version."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=False, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    rows = {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        output_dir=out,
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens),
    )
    return version("llmcompressor")


def gptqmodel(model: str, out: str, tokens: np.ndarray, bits: int, group: int) -> str:
    """GPTQModel, asymmetric, with its other defaults; its version."""
    from gptqmodel import GPTQModel, QuantizeConfig

    loaded = GPTQModel.load(model, QuantizeConfig(bits=bits, group_size=group, sym=False))
    loaded.quantize([{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens], batch_size=1)
    loaded.save(out)
    return version("gptqmodel")


LIBRARIES = {"llm-compressor": llm_compressor, "gptqmodel": gptqmodel}


def main(arguments: list[str]) -> int:
    """Runs one library and prints what it cost."""
    library, model, out, tokens, bits, group = arguments
    ids = np.load(tokens)
    wall, cpu = time.perf_counter(), time.process_time()
    used = LIBRARIES[library](model, out, ids, int(bits), int(group))
    cost = {
        "version": used,
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }
    print(json.dumps(cost), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
