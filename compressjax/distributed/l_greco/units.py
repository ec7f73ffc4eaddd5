"""The matrices a plan speaks of, and what each costs at each level."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.distributed.compressor import message_bytes
from compressjax.distributed.l_greco.config import LGreco, Plan
from compressjax.distributed.rounded import MinMax
from compressjax.distributed.sparse import TopK


class Unit(NamedTuple):
    """One matrix.

    Attributes:
      name: path of its array, with the layer's number behind where layers are stacked.
      leaf: index of its array among the leaves of the tree.
      layer: index along the array's first axis; 0 where layers are not stacked.
      rows, cols: its shape.
    """

    name: str
    leaf: int
    layer: int
    rows: int
    cols: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.rows * self.cols


def units_of(tree: Any, cfg: LGreco) -> tuple[Unit, ...]:
    """The matrices of a tree that are compressed; everything else is summed as it is.

    Args:
      tree: gradients, parameters or their shapes.
      cfg: decides.

    Raises:
      TypeError: an array that is not real and floating.
    """
    found = []
    for leaf, (path, array) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"gradients must be real and floating, got {array.dtype} at {name!r}")
        stacked = array.ndim > 2 and any(re.search(pattern, name) for pattern in cfg.stacked)
        layers, shape = (array.shape[0], array.shape[1:]) if stacked else (1, array.shape)
        if len(shape) < 2:
            continue
        unit = Unit(name, leaf, 0, math.prod(shape[:-1]), shape[-1])
        if unit.size < cfg.min_elems or 2 * level_bytes(unit, cfg.base_level, cfg) >= 4 * unit.size:
            continue
        found += [unit._replace(name=f"{name}[{i}]" if stacked else name, layer=i) for i in range(layers)]
    return tuple(found)


def count_kept(unit: Unit, level: int, cfg: LGreco) -> int:
    """Entries of a unit that "topk" sends at a level."""
    return TopK(density=cfg.levels[level]).count(unit.size)


def feasible(unit: Unit, level: int, cfg: LGreco) -> bool:
    """Whether a unit has a level: ranks end at its smaller side."""
    return cfg.family != "powersgd" or cfg.levels[level] <= min(unit.rows, unit.cols)


def level_bytes(unit: Unit, level: int, cfg: LGreco) -> int:
    """Bytes of a unit's messages at a level, before the factor that the number of workers gives alike to all units."""
    if cfg.family == "powersgd":
        return 4 * int(cfg.levels[level]) * (unit.rows + unit.cols)
    if cfg.family == "topk":
        return message_bytes(TopK(k=count_kept(unit, level, cfg)), unit.size)
    return message_bytes(MinMax(bits=int(cfg.levels[level]), bucket=cfg.bucket), unit.size)


def size_table(units: tuple[Unit, ...], cfg: LGreco) -> np.ndarray:
    """int64 ``[units, levels]``: bytes of messages."""
    return np.asarray([[level_bytes(unit, c, cfg) for c in range(len(cfg.levels))] for unit in units], np.int64)


def uniform_plan(units: tuple[Unit, ...], cfg: LGreco, level: int | None = None) -> Plan:
    """The base level, or another one, for every unit; the highest it has where it is too small for that."""
    chosen = cfg.base_level if level is None else level
    return tuple(max((c for c in range(chosen + 1) if feasible(unit, c, cfg)), default=0) for unit in units)


def checked_plan(plan: Plan, units: tuple[Unit, ...], cfg: LGreco) -> Plan:
    """The plan, if it is one for these units.

    Raises:
      ValueError: another length than there are units, or a level that is none.
    """
    if len(plan) not in (0, len(units)):
        raise ValueError(f"the plan has {len(plan)} levels, the gradients {len(units)} compressible units")
    for unit, level in zip(units, plan, strict=False):
        if not 0 <= level < len(cfg.levels) or not feasible(unit, level, cfg):
            raise ValueError(f"level {level} is none of {unit.name!r} with shape {(unit.rows, unit.cols)}")
    return tuple(int(level) for level in plan)


def plan_bytes(tree: Any, plan: Plan, cfg: LGreco, workers: int) -> tuple[float, float]:
    """Bytes on the wire per device and step by formula: those of the plan, and of what is not compressed.

    Args:
      tree: gradients or their shapes.
      plan: of its units.
      cfg: family.
      workers: devices on the axis.
    """
    units = units_of(tree, cfg)
    total = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    ring = 2 * (workers - 1) / workers
    if not plan:
        return 0.0, ring * total
    dense = ring * (total - 4 * sum(unit.size for unit in units))
    if cfg.family == "qsgd":
        chunks = [unit._replace(rows=1, cols=-(-unit.size // workers)) for unit in units]
        sent = sum(level_bytes(chunk, level, cfg) for chunk, level in zip(chunks, plan, strict=True))
        return 2.0 * (workers - 1) * sent, dense
    sent = sum(level_bytes(unit, level, cfg) for unit, level in zip(units, plan, strict=True))
    return (ring if cfg.family == "powersgd" else workers - 1.0) * sent, dense
