"""The two export formats behind one interface: check a leaf, make its tensors, make the configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from compressjax.exchange import compressed_tensors_layout, gptq_layout
from compressjax.exchange.compressed_tensors_config import write_compressed_config
from compressjax.exchange.gptq_config import VERSIONS, write_gptq_config
from compressjax.exchange.plain import unpack_leaf
from compressjax.exchange.scheme import Scheme, check_affine
from compressjax.leaf import Affine


class ExportFormat(Protocol):
    """How one format stores quantised linears."""

    def check(self, leaf: Any, path: str) -> None:
        """Refuses a leaf, stacked or not, that the format cannot hold; ``ValueError`` names ``path`` and the reason."""
        ...

    def tensors(self, leaf: Affine, path: str) -> dict[str, np.ndarray]:
        """Tensors of one unstacked leaf by the last part of their name; ``ValueError`` as :meth:`check`."""
        ...

    def config(self, schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
        """``quantization_config`` for module name -> scheme, None for linears that stay dense."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTQFormat:
    """The GPTQ layout.

    Attributes:
      checkpoint_format: "gptq" stores zeros less one and is what every reader knows; "gptq_v2" stores them as they are.
    """

    checkpoint_format: str = "gptq"

    def __post_init__(self):
        if self.checkpoint_format not in VERSIONS:
            raise ValueError(f"checkpoint_format must be one of {', '.join(VERSIONS)}, got {self.checkpoint_format!r}")

    def check(self, leaf: Any, path: str) -> None:
        """Refuses what the layout cannot hold."""
        check_affine(leaf, path, "the GPTQ layout", gptq_layout.BITS)

    def tensors(self, leaf: Affine, path: str) -> dict[str, np.ndarray]:
        """``qweight``, ``qzeros``, ``scales``, ``g_idx``.

        Raises:
          ValueError: a zero of 0 under "gptq", where readers disagree about it, or scales beyond float16.
        """
        self.check(leaf, path)
        plain = unpack_leaf(leaf)
        if self.checkpoint_format == "gptq" and (plain.zero == 0).any():
            raise ValueError(
                f"{path}: a zero point of 0 is stored as -1 by checkpoint_format 'gptq', and readers disagree about "
                "what that means; export as 'gptq_v2'"
            )
        try:
            return gptq_layout.pack_gptq(plain, version=VERSIONS[self.checkpoint_format])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def config(self, schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
        """``quantization_config``."""
        return write_gptq_config(schemes, checkpoint_format=self.checkpoint_format)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressedTensorsFormat:
    """The ``pack-quantized`` format of compressed-tensors.

    Attributes:
      scale_dtype: name of the dtype of stored scales, which must hold them exactly; None keeps the leaf's.
    """

    scale_dtype: str | None = None

    def check(self, leaf: Any, path: str) -> None:
        """Refuses what the format cannot hold: groups of unequal size or in another order among it."""
        check_affine(leaf, path, "compressed-tensors", compressed_tensors_layout.BITS)
        if leaf.g_idx is not None and leaf.scale.shape[-2] > 1:
            raise ValueError(
                f"{path}: compressed-tensors (from release 0.20) has no group index, so a leaf whose groups follow "
                "the activation order cannot be exported; quantise with static groups, or use the GPTQ layout"
            )
        try:
            compressed_tensors_layout.check_groups(leaf.shape[0], leaf.group)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def tensors(self, leaf: Affine, path: str) -> dict[str, np.ndarray]:
        """``weight_packed``, ``weight_scale``, ``weight_shape`` and, where needed, zeros and group index."""
        self.check(leaf, path)
        plain = unpack_leaf(leaf)
        if self.scale_dtype is not None:
            scale = plain.scale.astype(self.scale_dtype)
            if (scale.astype(np.float32) != plain.scale.astype(np.float32)).any():
                raise ValueError(
                    f"{path}: scale_dtype {self.scale_dtype} cannot hold {plain.scale.dtype} scales exactly"
                )
            plain = dataclasses.replace(plain, scale=scale)
        return compressed_tensors_layout.pack_compressed(plain)

    def config(self, schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
        """``quantization_config``."""
        return write_compressed_config(schemes)
