"""DeepFM, a click-through-rate model: tables of every field feed a factorisation machine and an MLP.

Guo et al., 2017, arXiv 1703.04247. A model may also be one that was compressed: the MLP then reads short codes in place
of embeddings, which are expanded for the factorisation machine alone, and layers are pairs of thin ones with or without
an activation between (AFM: Yu et al., 2024, arXiv 2405.18146).
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from compressjax.models.layers import Dense, Embedding

Middle = tuple[int, Literal["none", "relu"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepFMConfig:
    """Sizes of a :class:`DeepFM`.

    Attributes:
      fields: name and number of ids of every field.
      numeric: number of numeric features.
      width: d, of the embeddings.
      hidden: outputs of the hidden layers.
      interaction: "fm" for the factorisation machine, "none" for the MLP and the linear term alone.
      codes: what the MLP reads per field in place of embeddings, or None.
      middle: per hidden layer None, or the rank of a pair of thin layers and the activation between them; empty for
        none anywhere.
    """

    fields: tuple[tuple[str, int], ...] = (("user", 1000), ("item", 1000))
    numeric: int = 0
    width: int = 16
    hidden: tuple[int, ...] = (256, 256, 256)
    interaction: Literal["fm", "none"] = "fm"
    codes: tuple[int, ...] | None = None
    middle: tuple[Middle | None, ...] = ()

    def __post_init__(self):
        names = [name for name, _ in self.fields]
        if not names or len(set(names)) != len(names) or any(size < 1 for _, size in self.fields):
            raise ValueError(f"DeepFMConfig.fields must have names of their own and ids, got {self.fields}")
        if self.numeric < 0 or self.width < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"DeepFMConfig needs numeric >= 0, width >= 1 and hidden layers, got {self.numeric}, {self.width} and "
                f"{self.hidden}"
            )
        if self.interaction not in ("fm", "none"):
            raise ValueError(f"DeepFMConfig.interaction must be 'fm' or 'none', got {self.interaction!r}")
        if self.codes is not None and (len(self.codes) != len(names) or min(self.codes) < 1):
            raise ValueError(f"DeepFMConfig.codes must be {len(names)} widths >= 1, got {self.codes}")
        if self.middle and len(self.middle) != len(self.hidden):
            raise ValueError(f"DeepFMConfig.middle must have {len(self.hidden)} entries or none, got {self.middle}")
        for pair in self.middle:
            if pair is not None and (pair[0] < 1 or pair[1] not in ("none", "relu")):
                raise ValueError(f"DeepFMConfig.middle must hold (rank >= 1, 'none' or 'relu') or None, got {pair}")

    @property
    def read(self) -> tuple[int, ...]:
        """What the MLP reads of every field."""
        return self.codes or (self.width,) * len(self.fields)


class DeepFM(nn.Module):
    """The model; parameters ``embed_<field>``, ``linear_<field>``, ``linear``, ``mlp<i>``, ``out``.

    With codes there is ``expand_<field>`` for the factorisation machine, with pairs ``mlp<i>_first`` and
    ``mlp<i>_second``.

    Attributes:
      cfg: sizes.
    """

    cfg: DeepFMConfig

    @nn.compact
    def __call__(self, ids: jax.Array, numeric: jax.Array) -> jax.Array:
        """``ids int [B, F], numeric [B, D] -> logits [B]``."""
        cfg = self.cfg
        if ids.ndim != 2 or ids.shape[1] != len(cfg.fields) or numeric.shape != (len(ids), cfg.numeric):
            wanted = f"ids must be [B, {len(cfg.fields)}] and numeric [B, {cfg.numeric}]"
            raise ValueError(f"{wanted}, got {ids.shape} and {numeric.shape}")
        rows, logits = [], jnp.zeros((len(ids),), jnp.float32)
        for at, (name, size) in enumerate(cfg.fields):
            rows.append(Embedding(size, cfg.read[at], name=f"embed_{name}")(ids[:, at]))
            logits = logits + Embedding(size, 1, name=f"linear_{name}")(ids[:, at])[:, 0]
        logits = logits + Dense(1, use_bias=True, name="linear")(numeric)[:, 0] if cfg.numeric else logits
        if cfg.interaction == "fm":
            wide = rows
            if cfg.codes is not None:
                names = [name for name, _ in cfg.fields]
                wide = [
                    Dense(cfg.width, use_bias=True, name=f"expand_{name}")(code)
                    for name, code in zip(names, rows, strict=True)
                ]
            logits = logits + pairwise(jnp.stack(wide, axis=1))
        hidden = jnp.concatenate([*rows, numeric], axis=-1)
        for at, size in enumerate(cfg.hidden):
            pair = cfg.middle[at] if cfg.middle else None
            if pair is None:
                hidden = nn.relu(Dense(size, use_bias=True, name=f"mlp{at}")(hidden))
                continue
            code = Dense(pair[0], use_bias=True, name=f"mlp{at}_first")(hidden)
            code = nn.relu(code) if pair[1] == "relu" else code
            hidden = nn.relu(Dense(size, use_bias=True, name=f"mlp{at}_second")(code))
        return logits + Dense(1, use_bias=True, name="out")(hidden)[:, 0]


def pairwise(rows: jax.Array) -> jax.Array:
    """Sum of products of all pairs of fields, ``[B, F, d] -> [B]``, by ``(|Σ e|² - Σ |e|²) / 2``."""
    return jnp.sum(jnp.sum(rows, axis=1) ** 2 - jnp.sum(rows**2, axis=1), axis=-1) / 2
