"""Which fields of an optimizer's state become bytes, and how."""

import dataclasses
import re
from collections.abc import Mapping, Set
from types import MappingProxyType

import jax

from compressjax.training.eight_bit.blockwise import AxisMode
from compressjax.training.eight_bit.code_maps import MAP_NAMES

KEEP = "f32"
FIELDS: Mapping[str, str] = MappingProxyType(
    {"mu": "signed", "nu": "unsigned", "trace": "signed", "sum_of_squares": "unsigned"}
)
"""Fields of optax's states that hold one value per parameter, and the map each takes.

The reference takes the signed map for every state of an optimizer with one; squares have a bit more with the other.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatePolicy:
    """How an optimizer's state is stored.

    A leaf of the state is named by the keys on the way to it, joined with "/", as in "0/mu/blocks/mlp/up/kernel": the
    field, then the parameter's own path. The first override whose pattern is found in that name decides; then a leaf
    with fewer than ``min_size`` elements stays as it is; then the field's entry in ``fields`` decides. Fields that
    have no entry stay as they are.

    Attributes:
      min_size: leaves with fewer elements stay in float32, unless an override names a map for them.
      block_size: values per scale (2048 in the paper, 256 in its authors' code since 2024).
      axis_mode: "last" keeps blocks inside the last axis and shards like the parameter, "flat" is the reference's.
      overrides: pairs of a regular expression and "f32" or a map's name. By default the tables of embeddings stay.
      fields: pairs of a state's field and its map.
      stochastic: fields rounded at random, which needs a key: with rounding to nearest, an accumulator stands still
        once what is added is below half the gap of its codes, 1 to 5 per cent of it.
      keep_sign: negative values of signed maps never become 0 (the reference's rule for first moments).
      floor_zeros: fields whose zero codes read back as the map's least positive value times the block's scale. With
        "nu" it bounds Adam's step where a small second moment was rounded away but the first was not; float32
        states do not need it, and the reference does not do it.
      skip_nonfinite: a non-finite gradient leaves its parameter alone and sets its states to 0.
    """

    min_size: int = 4096
    block_size: int = 256
    axis_mode: AxisMode = "last"
    overrides: tuple[tuple[str, str], ...] = ((r"(^|/)embedding$", KEEP),)
    fields: tuple[tuple[str, str], ...] = tuple(FIELDS.items())
    stochastic: Set[str] = frozenset()
    keep_sign: bool = True
    floor_zeros: Set[str] = frozenset()
    skip_nonfinite: bool = False

    def __post_init__(self):
        if self.min_size < 0:
            raise ValueError(f"StatePolicy.min_size must be >= 0, got {self.min_size}")
        if self.block_size < 1:
            raise ValueError(f"StatePolicy.block_size must be >= 1, got {self.block_size}")
        if self.axis_mode not in ("flat", "last"):
            raise ValueError(f"StatePolicy.axis_mode must be 'flat' or 'last', got {self.axis_mode!r}")
        for name in ("overrides", "fields"):
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
            for which, chosen in getattr(self, name):
                if chosen != KEEP and chosen not in MAP_NAMES:
                    allowed = (KEEP, *MAP_NAMES)
                    raise ValueError(f"StatePolicy.{name}: {which!r} must map to one of {allowed}, got {chosen!r}")
        for pattern, _ in self.overrides:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"StatePolicy.overrides: {pattern!r} is no regular expression: {error}") from None
        known = {field for field, _ in self.fields}
        for name in ("stochastic", "floor_zeros"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))
            if not getattr(self, name) <= known:
                raise ValueError(
                    f"StatePolicy.{name} must name fields among {sorted(known)}, got {getattr(self, name)}"
                )

    def map_for(self, path: tuple, size: int) -> str:
        """Name of the map for a leaf of the state, or "f32".

        Args:
          path: the leaf's keys, as jax.tree_util gives them.
          size: its number of elements.
        """
        name = leaf_name(path)
        for pattern, chosen in self.overrides:
            if re.search(pattern, name):
                return chosen
        return KEEP if size < self.min_size else dict(self.fields).get(self.field_of(path) or "", KEEP)

    def field_of(self, path: tuple) -> str | None:
        """The field of a state that a leaf lies in, among those the policy knows; the innermost one."""
        known = {field for field, _ in self.fields}
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        return next((name for name in reversed(names) if name in known), None)


def leaf_name(path: tuple) -> str:
    """The keys on the way to a leaf, joined with "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
