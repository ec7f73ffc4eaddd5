"""The product through Pallas' Triton backend: integers on tensor cores, 4-bit activations as bytes like 8-bit ones.

Triton multiplies no integers of 4 bits, so both widths go the same way and one loop takes all blocks; the width only
decides a block's largest code. The bytes of two neighbouring outputs are read as one 16-bit word: so they are copied 16
bytes at a time and reach the tensor cores transposed by ``ldmatrix``, which knows nothing narrower.

Up to 16 rows of activations are rounded by every program for itself, in the launch that multiplies: they come from the
cache, and device memory moves nothing but the operands. More rows would be rounded again for every block of outputs,
and gathered in twos of bytes; they are rounded once by a launch of its own, which writes a byte and every further
program reads one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.w4ax_matmul.arithmetic import (
    WEIGHT_UNIT,
    block_scale,
    exact_sums,
    operand_place,
    rounded,
    weights,
)
from pallas_kernels.w4ax_matmul.config import FUSED_ROWS, W4AxConfig
from pallas_kernels.w4ax_matmul.layout import RoundedRows, W4AxLayout, W4AxWeight

_PAIR = 2


def w4ax_matmul_triton(
    x: jax.Array, weight: W4AxWeight, layout: W4AxLayout, config: W4AxConfig, *, interpret: bool = False
) -> jax.Array:
    """The product for ``x [m, rows]``, in the dtype of ``x``; float32 sums over exact blocks."""
    if config.fused:
        return _product(x, None, weight, layout, config, interpret=interpret)
    codes = w4ax_quantize_triton(x, weight, layout, interpret=interpret)
    return _product(x, codes, weight, layout, config, interpret=interpret)


def w4ax_quantize_triton(
    x: jax.Array, weight: W4AxWeight, layout: W4AxLayout, *, for_operand: bool = False, interpret: bool = False
) -> RoundedRows:
    """Activations permuted and rounded per row and block, channels beyond the matrix 0.

    Args:
      x, weight, layout: as :func:`w4ax_quantize` takes them.
      for_operand: whether codes stand in the order of :func:`operand_place`.
      interpret: run by the host.
    """
    m, rows = x.shape[0], 16

    def kernel(x_ref, n_hi_ref, *refs):
        *perm_ref, codes_ref, scale_ref = refs
        at_m, index = triton.split_program((math.ceil(m / rows), layout.blocks))
        row = at_m * jnp.int32(rows) + triton.iota(rows)
        exists = None if m % rows == 0 else row < jnp.int32(m)
        inputs = _Inputs(x_ref, perm_ref, layout, row, exists)
        at = index * jnp.int32(layout.block) + triton.iota(layout.block)
        source = operand_place(at) if for_operand else at
        x = inputs.load(inputs.places(source), source)
        wide = index < triton.load(n_hi_ref, jnp.int32(0))
        scale = block_scale(jnp.max(triton.magnitude(x), axis=1), wide, layout)
        mask = None if exists is None else exists[:, None]
        codes = rounded(x, (jnp.float32(1) / scale)[:, None], layout.limit(wide))
        triton.store(codes_ref, codes, row[:, None], at[None, :], mask=mask)
        triton.store(scale_ref, scale, index, row, mask=exists)

    kinds = (((m, layout.padded), jnp.int8), ((layout.blocks, m), jnp.float32))
    out = triton.launch(
        kernel,
        blocks=math.ceil(m / rows) * layout.blocks,
        out_shape=[triton.result(shape, dtype, x) for shape, dtype in kinds],
        name="w4ax_quantize",
        warps=4,
        stages=1,
        interpret=interpret,
    )(x, weight.n_hi.reshape(1), *_given(weight.perm))
    return RoundedRows(*out)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Some rows of activations, gathered in the order of the blocks.

    Attributes:
      ref: the activations ``[m, rows]``.
      perm: the permutation in a list, or an empty list.
      layout: of the matrix.
      row: rows to read, and ``exists`` which of them there are, None for all.
    """

    ref: Any
    perm: list[Any]
    layout: W4AxLayout
    row: jax.Array
    exists: jax.Array | None

    def _inside(self, at):
        return None if self.layout.padded == self.layout.rows else at < jnp.int32(self.layout.rows)

    def places(self, at: jax.Array) -> jax.Array:
        """Inputs at some places of the blocks."""
        if not self.perm:
            return at
        return triton.load(self.perm[0], at, mask=self._inside(at)).astype(jnp.int32)

    def load(self, places: jax.Array, at: jax.Array) -> jax.Array:
        """Inputs ``places``, which stand at ``at``, float32 ``[rows, len(at)]``; 0 beyond the matrix."""
        inside = self._inside(at)
        mask = None if inside is None else inside[None, :]
        if self.exists is not None:
            mask = self.exists[:, None] if mask is None else self.exists[:, None] & mask
        return triton.load(self.ref, self.row[:, None], places[None, :], mask=mask).astype(jnp.float32)


def _given(array: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if array is None else (array,)


def _product(
    x: jax.Array,
    given: RoundedRows | None,
    weight: W4AxWeight,
    layout: W4AxLayout,
    config: W4AxConfig,
    *,
    interpret: bool,
) -> jax.Array:
    m, half, wide = x.shape[0], layout.half, config.block_n // _PAIR
    fused = given is None
    block_m = FUSED_ROWS if fused else config.block_m
    # Few rows are gathered and rounded once and then repeated up to the height of a tensor-core product.
    own = min(block_m, 1 << (m - 1).bit_length()) if fused else block_m
    grid = (config.splits, math.ceil(layout.cols / config.block_n), math.ceil(m / block_m))
    per_split = math.ceil(layout.blocks / config.splits)
    partial = config.splits > 1
    paired_scales = weight.scale.dtype.itemsize == 2
    packed_result = not partial and x.dtype.itemsize == 2

    def kernel(*refs):
        operands, out_ref = refs[:-1], refs[-1]
        pairs_ref, scale_ref, acts = operands[0], operands[1], operands[2:]
        split, at_n, at_m = triton.split_program(grid)
        pair = at_n * jnp.int32(wide) + triton.iota(wide)
        there = None if layout.cols % config.block_n == 0 else pair < jnp.int32(layout.cols // _PAIR)
        first = split * jnp.int32(per_split)
        last = jnp.minimum(first + jnp.int32(per_split), jnp.int32(layout.blocks))
        within = triton.iota(half)

        def known(index):
            """A block that exists, for what is loaded one step ahead."""
            return jnp.minimum(index, jnp.int32(layout.blocks - 1))

        def scales(index):
            """Scales of both outputs of each pair, in one word where they fit."""
            if paired_scales:
                return (triton.load(scale_ref, known(index), pair, mask=there),)
            cols = (pair * jnp.int32(_PAIR) + jnp.int32(lane) for lane in range(_PAIR))
            return tuple(triton.load(scale_ref, known(index), col, mask=there) for col in cols)

        def scale_of(loaded, lane):
            scale = loaded[lane] if not paired_scales else _unpaired(loaded[0], lane, weight.scale.dtype)
            return scale.astype(jnp.float32) * jnp.float32(WEIGHT_UNIT)

        read = _reading_codes(acts, layout, m, at_m, config) if not fused else _reading_rows(acts, layout, m, own)
        start, ahead, codes_of = read

        def step(index, carry):
            totals, s_w, waiting = carry
            later = scales(index + jnp.int32(1))
            rows = (index * jnp.int32(half) + within)[:, None]
            pairs = triton.load(pairs_ref, rows, pair[None, :], mask=None if there is None else there[None, :])
            codes, s_x = codes_of(index, waiting)
            waiting = ahead(index, waiting)

            def add(lane, total):
                exact = exact_sums(codes, weights(pairs, lane, interpret=interpret), interpret=interpret)
                return total + exact * s_x[:, None] * scale_of(s_w, lane)[None, :]

            return tuple(add(lane, total) for lane, total in enumerate(totals)), later, waiting

        zero = jnp.zeros((block_m, wide), jnp.float32)
        totals, *_ = lax.fori_loop(first, last, step, ((zero, zero), scales(first), start(first)))
        out = at_m * jnp.int32(block_m) + triton.iota(block_m)
        mask = None if m % block_m == 0 else (out < jnp.int32(m))[:, None]
        if there is not None:
            mask = there[None, :] if mask is None else mask & there[None, :]
        if packed_result:
            triton.store(out_ref, _paired(totals, x.dtype), out[:, None], pair[None, :], mask=mask)
            return
        for lane, total in enumerate(totals):
            where = (out[:, None], (pair * jnp.int32(_PAIR) + jnp.int32(lane))[None, :])
            triton.store(out_ref, total, *((split, *where) if partial else where), mask=mask)

    shape, dtype = (m, layout.cols), x.dtype
    if packed_result:
        shape, dtype = (m, layout.cols // _PAIR), jnp.uint32
    elif partial:
        shape, dtype = (config.splits, m, layout.cols), jnp.float32
    scale = _as_pairs(weight.scale, jnp.uint32) if paired_scales else weight.scale
    acts = (x, weight.n_hi.reshape(1), *_given(weight.perm)) if given is None else tuple(given)
    y = triton.launch(
        kernel,
        blocks=math.prod(grid),
        out_shape=triton.result(shape, dtype, x),
        name="w4ax_matmul_fused" if fused else "w4ax_matmul",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(_as_pairs(weight.codes, jnp.uint16), scale, *acts)
    if packed_result:
        return lax.bitcast_convert_type(y, x.dtype).reshape(m, layout.cols)
    return jnp.sum(y, axis=0).astype(x.dtype) if partial else y


def _as_pairs(array: jax.Array, dtype: Any) -> jax.Array:
    """Neighbouring columns as one word; XLA moves nothing for it."""
    return lax.bitcast_convert_type(array.reshape(array.shape[0], -1, _PAIR), dtype)


def _paired(columns: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Even and odd columns as words, in a dtype of 16 bits."""
    even, odd = (lax.bitcast_convert_type(a.astype(dtype), jnp.uint16).astype(jnp.uint32) for a in columns)
    return even | (odd << jnp.uint32(16))


def _unpaired(words: jax.Array, lane: int, dtype: Any) -> jax.Array:
    """Even or odd columns of words."""
    half = (words >> jnp.uint32(16) if lane else words).astype(jnp.uint16)
    return lax.bitcast_convert_type(half, dtype)


def _reading_codes(acts, layout, m, at_m, config):
    """Rounded rows: nothing waits, for copies of them are in flight already."""
    codes_ref, scale_ref = acts
    row = at_m * jnp.int32(config.block_m) + triton.iota(config.block_m)
    exists = None if m % config.block_m == 0 else row < jnp.int32(m)

    def codes_of(index, waiting):
        def of(nth):
            at = index * jnp.int32(layout.block) + jnp.int32(nth * layout.half) + triton.iota(layout.half)
            mask = None if exists is None else exists[:, None]
            return triton.load(codes_ref, row[:, None], at[None, :], mask=mask)

        return (of(0), of(1)), waiting

    def scale(index):
        at = jnp.minimum(index, jnp.int32(layout.blocks - 1))
        return triton.load(scale_ref, at, row, mask=exists)

    return scale, lambda index, waiting: scale(index + jnp.int32(1)), codes_of


def _reading_rows(acts, layout, m, own):
    """Rows to be rounded: the places of a block are loaded two steps ahead, and what stands there one step."""
    x_ref, n_hi_ref, *perm = acts
    row = triton.iota(own)
    inputs = _Inputs(x_ref, perm, layout, row, None if m == own else row < jnp.int32(m))
    n_hi = triton.load(n_hi_ref, jnp.int32(0))

    def at(index, nth):
        block = jnp.minimum(index, jnp.int32(layout.blocks - 1))
        return block * jnp.int32(layout.block) + jnp.int32(nth * layout.half) + triton.iota(layout.half)

    def places(index):
        return tuple(inputs.places(at(index, nth)) for nth in (0, 1))

    def loaded(index, found):
        return tuple(inputs.load(place, at(index, nth)) for nth, place in enumerate(found))

    def start(first):
        return loaded(first, places(first)), places(first + jnp.int32(1))

    def ahead(index, waiting):
        return loaded(index + jnp.int32(1), waiting[1]), places(index + jnp.int32(2))

    def repeated(a):
        if own == FUSED_ROWS:
            return a
        return jnp.broadcast_to(a[None], (FUSED_ROWS // own, *a.shape)).reshape(FUSED_ROWS, *a.shape[1:])

    def codes_of(index, waiting):
        wide, x = index < n_hi, waiting[0]
        peak = jnp.max(jnp.maximum(*(triton.magnitude(a) for a in x)), axis=1)
        scale = block_scale(peak, wide, layout)
        inverse = (jnp.float32(1) / scale)[:, None]
        codes = tuple(repeated(rounded(a, inverse, layout.limit(wide))) for a in x)
        return codes, repeated(scale)

    return start, ahead, codes_of
