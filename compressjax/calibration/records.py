"""Statistics of what a linear layer read: mergeable sums, one record per distinct input."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Sum = jax.Array | None  # a field that a statistic may not gather


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Unnormalised sums over the kept tokens of one linear input ``x [tokens, in]``; absent fields are None.

    Sums, not means, so that records of two halves of the data, or of two hosts, add up to the record of the whole.

    Attributes:
      count: number of tokens, float32 (exact to 2**24) or int32.
      xtx: ``sum x xᵀ``, float32 ``[in, in]``.
      x_sum, abs_sum, abs_max: ``sum x``, ``sum |x|`` and ``max |x|``, float32 ``[in]``.
      dxxt: ``sum (x_fp - x_q) x_qᵀ`` for asymmetric calibration, float32 ``[in, in]``.
      fisher: ``sum over examples of (d loss / d w)²``, float32 ``[in, out]``.
      samples: kept rows of ``x``, ``[n, in]``.
    """

    count: Sum = None
    xtx: Sum = None
    x_sum: Sum = None
    abs_sum: Sum = None
    abs_max: Sum = None
    dxxt: Sum = None
    fisher: Sum = None
    samples: Sum = None


_MAXED = ("abs_max",)
_JOINED = ("samples",)


def merge(a: Record, b: Record) -> Record:
    """Record of the union of two disjoint sets of tokens.

    Raises:
      ValueError: when one record has a field that the other lacks.
    """
    out = {}
    for field in dataclasses.fields(Record):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if (x is None) != (y is None):
            raise ValueError(f"merge: only one of the records has {field.name}")
        if x is None or y is None:
            out[field.name] = None
        elif field.name in _MAXED:
            out[field.name] = jnp.maximum(x, y)
        elif field.name in _JOINED:
            out[field.name] = jnp.concatenate([x, y], axis=-2)
        else:
            out[field.name] = x + y
    return Record(**out)


def merge_over_axis(record: Record, axis_name: Any) -> Record:
    """Merges the records that the devices of a mesh axis hold; call it inside ``shard_map``."""
    out = {}
    for field in dataclasses.fields(Record):
        x = getattr(record, field.name)
        if x is None:
            out[field.name] = None
        elif field.name in _MAXED:
            out[field.name] = jax.lax.pmax(x, axis_name)
        elif field.name in _JOINED:
            out[field.name] = jax.lax.all_gather(x, axis_name, axis=x.ndim - 2, tiled=True)
        else:
            out[field.name] = jax.lax.psum(x, axis_name)
    return Record(**out)


@dataclasses.dataclass(frozen=True)
class Stats(Mapping[str, Record]):
    """Records by weight path; weights that read the same input share one record.

    Attributes:
      records: one record per distinct input, keyed by the path of the first weight that reads it.
      owner: which record each weight path uses.
    """

    records: dict[str, Record]
    owner: Mapping[str, str]

    def __getitem__(self, path: str) -> Record:
        return self.records[self.owner[path]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.owner)

    def __len__(self) -> int:
        return len(self.owner)

    def merge(self, other: "Stats") -> "Stats":
        """Statistics of both sets of batches.

        Raises:
          ValueError: when the two do not cover the same weights.
        """
        if dict(self.owner) != dict(other.owner):
            raise ValueError(
                f"Stats.merge: the two cover different weights: {sorted(set(self.owner) ^ set(other.owner))}"
            )
        return Stats({k: merge(r, other.records[k]) for k, r in self.records.items()}, self.owner)


jax.tree_util.register_pytree_node(
    Stats,
    lambda s: ((s.records,), tuple(sorted(s.owner.items()))),
    lambda owner, children: Stats(children[0], dict(owner)),
)
