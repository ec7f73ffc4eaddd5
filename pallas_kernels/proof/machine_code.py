"""Counting kinds of instructions in the machine code of a kernel."""

import re
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "tensor_core": r"(HG|IG|QG|H|I|Q|D)MMA\b",
        "tma": r"UTMA(LDG|STG)|UBLKCP",
        "tma_load": r"UTMALDG|UBLKCP",
        "copy_128": r"LDGSTS.*\.128",
        "copy_narrow": r"LDGSTS(?!.*\.128)",
        "load_128": r"LDG\.(?=.*\.128)",
        "load_narrow": r"LDG\.(?!.*\.128)",
        "store_128": r"STG\.(?=.*\.128)",
        "store_narrow": r"STG\.(?!.*\.128)",
        "local_memory": r"(LDL|STL)\b",
        "convert": r"(I2F|F2I|F2F|I2FP|F2FP|F2IP)\b",
        "int_to_float": r"(I2F|I2FP)\b",
        "barrier": r"(BAR|SYNCS|WARPSYNC)\b",
        "shuffle": r"SHFL\b",
        "atomic": r"(ATOM|ATOMG|ATOMS|RED)\b",
        "global_atomic": r"(ATOMG|RED)\b",
    }
)
"""Kind of instruction to a pattern its name starts with. Copies go from global to shared memory without registers."""

_KERNEL = re.compile(r"^\s*\.text\.(?P<name>[^\s:]+):\n(?P<body>.*?)(?=^\s*\.text\.|\Z)", re.S | re.M)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)")


def instructions(disassembly: str) -> dict[str, list[str]]:
    """Names of the instructions of each kernel in program order, predicates removed."""
    return {
        kernel["name"]: [found["name"] for found in _INSTRUCTION.finditer(kernel["body"])]
        for kernel in _KERNEL.finditer(disassembly)
    }


def count_kinds(names: list[str]) -> dict[str, int]:
    """How many instructions there are of each of :data:`KINDS`."""
    return {kind: sum(bool(re.match(pattern, name)) for name in names) for kind, pattern in KINDS.items()}


def tensor_core_instructions(names: list[str]) -> dict[str, int]:
    """Tensor-core instructions by their full name, which says shape and types."""
    return dict(sorted(Counter(name for name in names if re.match(KINDS["tensor_core"], name)).items()))
