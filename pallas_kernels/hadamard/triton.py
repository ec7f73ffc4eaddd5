"""Both operations through Pallas' Triton backend: the rotation is a product on tensor cores with a matrix of signs.

The signs are made in registers from the parity of ``i & j``, once per program, and are exact in every activation dtype.
A program goes through its rows twice, first for their root mean square and then to rotate, round and pack; the second
time they come from the cache. Rows are packed by a sum over the fields of each word.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.hadamard.config import HadamardConfig
from pallas_kernels.hadamard.layout import HadamardLayout, Rotated


def _signs(block: int, dtype) -> jax.Array:
    """The matrix of ones and minus ones, in bfloat16 for float32 rows."""
    dtype = jnp.bfloat16 if dtype == jnp.float32 else dtype
    row, col = triton.iota(block), triton.iota(block)
    odd = lax.population_count(row[:, None] & col[None, :]) & jnp.int32(1)
    return (jnp.int32(1) - jnp.int32(2) * odd).astype(dtype)


def _rotated(x: jax.Array, signs: jax.Array, *, interpret: bool) -> jax.Array:
    """Blocks ``[n, block]`` rotated, float32.

    A float32 number is the sum of three bfloat16 ones, cut off its bits from the top, and their products with signs are
    exact: three products with the same matrix, where TF32 would need the matrix twice as wide and three products too.
    """
    total = jnp.zeros(x.shape, jnp.float32)
    for part in _cut(x) if x.dtype == jnp.float32 else (x,):
        total = total + triton.dot(part, signs, interpret=interpret)
    return total * jnp.float32(1 / math.sqrt(signs.shape[0]))


def _cut(x: jax.Array) -> tuple[jax.Array, ...]:
    parts = []
    for _ in range(3):
        bits = lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000)
        top = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(top.astype(jnp.bfloat16))
        x = x - top
    return tuple(parts)


def block_hadamard_triton(x: jax.Array, block: int, config: HadamardConfig, *, interpret: bool = False) -> jax.Array:
    """Blocks of the last axis rotated, in the dtype of ``x``."""
    total = x.size // block
    many = max(16, config.values // block)
    steps = min(config.rows, math.ceil(total / many))

    def kernel(x_ref, out_ref):
        signs = _signs(block, x.dtype)
        lane = triton.iota(block)[None, :]
        start = triton.program() * jnp.int32(steps)

        def step(nth, carry):
            first = (start + nth) * jnp.int32(many)
            at = first + triton.iota(many)
            mask = None if total % (many * steps) == 0 else (at < jnp.int32(total))[:, None]
            place = at[:, None] * jnp.int32(block) + lane
            z = _rotated(triton.load(x_ref, place, mask=mask), signs, interpret=interpret)
            triton.store(out_ref, z, place, mask=mask)
            return carry

        lax.fori_loop(0, steps, step, 0)

    return triton.launch(
        kernel,
        blocks=math.ceil(total / (many * steps)),
        out_shape=triton.result((x.size,), x.dtype, x),
        name=f"block_hadamard_{block}",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(x.reshape(-1)).reshape(x.shape)


def hadamard_quantize_triton(
    x: jax.Array, layout: HadamardLayout, config: HadamardConfig, *, interpret: bool = False
) -> Rotated:
    """Rows ``[m, channels]`` rotated, rounded and packed."""
    m, channels = x.shape
    rows, block, bits = config.rows, layout.block, layout.bits
    wide = config.chunk(layout, channels)
    chunks = math.ceil(channels / wide)
    packing = layout.packing
    fields, run, tiles = packing.fields, packing.run, wide // layout.tile
    words = channels * bits // 32

    def kernel(x_ref, words_ref, unit_ref, sums_ref):
        row = triton.program() * jnp.int32(rows) + triton.iota(rows)
        exists = None if m % rows == 0 else row < jnp.int32(m)
        signs = _signs(block, x.dtype)

        def mask_of(col, length):
            inside = None if channels % wide == 0 else (col < jnp.int32(length))[None, :]
            if exists is None:
                return inside
            return exists[:, None] if inside is None else exists[:, None] & inside

        def load(nth):
            col = nth * jnp.int32(wide) + triton.iota(wide)
            return triton.load(x_ref, row[:, None], col[None, :], mask=mask_of(col, channels))

        def add_squares(nth, total):
            return total + lax.square(load(nth).astype(jnp.float32))

        squares = lax.fori_loop(0, chunks, add_squares, jnp.zeros((rows, wide), jnp.float32))
        unit = layout.unit_of(jnp.sum(squares, axis=1) * jnp.float32(1 / channels))

        def pack(nth, sums):
            blocks = load(nth).reshape(rows * wide // block, block)
            z = _rotated(blocks, signs, interpret=interpret).reshape(rows, wide)
            level = layout.levels(z, unit[:, None])
            code = triton.nearest_code(level + jnp.float32(layout.half))
            shift = (triton.iota(fields) * jnp.int32(bits)).astype(jnp.uint32)
            parted = code.reshape(rows * tiles, fields, run) << shift[None, :, None]
            word = jnp.sum(parted.astype(jnp.int32), axis=1).astype(jnp.uint32).reshape(rows, tiles * run)
            at = nth * jnp.int32(tiles * run) + triton.iota(tiles * run)
            triton.store(words_ref, word, row[:, None], at[None, :], mask=mask_of(at, words))
            return sums + level

        sums = lax.fori_loop(0, chunks, pack, jnp.zeros((rows, wide), jnp.float32))
        triton.store(unit_ref, unit, row, mask=exists)
        triton.store(sums_ref, jnp.sum(sums, axis=1), row, mask=exists)

    kinds = (((m, words), jnp.uint32), ((m,), jnp.float32), ((m,), jnp.int32))
    out = triton.launch(
        kernel,
        blocks=math.ceil(m / rows),
        out_shape=[triton.result(shape, dtype, x) for shape, dtype in kinds],
        name=f"hadamard_quantize_w{bits}",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(x)
    return Rotated(*out)
