"""``python -m benchmarks.comm [--quick]``: bytes of compiled steps, loss against bytes, step time over slow links.

Writes ``results/comm.json``. Bytes are read from programs compiled for eight virtual devices; losses are of trainings
with four simulated workers; step times are a stated simulation, bytes over bandwidth plus a latency per collective, for
links this machine does not have; ``benchmarks.comm.links`` measures them over a cable that is really slow.
"""

import os

# Read once, when the backend starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import argparse  # noqa: E402
import sys  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import AxisType  # noqa: E402

from benchmarks.byte_model import byte_llama, byte_text, llama_loss  # noqa: E402
from benchmarks.comm.families import FAMILIES  # noqa: E402
from benchmarks.comm.simulated import train  # noqa: E402
from benchmarks.provenance import RESULTS, provenance, write_result  # noqa: E402
from compressjax.distributed import wire_bytes  # noqa: E402
from compressjax.distributed.l_greco import (  # noqa: E402
    LGreco,
    Plan,
    data_parallel_steps,
    init_sync,
    plan_bytes,
    uniform_plan,
    units_of,
)

_LINKS = {"1 GbE": 0.125e9, "10 GbE": 1.25e9, "25 GbE": 3.125e9, "100 GbE": 12.5e9}
_LATENCY = 20e-6


def compiled_bytes(quick: bool) -> list[dict]:
    """Bytes per device and step of compiled programs beside those of the formula."""
    model, _ = byte_llama(1 if quick else 4, 64 if quick else 128)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    optimizer = optax.sgd(0.1)
    rows = []
    for name, cfg in list(FAMILIES.items())[: 1 if quick else None]:
        for kind, plan in (("none", ()), ("uniform", uniform_plan(units_of(params, cfg), cfg))):
            if kind == "none" and rows:
                continue
            sync = init_sync(cfg, params, mesh, "data", plan)
            step = data_parallel_steps(llama_loss(model), optimizer, cfg, mesh, "data")(plan)
            lowered = step.lower(params, optimizer.init(params), sync, jnp.zeros((8, 17), jnp.int32))
            found = wire_bytes(lowered.compile())
            rows.append(
                {
                    "method": name if plan else "none",
                    "compiled": found.always,
                    "formula": sum(plan_bytes(params, plan, cfg, 8)),
                    "collectives": len(found.ops),
                }
            )
            print(rows[-1], flush=True)
    return rows


def loss_against_bytes(quick: bool) -> list[dict]:
    """Held-out loss and compressed bytes per step for no compression, uniform levels of several sizes, and L-GreCo."""
    workers, steps, batch, length = (2, 4, 2, 16) if quick else (4, 240, 4, 96)
    model, _ = byte_llama(1, 64, 2) if quick else byte_llama(4, 96, 4)
    loss, text = llama_loss(model), byte_text()
    optimizer = optax.adam(optax.linear_schedule(0.0, 2e-3, max(1, steps // 6)))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    batches = text.windows(0, steps * workers * batch, length + 1).reshape(steps, workers, batch, -1)
    held_out = jnp.asarray(text.held_out_windows(4 if quick else 64, length + 1))
    rows = []
    for name, base in list(FAMILIES.items())[: 1 if quick else None]:
        cfg = LGreco(**{**vars(base), "period": 2, "acc_steps": 1}) if quick else base
        units = units_of(params, cfg)
        top = len(cfg.levels) - 1
        kinds: dict[str, tuple[Plan | None, bool]] = {
            f"uniform {cfg.levels[c]:g}": (uniform_plan(units, cfg, c), False) for c in (0, cfg.base_level, top)
        }
        kinds["L-GreCo"] = (None, True)
        if not rows:
            kinds = {"none": ((), False), **kinds}
        for kind, (plan, adaptive) in kinds.items():
            run = train(loss, params, optimizer, cfg, batches, adaptive=adaptive, plan=plan)
            sent = plan_bytes(params, run.plans[-1], cfg, workers)
            rows.append(
                {
                    "family": "none" if kind == "none" else name,
                    "kind": kind,
                    "loss": float(jax.jit(loss)(run.params, held_out)),
                    "bytes": float(np.mean(run.bytes_per_step[1:] or run.bytes_per_step)) + sent[1],
                }
            )
            print(rows[-1], flush=True)
    return rows


def step_times(rows: list[dict]) -> list[dict]:
    """Seconds of communication per step on links of a bandwidth, by bytes and latency."""
    return [
        {"method": row["method"], "link": link, "seconds": row["compiled"] / speed + _LATENCY * row["collectives"]}
        for row in rows
        for link, speed in _LINKS.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comm", description="Measure bytes between workers.")
    parser.add_argument("--quick", action="store_true", help="a small setting that shows the code works; not stored")
    args = parser.parse_args()
    sent = compiled_bytes(args.quick)
    result = {
        "setting": "Llama over bytes, 4 blocks; compiled for 8 devices, trained with 4 simulated workers, 240 steps; "
        f"links: bytes over bandwidth plus {1e6 * _LATENCY:.0f} us per collective (a simulation)",
        "compiled": sent,
        "training": loss_against_bytes(args.quick),
        "links": step_times(sent),
    }
    if not args.quick:
        write_result(RESULTS / "comm.json", {**provenance("python -m benchmarks.comm"), **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
