"""``python -m benchmarks.kernels.decode_step [--write]``: one decoding step of SmolLM2-135M with 4-bit leaves for H100.

The whole jitted step is compiled with no GPU present: kernels are counted in the compiled program, temporaries are set
against the bytes of the dense weights, and the same step through the XLA formula stands beside it.
"""

import argparse
import json
import os
import re
import sys
from typing import Any
from unittest import mock

from benchmarks.provenance import RESULTS, provenance, write_result

RESULT = RESULTS / "kernels_decode_step.json"


def parameters(cfg: Any) -> tuple[Any, int]:
    """Shapes of the parameters with the blocks' linears at 4 bits, groups of 64; and the dense bytes replaced."""
    import jax
    import jax.numpy as jnp

    from compressjax.leaf import pack_affine
    from compressjax.models.llama import Llama

    replaced = 0

    def compress(path, a):
        nonlocal replaced
        if path[-1].key != "kernel":
            return jax.ShapeDtypeStruct(a.shape, jnp.bfloat16)
        layers, rows, cols = a.shape
        replaced += 2 * layers * rows * cols

        def pack():
            zeros = jnp.zeros((layers, rows // 64, cols), jnp.int32)
            codes = jnp.zeros(a.shape, jnp.int32)
            return pack_affine(codes, zeros.astype(jnp.float16), zeros, bits=4, group=64, zero_kind="int")

        return jax.eval_shape(pack)

    tokens = jnp.zeros((1, 1), jnp.int32)
    dense = jax.eval_shape(lambda key: Llama(cfg).init(key, tokens)["params"], jax.random.key(0))
    return jax.tree_util.tree_map_with_path(compress, dense), replaced


def examine_step(batch: int = 1, slots: int = 512) -> dict[str, Any]:
    """Facts about the compiled step for ``batch`` sequences and a cache of ``slots`` tokens."""
    import jax
    import jax.numpy as jnp

    from compressjax.models.config import LlamaConfig
    from compressjax.models.generate import decode_step
    from compressjax.ops import nbits, on_gpu, size
    from pallas_kernels.proof.compile import compile_for
    from pallas_kernels.proof.targets import H100

    cfg = LlamaConfig(  # SmolLM2-135M's published configuration
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        tie_embeddings=True,
    )
    params, replaced = parameters(cfg)
    kv = jax.ShapeDtypeStruct((cfg.num_layers, batch, slots, cfg.num_kv_heads, cfg.head_dim), jnp.bfloat16)
    cache = {"k": kv, "v": kv, "mask": jax.ShapeDtypeStruct((batch, slots), jnp.bool_)}
    cache["length"] = jax.ShapeDtypeStruct((), jnp.int32)
    token = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(params, token, cache):
        return decode_step(cfg, params, token, cache, dtype=jnp.bfloat16)

    with_kernels = compile_for(step, (params, token, cache), H100, donate=(2,))
    with mock.patch.object(on_gpu, "on_gpu", lambda: False):
        through_xla = compile_for(lambda *args: step(*args), (params, token, cache), H100, donate=(2,))
    return {
        "batch": batch,
        "cache_slots": slots,
        "kernels_in_program": kernels_called(with_kernels.hlo),
        "kernels_through_xla": kernels_called(through_xla.hlo),
        "bytes_copied_per_layer": copied_bytes(with_kernels.hlo),
        "dense_bytes": 2 * size(params),
        "dense_bytes_replaced": replaced,
        "packed_bytes": nbits(params["blocks"]) // 8,
        "cache_bytes": 2 * 2 * kv.size,
        "temporary_bytes": with_kernels.compiled.memory_analysis().temp_size_in_bytes,
        "temporary_bytes_through_xla": through_xla.compiled.memory_analysis().temp_size_in_bytes,
    }


def kernels_called(hlo: str) -> int:
    """Calls of kernels of this library in a compiled program; one in the body of the layers' loop counts once."""
    return len(re.findall(r'custom_call_target="__gpu\$xla\.gpu\.triton"', hlo))


def copied_bytes(hlo: str) -> int:
    """Bytes of one layer's packed arrays that are copied out of their stack before a kernel reads them."""
    from pallas_kernels.proof.traffic import type_bytes

    sliced = re.findall(r"= ((?:u32|f16)\[1,[\d,]+\])\S* fusion\(.*calls=%fused_dynamic_slice", hlo)
    return sum(type_bytes(array) for array in sliced)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from pallas_kernels.proof import toolchain

    lack = toolchain.missing()
    if lack:
        print(lack, file=sys.stderr)
        return 2
    facts = examine_step()
    print(json.dumps(facts, indent=1))
    if options.write:
        write_result(RESULT, {**provenance("python -m benchmarks.kernels.decode_step --write"), **facts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
