"""Bytes that compiled programs move through device memory, read off their HLO."""

import math
import re
from typing import NamedTuple

_FREE = frozenset(["parameter", "bitcast", "tuple", "get-tuple-element", "constant", "after-all"])
_OPERATION = re.compile(r"^\s*(?:ROOT )?%(?P<name>\S+) = (?P<type>\(.*?\)|\S+) (?P<kind>[\w-]+)\((?P<rest>.*)$", re.M)
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<extents>[\d,]*)\]")


class Operation(NamedTuple):
    """One operation that XLA launches, and the bytes of its operands and results."""

    name: str
    kind: str
    target: str
    bytes: int


def type_bytes(text: str) -> int:
    """Bytes of an HLO type, tuples included; types of less than a byte count their bits."""
    bits = 0
    for array in _ARRAY.finditer(text):
        width = re.search(r"\d+", array["dtype"])
        count = math.prod(int(extent) for extent in array["extents"].split(",") if extent)
        bits += (int(width[0]) if width else 8) * count
    return math.ceil(bits / 8)


def operations(hlo: str) -> list[Operation]:
    """Operations of the entry computation that touch memory.

    An operand that is read in part (a slice of a stack inside a fusion) counts whole, and nothing is assumed to stay in
    a cache: an upper bound that is exact for straight-line programs whose operations read all they are given.
    """
    entry = hlo[hlo.index("\nENTRY ") :]
    entry = entry[: entry.index("\n}")]
    sizes: dict[str, int] = {}
    found = []
    for line in _OPERATION.finditer(entry):
        sizes[line["name"]] = type_bytes(line["type"])
        if line["kind"] in _FREE:
            continue
        operands = re.findall(r"%([\w.-]+)", line["rest"].partition(")")[0])
        target = re.search(r'custom_call_target="([^"]+)"', line["rest"])
        total = sizes[line["name"]] + sum(sizes.get(operand, 0) for operand in operands)
        found.append(Operation(line["name"], line["kind"], target[1] if target else "", total))
    return found


def moved_bytes(hlo: str) -> int:
    """Bytes that all operations of the entry computation read and write."""
    return sum(operation.bytes for operation in operations(hlo))
