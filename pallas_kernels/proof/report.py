"""One row of facts per compiled case: what its kernels take of a GPU, and the bytes it moves beside the least."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

from pallas_kernels.proof import machine_code, resources, toolchain, traffic
from pallas_kernels.proof.compile import Program, compile_for
from pallas_kernels.proof.targets import TARGETS, Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call to prove something about.

    Attributes:
      name: of the case, unique in its operation.
      kernel: pattern of the names of the kernels in question; XLA's own kernels around them are not judged.
      fn: the call, a function of arrays.
      args: its arguments, a tuple of trees of ``jax.ShapeDtypeStruct``.
      xla: the same result in plain JAX, or None where there is nothing to compare with.
      least_bytes: compulsory traffic: each operand read once, each result written once.
      step_bytes: bytes of the large operands that one program reads in one step; they must come 16 bytes at a time.
      tensor_core: whether the kernel multiplies on tensor cores.
      decode: whether it is bound by memory, so that its traffic is held to the floor.
      kernels: kernels of this library expected in the program.
      targets: names of the GPUs it compiles for.
      in_place: bytes that the kernels write into operands they share memory with; XLA only says that they may.
      donate: arguments whose memory the results may take: none, or the first, whose place the result takes.
      valid: makes arguments of random numbers valid (places that exist, starts that ascend); None when all are.
    """

    name: str
    kernel: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    xla: Callable[..., Any] | None
    least_bytes: int
    step_bytes: int
    tensor_core: bool
    decode: bool
    kernels: int = 1
    targets: tuple[str, ...] = tuple(TARGETS)
    in_place: int = 0
    donate: tuple[int, ...] = ()
    valid: Callable[[Any], Any] | None = None


def examine(case: Case, target: Target) -> dict[str, Any]:
    """Compiles a case, and XLA's own alternative, and returns what JSON can hold of the outcome."""
    program = compile_for(case.fn, case.args, target, donate=case.donate)
    moved = traffic.moved_bytes(program.hlo) + case.in_place
    row: dict[str, Any] = {
        "case": case.name,
        "target": target.name,
        "decode": case.decode,
        "kernels": [facts for facts in kernel_facts(program, target) if re.match(case.kernel, facts["name"])],
        "launches": len(traffic.operations(program.hlo)),
        "moved_bytes": moved,
        "least_bytes": case.least_bytes,
        "least_us": round(case.least_bytes / target.bandwidth * 1e6, 3),
    }
    if case.xla is not None:
        other = compile_for(case.xla, case.args, target, donate=case.donate)
        row["xla_bytes"] = traffic.moved_bytes(other.hlo)
        row["xla_launches"] = len(traffic.operations(other.hlo))
        row["xla_temporary_bytes"] = other.compiled.memory_analysis().temp_size_in_bytes
    row["problems"] = problems(row, case)
    return row


def kernel_facts(program: Program, target: Target) -> list[dict[str, Any]]:
    """Facts about every kernel of a compiled program."""
    found = []
    for ptx in program.ptx:
        if ".entry" not in ptx:
            continue
        said, disassembly = toolchain.assemble(ptx)
        code = machine_code.instructions(disassembly)
        for name, used in resources.parse_ptxas(said).items():
            launch = program.launches[name]
            shared = launch.dynamic_shared + used.static_shared
            kinds = machine_code.count_kinds(code[name])
            found.append(
                {
                    "name": name,
                    "arch": used.arch,
                    "blocks": math.prod(launch.grid),
                    "threads": launch.threads,
                    "registers": used.registers,
                    "spilled_bytes": used.spill_stores + used.spill_loads,
                    "local_memory": kinds["local_memory"],
                    "shared_bytes": shared,
                    "blocks_per_sm": resources.blocks_per_multiprocessor(
                        target, launch.threads, used.registers, shared
                    ),
                    "tensor_core": machine_code.tensor_core_instructions(code[name]),
                    "loads_128": kinds["copy_128"] + kinds["load_128"] + kinds["tma"],
                    "tma_loads": kinds["tma_load"],
                    "loads_narrow": kinds["copy_narrow"] + kinds["load_narrow"],
                    "int_to_float": kinds["int_to_float"],
                    "instructions": len(code[name]),
                }
            )
    return found


def problems(row: dict[str, Any], case: Case) -> list[str]:
    """Each way in which a row misses what is asked of every kernel, in words."""
    found = []
    if len(row["kernels"]) != case.kernels:
        found.append(f"{len(row['kernels'])} kernels named {case.kernel}, expected {case.kernels}")
    for facts in row["kernels"]:
        wide = math.ceil(case.step_bytes / (16 * facts["threads"]))
        for bad, what in (
            (facts["spilled_bytes"], f"{facts['spilled_bytes']} bytes spilled"),
            (facts["local_memory"], f"{facts['local_memory']} local-memory instructions"),
            (facts["blocks_per_sm"] < 1, f"{facts['shared_bytes']} bytes of shared memory do not fit"),
            (case.tensor_core and not facts["tensor_core"], "no tensor-core instruction"),
            (facts["loads_128"] < wide, f"{facts['loads_128']} loads of 16 bytes, a step of the operand needs {wide}"),
        ):
            if bad:
                found.append(f"{facts['name']}: {what}")
    if case.decode and row["moved_bytes"] > 1.05 * row["least_bytes"]:
        found.append(f"moves {row['moved_bytes'] / row['least_bytes']:.3f} times the compulsory bytes")
    return found
