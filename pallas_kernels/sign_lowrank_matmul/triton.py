"""The product through Pallas' Triton backend: each weight is a magnitude from a small product, with its sign put on.

For every block that counts, ``v`` of the program's columns is loaded once; then, field by field of the packed signs, a
tensor-core product ``u v`` makes the magnitudes of a run of rows, the signs are put on their top bits, and a second
product multiplies them with the activations. The number of blocks is read from memory, so growing or shrinking a stack
compiles nothing and blocks that are not loaded are not read.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.backends.packed_product import packed_product
from pallas_kernels.product_config import ProductConfig
from pallas_kernels.sign_lowrank_matmul.layout import SignBlocks, SignLayout


def with_sign(code: jax.Array, magnitude: jax.Array) -> jax.Array:
    """``magnitude`` where ``code`` is 1 and its negative where it is 0, by flipping the top bit."""
    flip = (code ^ jnp.uint32(1)) << jnp.uint32(31)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(magnitude, jnp.uint32) ^ flip, jnp.float32)


def sign_lowrank_matmul_triton(
    x: jax.Array, blocks: SignBlocks, layout: SignLayout, config: ProductConfig, *, interpret: bool = False
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; float32 sums, returned in the dtype of ``x``."""
    # A tensor-core product is at least 16 deep; magnitudes of rank 1 need none.
    rank = 1 if layout.rank == 1 else max(16, 1 << (layout.rank - 1).bit_length())

    def loop(block, refs, first, last, total):
        signs_ref, u_ref, v_ref, slots_ref, loaded_ref = refs
        ranks = triton.iota(rank)
        inside = None if rank == layout.rank else ranks < jnp.int32(layout.rank)

        def one_block(nth, total):
            at = triton.load(slots_ref, nth)
            mask = block.col_mask
            if inside is not None:
                mask = inside[:, None] if mask is None else inside[:, None] & mask
            v = triton.load(v_ref, at, ranks[:, None], block.col[None, :], mask=mask)

            def one_chunk(index, total):
                words = block.load_words(signs_ref, index, at)

                def one_field(field, total):
                    depth = block.chunk.row_numbers(index, field)
                    mask = None if inside is None else inside[None, :]
                    if block.chunk.ragged:
                        exists = (depth < jnp.int32(layout.rows))[:, None]
                        mask = exists if mask is None else mask & exists
                    u = triton.load(u_ref, at, depth[:, None], ranks[None, :], mask=mask)
                    magnitude = u.astype(jnp.float32) * v.astype(jnp.float32) if rank == 1 else block.dot(u, v)
                    w = with_sign(block.chunk.codes(words, field), magnitude).astype(x.dtype)
                    return total + block.dot(block.load_x(index, field), w)

                return block.unrolled(layout.packing.fields, one_field, total)

            return lax.fori_loop(first, last, one_chunk, total)

        return lax.fori_loop(jnp.int32(0), triton.load(loaded_ref, jnp.int32(0)), one_block, total)

    return packed_product(
        x,
        (*blocks[:4], blocks.loaded.reshape(1)),
        packing=layout.packing,
        cols=layout.cols,
        config=config,
        name=f"sign_lowrank_matmul_r{layout.rank}",
        interpret=interpret,
        loop=loop,
    )
