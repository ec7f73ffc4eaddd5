"""A cheap identity of a set of model files, to refuse resuming a run onto another model."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_HEAD = 1 << 20  # bytes; tensor tables of common checkpoints fit
_SAMPLE = 4096  # bytes a sample
_SAMPLES = 32  # samples a file


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over names, sizes, the first MiB and 32 evenly spaced 4-KiB samples of each file.

    The folder the files are in does not enter, so a moved model keeps its fingerprint. A change that misses every
    sample goes unseen: this tells models apart, it does not prove integrity.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256(b"compressjax model fingerprint 1\n")
    for path in sorted(files, key=lambda file: file.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HEAD))
            for sample in range(_SAMPLES):
                start = max(0, size - _SAMPLE) * (sample + 1) // _SAMPLES
                if start >= _HEAD - _SAMPLE:
                    file.seek(start)
                    digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
