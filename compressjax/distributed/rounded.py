"""Compressors that send every entry in fewer bits: levels of a bucket's norm, of its range, or a power of two."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.numerics.bitpack import pack, pack_tile, unpack
from compressjax.ops.on_gpu import kernel_or_formula


class Coded(NamedTuple):
    """Codes and what is needed to read them.

    Attributes:
      words: uint32 ``[w, 1]``, codes packed without waste.
      scales: float32 ``[buckets, 1]`` (norms) or ``[buckets, 2]`` (smallest value and unit).
    """

    words: jax.Array
    scales: jax.Array


class SignExponent(NamedTuple):
    """Powers of two.

    Attributes:
      exponents: uint8 ``[d]``, biased as in float32.
      signs: uint32 ``[w, 1]``, one bit each.
    """

    exponents: jax.Array
    signs: jax.Array


def _in_buckets(x: jax.Array, bucket: int) -> jax.Array:
    """``[buckets, bucket]``; the last is filled with its last value, which widens no range."""
    width = min(bucket, -(-x.shape[0] // 32) * 32)
    count = -(-x.shape[0] // width)
    return jnp.pad(x, (0, count * width - x.shape[0]), mode="edge").reshape(count, width)


def _packed(codes: jax.Array, bits: int) -> jax.Array:
    flat = codes.reshape(-1, 1)
    return pack(flat, bits, pack_tile(flat.shape[0]))


def _unpacked(words: jax.Array, bits: int, buckets: int) -> jax.Array:
    rows = words.shape[0] * 32 // bits
    return unpack(words, bits, pack_tile(rows), rows).reshape(buckets, -1)


def _layout(bits: int, bucket: int, d: int, kind: Literal["minmax", "norm"]):
    """The buckets of a vector as ``pallas_kernels.quantize_pack`` takes them."""
    from pallas_kernels.quantize_pack import PackLayout

    return PackLayout(bits=bits, block=bucket, tile=pack_tile(-(-d // bucket) * bucket), kind=kind)


def _kernel_refusal(bits: int, bucket: int, d: int) -> str | None:
    """Why the GPU kernel does not take the buckets of a vector, or None."""
    if bits not in (2, 4, 8):
        return f"{bits} bits do not divide a word"
    if d < bucket:
        return "the vector is shorter than a bucket"
    if bucket & (bucket - 1) or bucket % pack_tile(-(-d // bucket) * bucket):
        return f"buckets of {bucket} are not whole tiles of a power of two"
    return None


def _decode_kernel(message: Coded, d: int, bits: int, bucket: int, kind: Literal["minmax", "norm"]) -> jax.Array:
    from pallas_kernels.quantize_pack import Packed, unpack_dequantize

    columns = (message.scales[:, 1], message.scales[:, 0]) if kind == "minmax" else (message.scales[:, 0], None)
    packed = Packed(message.words[:, 0], *columns)
    return unpack_dequantize(packed, (d,), _layout(bits, bucket, d, kind), implementation="triton")


def _check(owner: str, bits: int, least: int, bucket: int) -> None:
    if not least <= bits <= 8:
        raise ValueError(f"{owner}.bits must be in {least}..8, got {bits}")
    if bucket < 32 or bucket % 32:
        raise ValueError(f"{owner}.bucket must be a positive multiple of 32, got {bucket}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QSGD:
    """``|x| sgn(x_i) xi_i / s`` over buckets, with levels rounded at random; unbiased.

    With n entries in a bucket and ``s = 2^(bits-1) - 1`` levels, ``q = 1 + min(n / s^2, sqrt(n) / s)``.

    Paper: Alistarh et al., 2017, arXiv 1610.02132. Levels are sent with ``bits`` bits each, sign included, and not with
    the paper's Elias code, whose length is not static.

    Attributes:
      bits: per entry, 2 to 8.
      bucket: entries that share a norm, a multiple of 32.
    """

    bits: int = 8
    bucket: int = 512

    def __post_init__(self):
        _check("QSGD", self.bits, 2, self.bucket)

    @property
    def levels(self) -> int:
        """Levels s on either side of zero."""
        return 2 ** (self.bits - 1) - 1

    def encode(self, x: jax.Array, key: jax.Array) -> Coded:
        """Codes ``level + s`` and norms. On a GPU the random numbers have 16 bits and are others."""
        refusal = _kernel_refusal(self.bits, self.bucket, x.shape[0])
        return kernel_or_formula(self._encode_kernel, self._encode_formula, refusal, x, key)

    def _encode_kernel(self, x: jax.Array, key: jax.Array) -> Coded:
        from pallas_kernels.quantize_pack import quantize_pack

        layout = _layout(self.bits, self.bucket, x.shape[0], "norm")
        packed = quantize_pack(x, layout, key=key, implementation="triton")
        return Coded(packed.words[:, None], packed.scale[:, None])

    def _encode_formula(self, x: jax.Array, key: jax.Array) -> Coded:
        rows = _in_buckets(x, self.bucket)
        rows = jnp.where(jnp.arange(rows.size).reshape(rows.shape) < x.shape[0], rows, 0.0)
        norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
        scaled = rows / jnp.where(norms > 0, norms, 1.0) * self.levels
        level = jnp.floor(scaled + jax.random.uniform(key, rows.shape))
        codes = jnp.clip(level, -self.levels, self.levels).astype(jnp.int32) + self.levels
        return Coded(_packed(codes, self.bits), norms)

    def decode(self, message: Coded, d: int, key: jax.Array) -> jax.Array:
        """``[d]``."""
        del key
        return kernel_or_formula(
            lambda message: _decode_kernel(message, d, self.bits, self.bucket, "norm"),
            lambda message: self._decode_formula(message, d),
            _kernel_refusal(self.bits, self.bucket, d),
            message,
        )

    def _decode_formula(self, message: Coded, d: int) -> jax.Array:
        codes = _unpacked(message.words, self.bits, message.scales.shape[0]).astype(jnp.float32)
        return ((codes - self.levels) * (message.scales / self.levels)).reshape(-1)[:d]

    def unbiased(self, d: int) -> float | None:
        """``1 + min(n / s^2, sqrt(n) / s)`` for n entries in a bucket."""
        n = min(d, self.bucket)
        return float(1 + min(n / self.levels**2, np.sqrt(n) / self.levels))

    def contractive(self, d: int) -> float | None:
        """``1 / (2 - q)`` while q < 2, for ``E |Q(x) - x|^2 <= (q - 1) |x|^2``; None beyond."""
        q = self.unbiased(d)
        return None if q is None or q >= 2 else 1 / (2 - q)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinMax:
    """Equal steps between a bucket's extremes: ``floor((x - min) / unit + u)``, ``unit = (max - min) / (2^bits - 1)``.

    What the CGX framework calls QSGD (Markov et al., 2022, arXiv 2111.08617), and L-GreCo with it. ``u = 1/2`` rounds
    to the nearest; uniform u makes it unbiased.

    Attributes:
      bits: per entry, 1 to 8.
      bucket: entries that share a range, a multiple of 32.
      stochastic: whether u is drawn.
    """

    bits: int = 4
    bucket: int = 512
    stochastic: bool = False

    def __post_init__(self):
        _check("MinMax", self.bits, 1, self.bucket)

    def encode(self, x: jax.Array, key: jax.Array) -> Coded:
        """Codes, and smallest value and unit of every bucket. On a GPU random u has 16 bits and is another."""
        refusal = _kernel_refusal(self.bits, self.bucket, x.shape[0])
        return kernel_or_formula(self._encode_kernel, self._encode_formula, refusal, x, key)

    def _encode_kernel(self, x: jax.Array, key: jax.Array) -> Coded:
        from pallas_kernels.quantize_pack import quantize_pack

        layout = _layout(self.bits, self.bucket, x.shape[0], "minmax")
        packed = quantize_pack(x, layout, key=key if self.stochastic else None, implementation="triton")
        assert packed.low is not None  # what the kind keeps
        return Coded(packed.words[:, None], jnp.stack([packed.low, packed.scale], axis=1))

    def _encode_formula(self, x: jax.Array, key: jax.Array) -> Coded:
        rows = _in_buckets(x, self.bucket)
        low = jnp.min(rows, axis=1, keepdims=True)
        top = 2**self.bits - 1
        unit = (jnp.max(rows, axis=1, keepdims=True) - low) / top
        u = jax.random.uniform(key, rows.shape) if self.stochastic else jnp.float32(0.5)
        codes = jnp.floor((rows - low) / jnp.where(unit > 0, unit, 1.0) + u)
        return Coded(
            _packed(jnp.clip(codes, 0, top).astype(jnp.int32), self.bits), jnp.concatenate([low, unit], axis=1)
        )

    def decode(self, message: Coded, d: int, key: jax.Array) -> jax.Array:
        """``[d]``."""
        del key
        return kernel_or_formula(
            lambda message: _decode_kernel(message, d, self.bits, self.bucket, "minmax"),
            lambda message: self._decode_formula(message, d),
            _kernel_refusal(self.bits, self.bucket, d),
            message,
        )

    def _decode_formula(self, message: Coded, d: int) -> jax.Array:
        low, unit = message.scales[:, :1], message.scales[:, 1:]
        codes = _unpacked(message.words, self.bits, message.scales.shape[0]).astype(jnp.float32)
        return (low + codes * unit).reshape(-1)[:d]

    def unbiased(self, d: int) -> float | None:
        """With random u, ``1 + n / (2^bits - 1)^2 / 2``: range^2 is at most twice the squared norm."""
        n = min(d, self.bucket)
        return float(1 + n / (2**self.bits - 1) ** 2 / 2) if self.stochastic else None

    def contractive(self, d: int) -> float | None:
        """Without random u, from an error of at most half a unit: ``e = n / (2^bits - 1)^2 / 2 < 1``."""
        error = min(d, self.bucket) / (2**self.bits - 1) ** 2 / 2
        return None if self.stochastic or error >= 1 else 1 / (1 - error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Natural:
    """Sign and power of two, up or down at random: 9 bits an entry, unbiased with ``q = 9/8``.

    Paper: Horvath et al., 2019, arXiv 1905.10988. Magnitudes below 2^-126 become zero and those that would round to
    2^128 stay at 2^127.
    """

    def encode(self, x: jax.Array, key: jax.Array) -> SignExponent:
        """Exponents and signs."""
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        exponent = (bits >> jnp.uint32(23)) & jnp.uint32(255)
        share = (bits & jnp.uint32(0x7FFFFF)).astype(jnp.float32) / np.float32(1 << 23)
        up = (jax.random.uniform(key, x.shape) < share) & (exponent > 0)
        exponent = jnp.minimum(exponent + up.astype(jnp.uint32), jnp.uint32(254))
        return SignExponent(exponent.astype(jnp.uint8), _packed(bits >> jnp.uint32(31), 1))

    def decode(self, message: SignExponent, d: int, key: jax.Array) -> jax.Array:
        """``[d]``."""
        del key
        signs = _unpacked(message.signs, 1, 1).reshape(-1)[:d].astype(jnp.uint32)
        bits = (message.exponents.astype(jnp.uint32) << jnp.uint32(23)) | (signs << jnp.uint32(31))
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def unbiased(self, d: int) -> float | None:
        """9/8."""
        return 9 / 8

    def contractive(self, d: int) -> float | None:
        """``1 / (2 - q) = 8/7``."""
        return 8 / 7
