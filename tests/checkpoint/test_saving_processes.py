"""Two real processes save and load one tree that is spread over the devices of both."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys
import jax
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from compressjax.checkpoint.saving import load, load_metadata, save
mesh = Mesh(np.asarray(jax.devices()), ("x",))
rows, columns, every = (NamedSharding(mesh, spec) for spec in (P("x"), P(None, "x"), P()))
whole = np.arange(64, dtype=np.float32).reshape(8, 8)
spread = jax.make_array_from_callback(whole.shape, rows, lambda i: whole[i])
copied = jax.make_array_from_callback(whole.shape, every, lambda i: whole[i])
assert not spread.is_fully_addressable
tree = {"spread": spread, "copied": copied}
for step in range(2):  # the second one replaces the first
    save(folder, tree, metadata={"step": step})
def right(a, sharding):
    return a.sharding == sharding and all(np.array_equal(s.data, whole[s.index]) for s in a.addressable_shards)
assert right(load(folder, like=tree)["spread"], rows)
assert right(load(folder, shardings=columns)["spread"], columns)
assert np.array_equal(load(folder)["spread"], whole)
assert load_metadata(folder) == {"step": 1}
print("good", flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_a_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), port, str(tmp_path / "m")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    assert all("good" in output for output in outputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
