"""What all products with packed weights share: a block of ``x @ w`` per program, its masks, splits and stores."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.backends.packed_fields import Chunk
from pallas_kernels.packing import Packing
from pallas_kernels.product_config import ProductConfig


@dataclasses.dataclass(frozen=True)
class Block:
    """The block of the result that one program makes.

    Attributes:
      chunk: tiles of packed rows that a step reads.
      row, col: rows of x and columns of the matrix, int32 ``[block_m]`` and ``[block_n]``.
      row_inside: which rows exist, ``[block_m, 1]``, or None when all do.
      col_inside: which columns exist, ``[block_n]``, or None when all do.
      x: reference to the activations ``[m, rows]``.
      interpret: whether the host runs the program.
    """

    chunk: Chunk
    row: jax.Array
    col: jax.Array
    row_inside: jax.Array | None
    col_inside: jax.Array | None
    x: Any
    interpret: bool

    @property
    def col_mask(self) -> jax.Array | None:
        """``col_inside`` as a row."""
        return None if self.col_inside is None else self.col_inside[None, :]

    @property
    def mask(self) -> jax.Array | None:
        """Which entries of the block exist, or None when all do."""
        if self.row_inside is None:
            return self.col_mask
        return self.row_inside if self.col_mask is None else self.row_inside & self.col_mask

    def zeros(self) -> jax.Array:
        """A float32 block of zeros."""
        return jnp.zeros((self.row.shape[0], self.col.shape[0]), jnp.float32)

    def load_x(self, index: jax.Array, field: Any) -> jax.Array:
        """Activations that meet one field of a chunk, ``[block_m, height]``; 0 beyond the matrix."""
        depth = self.chunk.row_numbers(index, field)
        mask = self.row_inside
        if self.chunk.ragged:
            exists = (depth < jnp.int32(self.chunk.packing.rows))[None, :]
            mask = exists if mask is None else mask & exists
        return triton.load(self.x, self.row[:, None], depth[None, :], mask=mask)

    def load_words(self, ref: Any, index: jax.Array, *lead: jax.Array) -> list[jax.Array]:
        """Words of a chunk, see :meth:`Chunk.load_words`."""
        return self.chunk.load_words(ref, index, self.col, self.col_inside, lead)

    def load_groups(self, ref: Any, group: jax.Array) -> jax.Array:
        """Rows ``group`` of an array ``[groups, cols]`` as float32."""
        return triton.load(ref, group[:, None], self.col[None, :], mask=self.col_mask).astype(jnp.float32)

    def start(self, index: jax.Array, field: Any) -> jax.Array:
        """First row of a field of a chunk."""
        return index * jnp.int32(self.chunk.rows) + jnp.asarray(field * self.chunk.packing.run, jnp.int32)

    def dot(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """``a @ b``."""
        return triton.dot(a, b, interpret=self.interpret)

    def unrolled(self, count: int, step: Callable[[Any, Any], Any], carry: Any) -> Any:
        """See :func:`pallas_triton.unrolled`."""
        return triton.unrolled(count, step, carry, interpret=self.interpret)


Step = Callable[..., jax.Array]


def fields_share_groups(packing: Packing, group: int, count: int) -> bool:
    """Whether all rows of any field of ``count`` tiles lie in one group of ``group`` rows."""
    if group >= packing.rows:
        return True
    if count > 1:
        return group % (packing.tile * count) == 0
    return group % packing.run == 0 and (packing.tile % group == 0 or group % packing.tile == 0)


def fields_together(packing: Packing, group: int, count: int) -> int:
    """Consecutive fields that share a group, where fields do."""
    if group >= packing.rows or count > 1:
        return packing.fields
    return min(group // packing.run, packing.fields)


def packed_product(
    x: jax.Array,
    operands: tuple[jax.Array | None, ...],
    *,
    packing: Packing,
    cols: int,
    config: ProductConfig,
    name: str,
    interpret: bool,
    step: Step | None = None,
    loop: Step | None = None,
    prepare: Callable[..., Any] | None = None,
    finish: Step | None = None,
) -> jax.Array:
    """``x @ w`` in float32 sums, ``[m, cols]`` in the dtype of ``x``.

    Args:
      x: ``[m, rows]``.
      operands: arrays of the weight; None ones reach ``step`` as None.
      packing: of the codes along the rows.
      cols: columns of the matrix.
      config: block sizes.
      name: of the kernel.
      interpret: run by the host.
      step: ``(block, refs, index, total) -> total``, adds the product with chunk ``index``.
      loop: ``(block, refs, first, last, total) -> total``, all chunks from ``first`` to before ``last``; by default
        ``step`` for each of them.
      prepare: ``(block, refs) -> value``, what is loaded once before the loop; ``step`` finds it last in ``refs``.
      finish: ``(block, refs, split, total) -> total``, what is added once after the loop.
    """
    m = x.shape[0]
    chunk = Chunk(packing, config.tiles)
    grid = (config.splits, math.ceil(cols / config.block_n), math.ceil(m / config.block_m))
    per_split = math.ceil(chunk.total / config.splits)
    partial = config.splits > 1

    def kernel(x_ref, *refs):
        *given, out_ref = refs
        waiting = iter(given)
        weights = [None if a is None else next(waiting) for a in operands]
        split, at_n, at_m = triton.split_program(grid)
        row = at_m * jnp.int32(config.block_m) + triton.iota(config.block_m)
        col = at_n * jnp.int32(config.block_n) + triton.iota(config.block_n)
        block = Block(
            chunk=chunk,
            row=row,
            col=col,
            row_inside=None if m % config.block_m == 0 else (row < jnp.int32(m))[:, None],
            col_inside=None if cols % config.block_n == 0 else col < jnp.int32(cols),
            x=x_ref,
            interpret=interpret,
        )
        first: Any = 0
        last: Any = chunk.total
        if partial:
            first = split * jnp.int32(per_split)
            last = jnp.minimum(first + jnp.int32(per_split), jnp.int32(chunk.total))
        if prepare is not None:
            weights.append(prepare(block, weights))
        if loop is not None:
            total = loop(block, weights, first, last, block.zeros())
        else:
            assert step is not None  # one of the two is given
            total = lax.fori_loop(first, last, functools.partial(step, block, weights), block.zeros())
        if finish is not None:
            total = finish(block, weights, split, total)
        where = (row[:, None], col[None, :])
        triton.store(out_ref, total, *((split, *where) if partial else where), mask=block.mask)

    shape, dtype = ((config.splits, m, cols), jnp.float32) if partial else ((m, cols), x.dtype)
    out = triton.launch(
        kernel,
        blocks=math.prod(grid),
        out_shape=triton.result(shape, dtype, x),
        name=name,
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(x, *[a for a in operands if a is not None])
    return jnp.sum(out, axis=0).astype(x.dtype) if partial else out
