"""EfficientNet-Lite image classifiers (Tan and Le, 2019, arXiv 1905.11946; the Lite variants: Google, 2020).

Parameters, with K classes and one module per block of ``EfficientNetLiteConfig.blocks`` (blocks differ in shape, so
they are not stacked)::

    {"stem": {"filters": [3, 3, 3, S]}, "stem_norm": NORM,
     "blocks_0": {"expand": {"kernel": [in, mid]}, "expand_norm": NORM,      # absent where the expansion is 1
                  "depthwise": {"filters": [k, k, 1, mid]}, "depthwise_norm": NORM,
                  "project": {"kernel": [mid, out]}, "project_norm": NORM},
     "blocks_1": ...,
     "head": {"kernel": [C, H]}, "head_norm": NORM,
     "classifier": {"kernel": [H, K], "bias": [K]}}
    NORM = {"scale": [c], "bias": [c], "mean": [c], "var": [c]}

Pointwise convolutions are products ``[B, h, w, in] @ [in, out]``, so they are compressed like any linear layer; the
stem and the depthwise filters (4 % of the weights of Lite0) are not called kernels and stay as they are. Normalisation
uses the stored statistics: the network is for inference only. The Lite variants differ from EfficientNet in ReLU6 for
swish, no squeeze-and-excitation, a stem and a head of fixed width, and first and last stages of fixed depth.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from compressjax.models.layers import Dense, along_last_axis, read_or_init

_FILTER_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # the authors' recipe
_WIDTH_DIVISOR = 8  # widths are multiples of it (Tan and Le's reference implementation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBConvStage:
    """Equal inverted-bottleneck blocks, of which the first changes width and stride.

    Attributes:
      repeats: number of blocks.
      kernel: side of the depthwise filters, odd.
      stride: of the first block's depthwise convolution.
      expand: width inside a block relative to its input; 1 leaves the expansion out.
      features: output width.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    features: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"MBConvStage.{field.name} must be >= 1, got {getattr(self, field.name)}")
        if self.kernel % 2 == 0:
            raise ValueError(f"MBConvStage.kernel must be odd, got {self.kernel}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBConv:
    """One block as it stands after scaling: stride, side of the filters, and its input, inner and output widths."""

    stride: int
    kernel: int
    inputs: int
    inner: int
    outputs: int

    @property
    def expands(self) -> bool:
        """Whether a pointwise convolution widens the input first."""
        return self.inner != self.inputs

    @property
    def skips(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


def _stage(repeats: int, kernel: int, stride: int, expand: int, features: int) -> MBConvStage:
    return MBConvStage(repeats=repeats, kernel=kernel, stride=stride, expand=expand, features=features)


_STAGES = (  # table 1 of Tan and Le
    _stage(1, 3, 1, 1, 16),
    _stage(2, 3, 2, 6, 24),
    _stage(2, 5, 2, 6, 40),
    _stage(3, 3, 2, 6, 80),
    _stage(3, 5, 1, 6, 112),
    _stage(4, 5, 2, 6, 192),
    _stage(1, 3, 1, 6, 320),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig:
    """Sizes of an EfficientNet-Lite; the defaults are Lite0.

    Attributes:
      width, depth: multipliers of the stages' widths (rounded to multiples of 8) and repeats (rounded up): Lite1 has
        1.0 and 1.1, Lite2 1.1 and 1.2, Lite3 1.2 and 1.4, Lite4 1.4 and 1.8.
      resolution: side of the pictures it was trained on, in pixels: 224, 240, 260, 280, 300 for Lite0 to Lite4.
      num_classes: outputs.
      stages: before scaling.
      stem_features, head_features: widths of the first and the last convolution, which are not scaled.
      norm_eps: epsilon of the normalisation.
    """

    width: float = 1.0
    depth: float = 1.0
    resolution: int = 224
    num_classes: int = 1000
    stages: tuple[MBConvStage, ...] = _STAGES
    stem_features: int = 32
    head_features: int = 1280
    norm_eps: float = 1e-3

    def __post_init__(self):
        for field in ("width", "depth", "norm_eps"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) > 0):
                raise ValueError(f"EfficientNetLiteConfig.{field} must be > 0, got {getattr(self, field)}")
        for field in ("resolution", "num_classes", "stem_features", "head_features"):
            if getattr(self, field) < 1:
                raise ValueError(f"EfficientNetLiteConfig.{field} must be >= 1, got {getattr(self, field)}")
        if not self.stages:
            raise ValueError("EfficientNetLiteConfig.stages must name at least one stage, got ()")

    @property
    def blocks(self) -> tuple[MBConv, ...]:
        """Every block, in order, with the multipliers applied."""
        found, inputs = [], self.stem_features
        for index, stage in enumerate(self.stages):
            outer = index in (0, len(self.stages) - 1)
            repeats = stage.repeats if outer else math.ceil(self.depth * stage.repeats)
            outputs = self._scaled_width(stage.features)
            for repeat in range(repeats):
                stride = stage.stride if repeat == 0 else 1
                found.append(
                    MBConv(
                        stride=stride,
                        kernel=stage.kernel,
                        inputs=inputs,
                        inner=inputs * stage.expand,
                        outputs=outputs,
                    )
                )
                inputs = outputs
        return tuple(found)

    def _scaled_width(self, features: int) -> int:
        if self.width == 1.0:
            return features
        wanted = features * self.width
        rounded = max(_WIDTH_DIVISOR, int(wanted + _WIDTH_DIVISOR / 2) // _WIDTH_DIVISOR * _WIDTH_DIVISOR)
        return rounded + _WIDTH_DIVISOR if rounded < 0.9 * wanted else rounded  # never more than a tenth narrower


class Convolution(nn.Module):
    """Convolution with "SAME" padding (the odd pixel at the end) and parameter ``filters [k, k, in / groups, out]``.

    Attributes:
      features: out.
      kernel, stride: in pixels.
      groups: 1, or the number of channels for a depthwise convolution.
    """

    features: int
    kernel: int
    stride: int
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [B, h, w, in] -> [B, ceil(h / stride), ceil(w / stride), out]``."""
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        return jax.lax.conv_general_dilated(
            x,
            read_or_init(self, "filters", _FILTER_INIT, shape).astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


class StoredNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * scale + bias`` with stored statistics (Ioffe and Szegedy, 2015).

    Attributes:
      eps: epsilon.
    """

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [..., c] -> [..., c]``."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (x.shape[-1],)
        scale, bias = read_or_init(self, "scale", ones, shape), read_or_init(self, "bias", zeros, shape)
        mean, var = read_or_init(self, "mean", zeros, shape), read_or_init(self, "var", ones, shape)
        gain = scale * jax.lax.rsqrt(var + self.eps)
        return x * along_last_axis(gain, x.ndim) + along_last_axis(bias - mean * gain, x.ndim)


class Block(nn.Module):
    """Inverted bottleneck: expand, filter each channel, project; ReLU6 after the first two."""

    cfg: MBConv
    eps: float

    def setup(self):
        cfg = self.cfg
        if cfg.expands:
            self.expand, self.expand_norm = Dense(cfg.inner), StoredNorm(self.eps)
        self.depthwise = Convolution(cfg.inner, cfg.kernel, cfg.stride, groups=cfg.inner)
        self.depthwise_norm = StoredNorm(self.eps)
        self.project, self.project_norm = Dense(cfg.outputs), StoredNorm(self.eps)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [B, h, w, in] -> [B, ceil(h / stride), ceil(w / stride), out]``."""
        h = jax.nn.relu6(self.expand_norm(self.expand(x))) if self.cfg.expands else x
        h = jax.nn.relu6(self.depthwise_norm(self.depthwise(h)))
        h = self.project_norm(self.project(h))
        return x + h if self.cfg.skips else h


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite in float32, for inference; see the module's docstring for the parameters.

    Attributes:
      cfg: sizes.
    """

    cfg: EfficientNetLiteConfig

    def setup(self):
        cfg = self.cfg
        self.stem, self.stem_norm = Convolution(cfg.stem_features, 3, 2), StoredNorm(cfg.norm_eps)
        self.blocks = [Block(block, cfg.norm_eps) for block in cfg.blocks]
        self.head, self.head_norm = Dense(cfg.head_features), StoredNorm(cfg.norm_eps)
        self.classifier = Dense(cfg.num_classes, use_bias=True)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Class scores.

        Args:
          images: floating ``[B, h, w, 3]``, RGB scaled to [-1, 1]; any size, best ``resolution``.

        Returns:
          float32 logits ``[B, K]``.

        Raises:
          ValueError: images of another rank, without pixels, or not of 3 channels.
          TypeError: images that are not floating point.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape) < 1:
            raise ValueError(f"images must have shape [batch, height, width, 3], got {tuple(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images must be floating point, scaled to [-1, 1], got {images.dtype}")
        x = jax.nn.relu6(self.stem_norm(self.stem(images.astype(jnp.float32))))
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu6(self.head_norm(self.head(x)))
        return self.classifier(jnp.mean(x, axis=(1, 2)))
