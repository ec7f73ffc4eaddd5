"""``python -m benchmarks.comm.link_worker``: one of two processes that train over a cable; prints what a step took."""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

METHODS = ("none", "PowerSGD", "TopK", "QSGD")


def main(arguments: list[str] | None = None) -> int:
    """Trains a few steps; process 0 prints milliseconds and bytes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comm.link_worker")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--coordinator", required=True)
    parser.add_argument("--process", type=int, required=True)
    parser.add_argument("--interface", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    args = parser.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from benchmarks.byte_model import byte_llama, llama_loss
    from benchmarks.comm.families import FAMILIES
    from compressjax.distributed import wire_bytes
    from compressjax.distributed.l_greco import data_parallel_steps, init_sync, uniform_plan, units_of

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(args.coordinator, num_processes=2, process_id=args.process, initialization_timeout=60)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    alike, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    model, _ = byte_llama(args.layers, 256)
    params = jax.jit(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"], out_shardings=alike
    )()
    cfg = FAMILIES["QSGD" if args.method == "none" else args.method]
    plan = () if args.method == "none" else uniform_plan(units_of(params, cfg), cfg)
    optimizer = optax.sgd(0.1)
    opt_state = jax.jit(optimizer.init, out_shardings=alike)(params)
    sync = init_sync(cfg, params, mesh, "data", plan)
    windows = np.random.default_rng(0).integers(0, 256, (4, 33), np.int32)
    batch = jax.make_array_from_callback(windows.shape, cut, lambda index: windows[index])
    step = data_parallel_steps(llama_loss(model), optimizer, cfg, mesh, "data")(plan)
    program = step.lower(params, opt_state, sync, batch).compile()
    counter = Path(f"/sys/class/net/{args.interface}/statistics/tx_bytes")
    seconds, sent = [], 0
    for number in range(args.steps + 2):
        before, began = int(counter.read_text()), time.perf_counter()
        params, opt_state, sync, value = program(params, opt_state, sync, batch)
        float(value)
        jax.block_until_ready(params)
        # The first two warm up connections and caches.
        if number >= 2:
            seconds.append(time.perf_counter() - began)
            sent += int(counter.read_text()) - before
    if args.process == 0:
        found = {
            "method": args.method,
            "milliseconds": round(1e3 * statistics.median(seconds), 1),
            "counted": sent // args.steps,
            "compiled": int(wire_bytes(program).always),
        }
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
