"""GPUs that code can be compiled for without having one: limits that decide occupancy, and a described device."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One GPU model, from the CUDA programming guide (compute capability tables) and the vendor's data sheet.

    Attributes:
      name: short name used in tables.
      model: what the driver calls it.
      capability: compute capability, major and minor.
      accelerated: whether the architecture-specific instructions (``sm_90a``) may be used.
      multiprocessors: number of streaming multiprocessors.
      block_shared_bytes: shared memory a block may ask for.
      shared_bytes: shared memory of a multiprocessor.
      l2_bytes, memory_bytes: sizes of the second-level cache and of the device memory.
      clock_ghz: boost clock.
      fpus: 32-bit floating-point lanes of a multiprocessor.
      bandwidth: device memory bandwidth in bytes per second.
      flops: dense 16-bit tensor-core operations per second.
    """

    name: str
    model: str
    capability: tuple[int, int]
    accelerated: bool
    multiprocessors: int
    block_shared_bytes: int
    shared_bytes: int
    l2_bytes: int
    memory_bytes: int
    clock_ghz: float
    fpus: int
    bandwidth: float
    flops: float

    @property
    def arch(self) -> str:
        """Name the assembler knows it by."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if self.accelerated else ''}"


H100 = Target(
    name="H100",
    model="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    accelerated=True,
    multiprocessors=132,
    block_shared_bytes=227 * 1024,
    shared_bytes=228 * 1024,
    l2_bytes=50 * 2**20,
    memory_bytes=80 * 2**30,
    clock_ghz=1.98,
    fpus=128,
    bandwidth=3.35e12,
    flops=989e12,
)

A100 = Target(
    name="A100",
    model="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    accelerated=False,
    multiprocessors=108,
    block_shared_bytes=163 * 1024,
    shared_bytes=164 * 1024,
    l2_bytes=40 * 2**20,
    memory_bytes=80 * 2**30,
    clock_ghz=1.41,
    fpus=64,
    bandwidth=2.039e12,
    flops=312e12,
)

TARGETS = {target.name: target for target in (H100, A100)}


def target_config(target: Target) -> str:
    """The text protocol buffer in which XLA takes the description of a GPU."""
    major, minor = target.capability
    feature = "feature_extension: ACCELERATED_FEATURES" if target.accelerated else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {target.block_shared_bytes}
  shared_memory_per_core: {target.shared_bytes}
  core_count: {target.multiprocessors}
  fpus_per_core: {target.fpus}
  clock_rate_ghz: {target.clock_ghz}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {target.bandwidth:.0f}
  l2_cache_size: {target.l2_bytes}
  device_memory_size: {target.memory_bytes}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "{target.model}"
"""


def described_device(target: Target) -> Any:
    """A JAX device that is described, not present: code can be compiled for it and not run."""
    from jax.experimental import topologies

    described = topologies.get_topology_desc(target.name, "cuda", target_config=target_config(target), topology="1x1x1")
    return described.devices[0]
