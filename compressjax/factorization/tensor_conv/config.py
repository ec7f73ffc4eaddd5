"""What a convolution is made of: its geometry and the tensor format of its kernel."""

import dataclasses
from typing import Literal, get_args

Format = Literal["dense", "filterwise", "channelwise", "cp", "tucker2"]
FORMATS = get_args(Format)
PADDINGS = ("SAME", "VALID", "CIRCULAR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorConv:
    """A convolution over one, two or three axes, its kernel ``K [*k, in, out]`` kept as a sum of R products.

    ====================  ==========================================  =============================
    format                kernel                                      parameters
    ====================  ==========================================  =============================
    "dense"               K itself                                    ``in out Πk``
    "filterwise"          ``Σ_r u[c,o,r] Π_i a_i[δ_i,o,r]``           ``out R (in + Σk)``
    "channelwise"         ``Σ_r Π_i a_i[δ_i,c,o,r]``                  ``in out R Σk``
    "cp"                  ``Σ_r u[c,r] Π_i a_i[δ_i,r] d[r,o]``        ``R (in + Σk + out)``
    "tucker2"             ``Σ_rs u[c,r] g[δ,r,s] d[s,o]``             ``R (in + R Πk + out)``
    ====================  ==========================================  =============================

    The paper's are "filterwise" (its three-way kernels, one per output) and "channelwise" (its two-way kernels, one per
    pair of channels).

    Attributes:
      features: out, number of output channels.
      kernel_size: taps along each spatial axis, one to three of them.
      rank: R; not read for "dense".
      format: of the kernel.
      strides, dilation: one number for all axes, or one each.
      padding: "SAME" and "VALID" as ever; "CIRCULAR" wraps around, for odd kernels.
      use_bias: whether a bias follows.
      order: "factors" applies one factor after the other, "kernel" multiplies the kernel out first and convolves once,
        "auto" takes what moves and multiplies less. All orders are one function.
      start: of training. "gaussian" factors; "delta" starts each spatial filter near the identity ("filterwise" and
        "cp" only).
    """

    features: int = 32
    kernel_size: tuple[int, ...] = (3, 3)
    rank: int = 2
    format: Format = "filterwise"
    strides: int | tuple[int, ...] = 1
    padding: Literal["SAME", "VALID", "CIRCULAR"] = "SAME"
    dilation: int | tuple[int, ...] = 1
    use_bias: bool = True
    order: Literal["auto", "factors", "kernel"] = "auto"
    start: Literal["gaussian", "delta"] = "gaussian"

    def __post_init__(self):
        for field in ("features", "rank"):
            value = getattr(self, field)
            if not _count(value):
                raise ValueError(f"TensorConv.{field} must be an integer >= 1, got {value!r}")
        size = self.kernel_size
        if not isinstance(size, tuple) or not 1 <= len(size) <= 3 or not all(_count(k) for k in size):
            raise ValueError(f"TensorConv.kernel_size must be a tuple of one to three integers >= 1, got {size!r}")
        for field in ("strides", "dilation"):
            value = getattr(self, field)
            each = value if isinstance(value, tuple) else (value,) * len(size)
            if len(each) != len(size) or not all(_count(v) for v in each):
                raise ValueError(
                    f"TensorConv.{field} must be an integer >= 1 or a tuple of {len(size)} of them, got {value!r}"
                )
        for field, allowed in (
            ("format", FORMATS),
            ("padding", PADDINGS),
            ("order", ("auto", "factors", "kernel")),
            ("start", ("gaussian", "delta")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"TensorConv.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if self.padding == "CIRCULAR" and any(k % 2 == 0 for k in size):
            raise ValueError(f"TensorConv.padding='CIRCULAR' needs odd kernels, got kernel_size={size}")
        if self.start == "delta" and self.format not in ("filterwise", "cp"):
            raise ValueError(f"TensorConv.start='delta' is for 'filterwise' and 'cp', got format={self.format!r}")
        if self.format == "dense" and self.order == "factors":
            raise ValueError("TensorConv.order='factors' needs a format with factors, got format='dense'")

    @property
    def stride_of(self) -> tuple[int, ...]:
        """Stride of every axis."""
        return self.strides if isinstance(self.strides, tuple) else (self.strides,) * len(self.kernel_size)

    @property
    def dilation_of(self) -> tuple[int, ...]:
        """Dilation of every axis."""
        return self.dilation if isinstance(self.dilation, tuple) else (self.dilation,) * len(self.kernel_size)


def _count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
