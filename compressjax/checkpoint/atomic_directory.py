"""Replacing a directory so that a complete one can be read at any moment, whatever is killed when."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def staging_path(directory: Path) -> Path:
    """Where a new version of ``directory`` is built: a hidden sibling, so that the last step is a rename."""
    return directory.with_name(f".{directory.name}.compressjax-saving")


def retired_path(directory: Path) -> Path:
    """Where the previous version of ``directory`` stands between the two renames of a swap."""
    return directory.with_name(f".{directory.name}.compressjax-old")


def find_complete(directory: Path) -> Path | None:
    """The directory to read: ``directory``, or its previous version if a swap was cut between its two renames."""
    return next((d for d in (directory, retired_path(directory)) if d.is_dir()), None)


@contextlib.contextmanager
def replacing(directory: Path, *, primary: bool, barrier: Callable[[str], None]) -> Iterator[Path]:
    """Yields an empty staging directory that takes the place of ``directory`` when the block ends without an error.

    On an error nothing is left and ``directory`` is as before. What an earlier killed save left is removed first. Two
    savers of one directory at the same time are not supported.

    Args:
      directory: absolute path, may exist.
      primary: whether this process does the file system work; the others follow it through the barriers.
      barrier: waits for all processes, given a name for the meeting point.
    """
    staging, retired = staging_path(directory), retired_path(directory)
    if primary:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    barrier("staged")
    try:
        yield staging
        barrier("written")
        if primary:
            _sync_below(staging)
            _swap(staging, directory, retired)
    except BaseException:
        if primary:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    barrier("swapped")


def _swap(staging: Path, directory: Path, retired: Path):
    if directory.exists():
        # Only a version that `directory` has outlived may be removed: without `directory`, it is the one to read.
        shutil.rmtree(retired, ignore_errors=True)
        directory.rename(retired)
    try:
        staging.rename(directory)
    except BaseException:
        if not directory.exists() and retired.exists():
            retired.rename(directory)
        raise
    _sync(directory.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _sync_below(root: Path):
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
