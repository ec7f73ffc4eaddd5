"""What a row of the conformance suite is, and the small problem that every method is tried on."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.ops import dense

ROWS, COLS = 72, 40


@dataclasses.dataclass(frozen=True)
class LeafRow:
    """One leaf, and which optional ops it registers.

    Attributes:
      name: for test ids.
      make: ``make(lead=(), seed=0)`` gives a leaf of logical shape ``[*lead, ROWS, COLS]``.
      rows: supports ``take``.
      tied: supports ``matmul_t``.
      slow: a variant of a leaf that another row stands for in the default run.
      reads: ``(x [M, ROWS], leaf) -> x``, what a leaf that quantises its input really multiplies, by an oracle that
        shares no code with the leaf; None for leaves that multiply ``x`` itself.
    """

    name: str
    make: Callable[..., Any]
    rows: bool = True
    tied: bool = True
    reads: Callable[[Any, Any], Any] | None = None
    slow: bool = False

    def product(self, x: jax.Array, w: Any) -> jax.Array:
        """What ``matmul`` has to give: the dense product with what the leaf reads, whose gradient passes straight."""
        if self.reads is None:
            return x @ dense(w)
        flat = jax.lax.stop_gradient(x).reshape(-1, ROWS)
        read = jnp.asarray(self.reads(np.asarray(flat), w), jnp.float32).reshape(x.shape)
        return (x + (read - jax.lax.stop_gradient(x))) @ dense(w)


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One config, and the baseline it has to beat at no more bits on a real weight.

    Attributes:
      cfg: the method.
      baseline: what it is compared with, or None for a baseline itself.
      most_bits: true bits per weight on ``[576, 192]`` may not exceed this.
      small: the method with sizes that fit :func:`small_problem`; None when ``group`` is all there is to shrink.
      slow: a variant of a method that another row stands for in the default run.
    """

    cfg: Any
    baseline: Any
    most_bits: float
    small: Any = None
    slow: bool = False

    @property
    def shrunk(self) -> Any:
        """The method for the small problem."""
        return dataclasses.replace(self.cfg, group=min(self.cfg.group, 32)) if self.small is None else self.small


def as_params(rows: Iterable[Any], name: Callable[[Any], str]) -> list[Any]:
    """Rows as parameters of a test, those that are slow marked so."""
    return [pytest.param(row, id=name(row), marks=pytest.mark.slow if row.slow else ()) for row in rows]


def small_problem(seed=0) -> tuple[jax.Array, Record]:
    """A ``[64, 32]`` weight and a record with every statistic of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(300, 64)) @ rng.normal(size=(64, 64)) / 8).astype(np.float32)
    w = jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)
    size = np.abs(x)
    record = Record(
        count=jnp.float32(300),
        xtx=jnp.asarray(x.T @ x),
        x_sum=jnp.asarray(x.sum(0)),
        abs_sum=jnp.asarray(size.sum(0)),
        abs_max=jnp.asarray(size.max(0)),
        samples=jnp.asarray(x),
        fisher=jnp.asarray(rng.gamma(0.5, size=(64, 32)), jnp.float32),
    )
    return w, record
