"""The product written in Triton's own language: what runs where JAX's Pallas cannot lower to a GPU any more.

Packed words are loaded once a tile; every field of them, one shift and one mask away, is the next run of inputs, so no
codes are ever moved between lanes. Weights are scaled before they are rounded to the dtype of the activations.
"""

import triton
import triton.language as tl


@triton.jit
def affine_matmul_in_triton(
    x,
    codes,
    scale,
    zero,
    y,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    ZERO_KIND: tl.constexpr,
    TILES_A_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One block of ``y[split, m, n]``: the sum over the tiles of one split."""
    FIELDS: tl.constexpr = 32 // BITS
    RUN: tl.constexpr = TILE // FIELDS
    TILES: tl.constexpr = (ROWS + TILE - 1) // TILE
    # Outputs are the fastest axis of the grid, for neighbours then read the same activations.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    split = tl.program_id(2)
    # Integer zeros are packed along the outputs, 32 of them in BITS words.
    zero_word, zero_shift = n // 32 * BITS + n % BITS, n % 32 // BITS * BITS
    words, inputs = tl.arange(0, RUN)[:, None], tl.arange(0, RUN)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(TILES_A_SPLIT):
        tile = split * TILES_A_SPLIT + at
        at_word = tile * RUN + words
        packed = tl.load(codes + at_word * COLS + n, mask=(n < COLS) & (at_word < TILES * RUN), other=0)
        for field in tl.static_range(FIELDS):  # pyright: ignore[reportGeneralTypeIssues] - read by Triton, not by Python
            row = tile * TILE + field * RUN
            group = tl.minimum(row // GROUP, GROUPS - 1)  # beyond the rows there are no groups, and x counts as zero
            step = tl.load(scale + group * COLS + n, mask=n < COLS, other=0.0).to(tl.float32)
            if ZERO_KIND == "int":
                together = tl.load(zero + group * ((COLS + 31) // 32 * BITS) + zero_word, mask=n < COLS, other=0)
                low = ((together >> zero_shift) & (2**BITS - 1)).to(tl.float32)
            elif ZERO_KIND == "real":
                low = tl.load(zero + group * COLS + n, mask=n < COLS, other=0.0).to(tl.float32)
            else:
                low = 2.0 ** (BITS - 1)
            # The bits of 2^23 make a float of a code without the slow conversion.
            code = ((packed >> (field * BITS)) & (2**BITS - 1)) | 0x4B000000
            weight = (code.to(tl.float32, bitcast=True) - 8388608.0 - low) * step
            some = tl.load(x + m * ROWS + row + inputs, mask=(m < M) & (row + inputs < ROWS), other=0.0)
            total = tl.dot(some, weight.to(some.dtype), total)
    tl.store(y + (split * M + m) * COLS + n, total.to(y.dtype.element_ty), mask=(m < M) & (n < COLS))
