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
    a cache: an upper bound that is exact for straight-line programs whose operations read all they are given. Of an
    array that is changed in place only the slice that is written counts, and nothing where a kernel changes it, for
    that the compiler does not know.
    """
    start = hlo.index("\nENTRY ")
    updates = _updates(hlo[:start])
    entry = hlo[start:]
    entry = entry[: entry.index("\n}")]
    sizes: dict[str, int] = {}
    found = []
    for line in _OPERATION.finditer(entry):
        sizes[line["name"]] = type_bytes(line["type"])
        if line["kind"] in _FREE:
            continue
        operands = re.findall(r"%([\w.-]+)", line["rest"].partition(")")[0])
        read = [sizes.get(operand, 0) for operand in operands]
        total = sizes[line["name"]] + sum(read)
        aliasing = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", line["rest"])
        for shared in re.findall(r"\((\d+), \{\}\)", aliasing[1] if aliasing else ""):
            total -= 2 * read[int(shared)]
        called = re.search(r"calls=%([\w.-]+)", line["rest"])
        if line["kind"] == "dynamic-update-slice":
            total += read[1] - 2 * read[0]
        elif called and called[1] in updates:
            changed, written = updates[called[1]]
            total += written - 2 * read[changed]
        target = re.search(r'custom_call_target="([^"]+)"', line["rest"])
        found.append(Operation(line["name"], line["kind"], target[1] if target else "", total))
    return found


def _updates(hlo: str) -> dict[str, tuple[int, int]]:
    """Computations that end by writing a slice into an operand: its number, and the bytes of the slice."""
    found = {}
    for computation in re.finditer(r"^%(?P<name>\S+) \(.*?\n\}", hlo, re.M | re.S):
        lines = {line["name"]: line for line in _OPERATION.finditer(computation[0])}
        root = re.search(r"ROOT %(\S+) = \S+ dynamic-update-slice\(%([\w.-]+), %([\w.-]+)", computation[0])
        if root and lines[root[2]]["kind"] == "parameter":
            number = int(lines[root[2]]["rest"].partition(")")[0])
            found[computation["name"]] = number, type_bytes(lines[root[3]]["type"])
    return found


def moved_bytes(hlo: str) -> int:
    """Bytes that all operations of the entry computation read and write."""
    return sum(operation.bytes for operation in operations(hlo))
