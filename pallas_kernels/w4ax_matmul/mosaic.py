"""The product through Pallas' Mosaic GPU backend for Hopper: loads by TMA, int8 ``wgmma``, many rows of activations.

The activations are rounded by the launch that Triton's kernel has for it. One warpgroup fetches, the others multiply:
the codes of weights go once a block of inputs from shared memory into the registers of a ``wgmma`` operand, as bytes
because Hopper's tensor cores take nothing narrower, and the codes of activations are read by ``wgmma`` where they were
loaded. The product so comes as ``w.T @ x.T``. Sums of a block start at the bits of 1.5 * 2**23, so that they are floats
without a conversion; they are exact, for they stay below 2**22.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.backends.mosaic_gpu import LOADER_REGISTERS, STORED_ROWS, launch, store_block, tiled
from pallas_kernels.hopper_blocks import OUTPUTS
from pallas_kernels.w4ax_matmul import fragments
from pallas_kernels.w4ax_matmul.arithmetic import MAGIC, MAGIC_BITS, WEIGHT_UNIT
from pallas_kernels.w4ax_matmul.layout import W4AxLayout, W4AxWeight
from pallas_kernels.w4ax_matmul.mosaic_config import MosaicConfig
from pallas_kernels.w4ax_matmul.triton import w4ax_quantize_triton

_RESULT = fragments.RESULT
_PAIRS = OUTPUTS // 2


def w4ax_matmul_mosaic(
    x: jax.Array, weight: W4AxWeight, layout: W4AxLayout, config: MosaicConfig, *, interpret: bool = False
) -> jax.Array:
    """The product for ``x [m, rows]``, in the dtype of ``x``; float32 sums over exact blocks.

    Args:
      x, weight, layout: as :func:`w4ax_matmul` takes them, without a :func:`misfit`.
      config: block sizes.
      interpret: run by the host, whose ``wgmma`` takes no registers: there the weights go through shared memory and
        the product is made as ``x @ w``.
    """
    m, block_m, block_n = x.shape[0], config.block_m, config.block_n
    padded = jnp.pad(x, ((0, -m % block_m), (0, 0)))
    codes, unit = w4ax_quantize_triton(padded, weight, layout, for_operand=True, interpret=interpret)
    pairs = lax.bitcast_convert_type(weight.codes.reshape(-1, layout.cols // 2, 2), jnp.uint16)

    def cast(value, to):
        return value if interpret else plgpu.layout_cast(value, to)

    def spread(value, axis):
        """Values of one axis of the result over the other."""
        return cast(lax.broadcast_in_dim(value, (block_m, OUTPUTS), (axis,)), _RESULT)

    def kernel(codes_gmem, unit_gmem, pairs_gmem, scale_gmem, out_gmem, out_smem, *weights_smem):
        at_m, at_n, worker = lax.axis_index("m"), lax.axis_index("n"), lax.axis_index("worker")

        def turned(ref):
            return ref.transpose((1, 0)) if jax.__version_info__ >= (0, 12) else plgpu.transpose_ref(ref, (1, 0))

        def exact(codes_smem, words):
            """Sums of a block of inputs, float32 ``[block_m, 64]``."""
            if interpret:
                weights_smem[0][worker] = fragments.operand_by_host(words)
                plgpu.commit_smem()

                def product(total):
                    plgpu.wgmma(total, codes_smem, weights_smem[0].at[worker])
                    return total[...]

                return pl.run_scoped(product, plgpu.ACC((block_m, OUTPUTS), jnp.int32)).astype(jnp.float32)

            def product(total):
                total[...] = cast(jnp.full((OUTPUTS, block_m), MAGIC_BITS, jnp.int32), fragments.SUMS)
                plgpu.wgmma(total, fragments.operand(words), turned(codes_smem))
                return total[...]

            sums = pl.run_scoped(product, plgpu.ACC((OUTPUTS, block_m), jnp.int32))
            return lax.bitcast_convert_type(fragments.in_order(sums), jnp.float32) - jnp.float32(MAGIC)

        def step(_, codes_smem, unit_smem, pairs_smem, scale_smem, total):
            words = cast(pairs_smem[:, pl.ds(worker * _PAIRS, _PAIRS)], fragments.PAIRS)
            s_x = cast(unit_smem[0], _RESULT.reduce(1))
            s_w = cast(scale_smem[0, pl.ds(worker * OUTPUTS, OUTPUTS)], _RESULT.reduce(0))
            s_w = s_w.astype(jnp.float32) * jnp.float32(WEIGHT_UNIT)
            return total + exact(codes_smem, words) * spread(s_w, 1) * spread(s_x, 0)

        def compute(pipeline):
            total = pipeline(cast(jnp.zeros((block_m, OUTPUTS), jnp.float32), _RESULT))
            y = total.astype(x.dtype)

            def write(ref, rows):
                ref[...] = y[rows]

            first, columns = at_m * block_m, pl.ds(at_n * block_n + worker * OUTPUTS, OUTPUTS)
            store_block(write, out_smem.at[worker], out_gmem, rows=block_m, first=first, columns=columns)

        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(layout.blocks,),
            in_specs=[
                plgpu.BlockSpec((block_m, layout.block), lambda at: (at_m, at), transforms=tiled(layout.block, 8)),
                plgpu.BlockSpec((1, block_m), lambda at: (at, at_m)),
                plgpu.BlockSpec((layout.half, block_n // 2), lambda at: (at, at_n), transforms=tiled(_PAIRS, 16)),
                plgpu.BlockSpec((1, block_n), lambda at: (at, at_n)),
            ],
            memory_registers=LOADER_REGISTERS,
            max_concurrent_steps=config.stages,
            wg_axis="worker",
            num_compute_wgs=config.warpgroups,
            compute_context=compute,
        )(codes_gmem, unit_gmem, pairs_gmem, scale_gmem)

    result_bits = 8 * x.dtype.itemsize
    scratch = [plgpu.SMEM((config.warpgroups, STORED_ROWS, OUTPUTS), x.dtype, transforms=tiled(OUTPUTS, result_bits))]
    if interpret:
        weights_shape = (config.warpgroups, layout.block, OUTPUTS)
        scratch.append(plgpu.SMEM(weights_shape, jnp.int8, transforms=tiled(OUTPUTS, 8)))
    call = launch(
        kernel,
        out=jax.ShapeDtypeStruct((padded.shape[0], layout.cols), x.dtype),
        scratch=scratch,
        grid=(padded.shape[0] // block_m, layout.cols // block_n),
        warpgroups=config.warpgroups,
        name="w4ax_matmul_mosaic",
        interpret=interpret,
    )
    return call(codes, unit, pairs, weight.scale)[:m]
