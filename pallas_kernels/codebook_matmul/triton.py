"""The product through Pallas' Triton backend: levels are chosen in registers, weights are never stored.

A table of up to 16 levels is a tree of selects on the bits of the code, and each column's table stays in registers
while its group lasts. A load per weight would be slower even where it always meets the cache: threads of a warp have
columns of their own, so each would read another line. Larger tables, and fields that cross groups, do load.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.backends.packed_product import Step, fields_share_groups, fields_together, packed_product
from pallas_kernels.codebook_matmul.layout import CodebookLayout
from pallas_kernels.product_config import ProductConfig

_MOST_SELECTS = 4  # bits of the largest table that stays in registers


def select_level(code: jax.Array, table: list[jax.Array]) -> jax.Array:
    """``table[code]`` for a list of rows ``[1, cols]`` and codes ``[rows, cols]``, as a tree of selects."""
    bit = 0
    while len(table) > 1:
        odd = (code & jnp.uint32(1 << bit)) != 0
        pairs = [(table[i], table[min(i + 1, len(table) - 1)]) for i in range(0, len(table), 2)]
        shape = code.shape
        table = [jnp.where(odd, jnp.broadcast_to(b, shape), jnp.broadcast_to(a, shape)) for a, b in pairs]
        bit += 1
    return table[0]


def codebook_matmul_triton(
    x: jax.Array,
    codes: jax.Array,
    levels: jax.Array,
    layout: CodebookLayout,
    config: ProductConfig,
    *,
    interpret: bool = False,
    name: str = "codebook_matmul",
    extra: tuple[jax.Array, ...] = (),
    finish: Step | None = None,
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; see :func:`packed_product` for ``extra`` and ``finish``."""
    packing = layout.packing
    tree = packing.bits <= _MOST_SELECTS and fields_share_groups(packing, layout.group, config.tiles)
    together = fields_together(packing, layout.group, config.tiles)

    def group_of(depth):
        # Rows beyond the matrix meet zeros of x; they only need some group that exists.
        return jnp.minimum(depth // jnp.int32(layout.group), jnp.int32(layout.groups - 1))

    def load_table(block, levels_ref, group):
        cols = block.col[None, :]
        rows = [jnp.full((1, 1), k, jnp.int32) for k in range(layout.levels)]
        return [triton.load(levels_ref, group, k, cols, mask=block.col_mask).astype(jnp.float32) for k in rows]

    def prepare(block, weights):
        return load_table(block, weights[1], jnp.zeros((1, 1), jnp.int32)) if layout.groups == 1 else None

    def by_selects(block, weights, index, total):
        words = block.load_words(weights[0], index)

        def one_group(nth, total):
            field = nth * together
            table = weights[-1]
            if table is None:
                group = jnp.reshape(group_of(block.start(index, field)), (1, 1))
                table = load_table(block, weights[1], group)

            def one_field(nth, total):
                w = select_level(block.chunk.codes(words, field + nth), table).astype(x.dtype)
                return total + block.dot(block.load_x(index, field + nth), w)

            return block.unrolled(together, one_field, total)

        return block.unrolled(packing.fields // together, one_group, total)

    def by_loads(block, weights, index, total):
        words = block.load_words(weights[0], index)

        def one_field(field, total):
            group = group_of(block.chunk.row_numbers(index, field))[:, None]
            code = block.chunk.codes(words, field).astype(jnp.int32)
            w = triton.load(weights[1], group, code, block.col[None, :], mask=block.col_mask)
            return total + block.dot(block.load_x(index, field), w.astype(x.dtype))

        return block.unrolled(packing.fields, one_field, total)

    return packed_product(
        x,
        (codes, levels, *extra),
        packing=packing,
        cols=layout.cols,
        config=config,
        name=f"{name}_l{layout.levels}",
        interpret=interpret,
        step=by_selects if tree else by_loads,
        prepare=prepare if tree else None,
        finish=finish,
    )
