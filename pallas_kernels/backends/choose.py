"""Which implementation of an operation runs, and why one that was asked for cannot."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import jax


def _named_device() -> Any:
    return getattr(jax.config, "jax_default_device")  # noqa: B009 - a flag that type checkers do not know


def on_gpu() -> bool:
    """Whether what is traced now is for a GPU: the default device, which may be one that is only described."""
    device = _named_device()
    if device is None or isinstance(device, str):
        return (device or jax.default_backend()) in ("gpu", "cuda")
    return device.platform in ("gpu", "cuda")


def default_device() -> Any:
    """The device that what is traced now is for; it may be one that is only described."""
    device = _named_device()
    return jax.devices()[0] if device is None or isinstance(device, str) else device


def capability() -> int:
    """Compute capability of the default device, a GPU: 80 for 8.0."""
    major, minor = str(default_device().compute_capability).split(".")
    return 10 * int(major) + int(minor)


def installed(module: str) -> str | None:
    """Reason why what needs a module cannot run, or None."""
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def choose(op: str, asked: str | None, refusals: Mapping[str, str | None]) -> str:
    """Name of the implementation to run.

    Args:
      op: the operation, for messages.
      asked: what the caller named, or None to take the first that can run.
      refusals: the operation's implementations in order of preference, each with the reason why it cannot run this
        call or None when it can.

    Raises:
      ValueError: when the one asked for is not known or cannot run, with the reason, or when none can, with all.
    """
    if asked is not None:
        if asked not in refusals:
            raise ValueError(f"{op}: implementation must be one of {', '.join(refusals)}, got {asked!r}")
        reason = refusals[asked]
        if reason is not None:
            raise ValueError(f"{op}: implementation={asked!r} cannot run: {reason}")
        return asked
    for name, reason in refusals.items():
        if reason is None and name != "interpret":
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise ValueError(f"{op}: no implementation can run this call ({reasons})")


def needs_gpu() -> str | None:
    """Reason why a compiled kernel cannot run here, or None."""
    if on_gpu():
        return None
    return f"it needs an NVIDIA GPU as the default device, and the default backend is {jax.default_backend()!r}"


def needs_hopper() -> str | None:
    """Reason why code for sm_90a cannot run on the default device, or None."""
    reason = needs_gpu()
    if reason is not None:
        return reason
    device = default_device()
    capability = str(getattr(device, "compute_capability", "unknown"))
    if capability == "9.0":
        return None
    return f"it needs compute capability 9.0 (Hopper), and {device.device_kind} has {capability}"
