"""Sizes in words: "60MB"."""

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def bytes_of(text: str, what: str = "memory") -> int:
    """Bytes of a size such as "60MB" (10^6), "60MiB" (2^20) or "60000000".

    Raises:
      ValueError: not a positive size in a known unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    size = 0 if found is None else float(found[1]) * _UNITS.get(found[2].lower(), 0)
    if size < 1:
        raise ValueError(f"{what} must be a size such as 60MB, 60MiB or 60000000, got {text!r}")
    return int(size)
