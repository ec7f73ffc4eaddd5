"""Trains a small Llama on text with compressed gradients (L-GreCo) and 8-bit AdamW, on one or many hosts.

On one machine, 8 virtual CPU devices, about two minutes on two cores:

    python examples/multihost/train.py --virtual-devices 8 --steps 60 --checkpoints checkpoints

Two processes that talk over gloo (on one machine, or with the address of the first on several):

    python examples/multihost/train.py --coordinator 127.0.0.1:9876 --processes 2 --process 0 --checkpoints ckpt &
    python examples/multihost/train.py --coordinator 127.0.0.1:9876 --processes 2 --process 1 --checkpoints ckpt

On GPU or TPU hosts say ``--platform auto``; where the cluster tells its processes of each other (SLURM, Cloud TPU),
``--cluster`` takes the place of the three flags above. The folder of checkpoints must be one that all hosts share.

A run started again with the same arguments goes on after its last checkpoint, with the losses of a run that was never
stopped: data, plans and all states follow from the step. When a process dies, the others end with an error once its
heartbeat has been missing for ``--timeout`` seconds, or a step has taken ``--patience`` seconds: start all of them
again.

Prints one JSON line per step, by process 0: {"step", "loss", "bytes", "plan"}; ``bytes`` are those one device sends.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
from pathlib import Path


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train with compressed gradients on one or many hosts.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="windows in a step, over all devices")
    parser.add_argument("--length", type=int, default=128, help="bytes in a window")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--text", default="topics", help="name or file, or tfds:<name>/<split>, as the command line takes"
    )
    parser.add_argument("--family", default="powersgd", choices=["powersgd", "topk", "qsgd"])
    parser.add_argument("--base", type=float, default=None, help="rank, density or bits of the uniform plan")
    parser.add_argument("--period", type=int, default=20, help="steps between plans")
    parser.add_argument("--warmup", type=int, default=20, help="steps without compression")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder, shared by all hosts")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--platform", default="cpu", choices=["cpu", "auto"])
    parser.add_argument("--virtual-devices", type=int, default=None, help="CPU devices of this process")
    parser.add_argument("--coordinator", default=None, help="address:port of process 0")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--cluster", action="store_true", help="let JAX find the processes of this job")
    parser.add_argument("--timeout", type=int, default=60, help="seconds without a heartbeat before a process is lost")
    parser.add_argument("--patience", type=int, default=600, help="seconds that a step or a checkpoint may take")
    parser.add_argument("--die-after", type=int, default=None, help="kill this process after a step, to try recovery")
    chosen = parser.parse_args(given)
    if chosen.coordinator is None and not chosen.cluster and chosen.processes != 1:
        parser.error("--processes needs --coordinator")
    if chosen.steps < 1 or chosen.every < 1:
        parser.error(f"--steps and --every must be at least 1, got {chosen.steps} and {chosen.every}")
    return chosen


def start(args: argparse.Namespace) -> None:
    """Flags and processes, before the backend starts."""
    if args.virtual_devices:
        flag = f"--xla_force_host_platform_device_count={args.virtual_devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if args.platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if args.cluster or args.coordinator:
        if args.platform == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        named = {}
        if not args.cluster:
            named = {
                "coordinator_address": args.coordinator,
                "num_processes": args.processes,
                "process_id": args.process,
            }
        jax.distributed.initialize(
            **named, heartbeat_timeout_seconds=args.timeout, initialization_timeout=args.patience
        )


@contextlib.contextmanager
def bounded(what: str, seconds: float):
    """Ends the process when something takes too long: a collective may wait for a dead peer for ever."""

    def end():
        print(
            f"error: {what} did not end within {seconds:.0f} s; a process was lost, start all of them again",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    start(args)
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from compressjax.data.resolve import text_from
    from compressjax.distributed import wire_bytes
    from compressjax.distributed.l_greco import (
        LGreco,
        adapt,
        data_parallel_steps,
        init_sync,
        replan_on,
        table_on,
        uniform_plan,
        units_of,
    )
    from compressjax.models import Llama, LlamaConfig
    from compressjax.training.eight_bit import StatePolicy, adamw_8bit

    devices = jax.devices()
    if args.batch % len(devices):
        print(f"error: --batch {args.batch} is not divisible by {len(devices)} devices", file=sys.stderr)
        return 2
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,))
    alike, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    text = np.frombuffer(text_from(args.text).encode("utf-8"), np.uint8)

    def batch_at(step: int):
        """Windows that follow from the step alone, so that a resumed run reads what the first would have."""
        at = np.random.default_rng((17, step)).integers(0, len(text) - args.length - 1, args.batch)
        windows = text[at[:, None] + np.arange(args.length + 1)[None]].astype(np.int32)
        return jax.make_array_from_callback(windows.shape, cut, lambda index: windows[index])

    cfg = LlamaConfig(
        vocab_size=256, hidden_size=args.width, intermediate_size=2 * args.width, num_layers=args.layers,
        num_heads=4, num_kv_heads=4, head_dim=args.width // 4, tie_embeddings=True,
    )  # fmt: skip
    model = Llama(cfg)

    def loss(params, windows):
        logits = model.apply({"params": params}, windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    optimizer = adamw_8bit(args.rate, weight_decay=0.01, policy=StatePolicy(min_size=1024))
    sync_cfg = LGreco(
        family=args.family, base=args.base, period=args.period, acc_steps=min(10, args.period), warmup=args.warmup
    )

    def fresh():
        params = jax.jit(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"], out_shardings=alike
        )()
        opt_state = jax.jit(optimizer.init, out_shardings=alike)(params)
        return {"params": params, "opt": opt_state}

    state = fresh()
    units = units_of(state["params"], sync_cfg)

    def plan_after(step: int, plan):
        """Nothing is compressed while warming up; then uniform until the first table."""
        return () if step < args.warmup else plan or uniform_plan(units, sync_cfg)

    steps = data_parallel_steps(loss, optimizer, sync_cfg, mesh, "data")
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=args.every)
    with ocp.CheckpointManager(args.checkpoints.resolve(), options=options) as manager:
        first, plan = 0, plan_after(0, ())
        last = manager.latest_step()
        if last is not None:
            notes = manager.restore(last, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))["notes"]
            plan, first = tuple(notes["plan"]), last
        state["sync"] = init_sync(sync_cfg, state["params"], mesh, "data", plan)
        if last is not None:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(last, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
        programs: dict = {}
        for step in range(first, args.steps):
            batch = batch_at(step)
            inputs = state["params"], state["opt"], state["sync"], batch
            if plan not in programs:
                programs[plan] = steps(plan).lower(*inputs).compile()
            with bounded(f"step {step}", args.patience):
                *parts, value = programs[plan](*inputs)
                state = dict(zip(("params", "opt", "sync"), parts, strict=True))
                value = float(value)
            if jax.process_index() == 0:
                sent = wire_bytes(programs[plan]).always
                print(json.dumps({"step": step, "loss": value, "bytes": sent, "plan": plan}), flush=True)
            done = step + 1
            new = plan_after(done, plan)
            if sync_cfg.adaptation_due(done):
                table = table_on(sync_cfg, state["params"], state["sync"], mesh, "data")
                # Every process has the same bits of the table, and so makes the same plan.
                new = adapt(sync_cfg, units, np.asarray(table.errors.addressable_data(0)), new).plan
            if new != plan:
                plan = new
                state["sync"] = replan_on(sync_cfg, state["params"], state["sync"], plan, mesh, "data")
            with bounded(f"the checkpoint of step {done}", args.patience):
                saved = ocp.args.Composite(
                    state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave({"plan": list(plan)})
                )
                manager.save(done, args=saved, force=done == args.steps)
                manager.wait_until_finished()
            if args.die_after == done:
                os._exit(9)
    return 0


if __name__ == "__main__":
    sys.exit(main())
