"""The product through Pallas' Mosaic GPU backend for Hopper: loads by TMA, products by ``wgmma``, long prompts.

One warpgroup fetches, the others multiply. The packed words stay as they are: a warpgroup reads the words of 64
outputs from shared memory once a step, transposed into the registers of a ``wgmma`` operand, and every field of them,
one shift and one mask away, is the next run of inputs for the same registers. So the product is made as ``w.T @ x.T``
with weights from registers and activations from shared memory, and turned when it is stored. Weights are scaled before
they are rounded to the dtype of the activations, as a dense product has them.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.affine_matmul.mosaic_config import MosaicConfig
from pallas_kernels.affine_matmul.xla import unpacked_zero
from pallas_kernels.backends.mosaic_gpu import LOADER_REGISTERS, STORED_ROWS, launch, store_block, tiled
from pallas_kernels.backends.pallas_triton import exact_float, exact_zero
from pallas_kernels.hopper_blocks import OUTPUTS

_WEIGHTS = plgpu.Layout.WGMMA
_TURNED = plgpu.Layout.WGMMA_TRANSPOSED


def affine_matmul_mosaic(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    layout: AffineLayout,
    config: MosaicConfig,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; float32 sums, returned in the dtype of ``x``.

    Args:
      x, codes, scale, zero, layout: as :func:`affine_matmul` takes them, without a :func:`misfit`.
      config: block sizes.
      interpret: run by the host, whose ``wgmma`` takes no registers, so there the weights go through shared memory.
        Before JAX 0.11 it cannot turn a reference either, and the product is made as ``x @ w``.
    """
    m, block_m, block_n = x.shape[0], config.block_m, config.block_n
    packing, fields = layout.packing, layout.packing.fields // config.parts
    depth, steps = packing.run * fields, packing.tiles * config.parts
    groups = max(1, depth // layout.group) if layout.groups > 1 else 1
    padded = jnp.pad(x, ((0, -m % block_m), (0, 0)))
    operands = [padded, codes, scale]
    if layout.zero_kind == "int":  # integers up to 255 are exact in bfloat16
        operands.append(unpacked_zero(scale, zero, layout).astype(jnp.bfloat16))
    elif zero is not None:
        operands.append(zero)

    def at_group(at):
        # A pipeline wants places that depend on the step, also where there is one group for all.
        return at * depth // layout.group // groups if layout.groups > 1 else at // steps

    turned = not interpret or jax.__version_info__ >= (0, 11)
    weights_shape = (OUTPUTS, packing.run) if turned else (packing.run, OUTPUTS)

    def turn(ref):
        if not turned:
            return ref
        return ref.transpose((1, 0)) if jax.__version_info__ >= (0, 12) else plgpu.transpose_ref(ref, (1, 0))

    def cast(value, to):
        return value if interpret else plgpu.layout_cast(value, to)

    def kernel(x_gmem, codes_gmem, scale_gmem, *rest):
        given = len(operands) - 3
        zero_gmem, (out_gmem, out_smem, *weights_smem) = rest[:given], rest[given:]
        at_m, at_n, worker = lax.axis_index("m"), lax.axis_index("n"), lax.axis_index("worker")
        mine = pl.ds(worker * OUTPUTS, OUTPUTS)

        def per_output(ref, nth):
            """Group ``nth`` of a step for the outputs of this warpgroup, spread over a run."""
            row = cast(ref[nth, mine], _WEIGHTS.reduce(1)).astype(jnp.float32)
            return cast(lax.broadcast_in_dim(row, weights_shape, (0 if turned else 1,)), _WEIGHTS)

        def multiply(total, x_run, weights):
            if interpret:
                weights_smem[0][worker] = weights
                plgpu.commit_smem()
                weights = weights_smem[0].at[worker]
            plgpu.wgmma(total, *((weights, turn(x_run)) if turned else (x_run, weights)))

        def step(indices, x_smem, codes_smem, scale_smem, *rest):
            *zero_smem, total = rest
            words = cast(cast(turn(codes_smem.at[:, mine])[...], _TURNED), _WEIGHTS)
            first = (indices[0] % config.parts * (fields * layout.bits)).astype(jnp.uint32)
            for nth in range(fields):
                if nth % (fields // groups) == 0:
                    group = nth // (fields // groups)
                    scales = per_output(scale_smem, group)
                    zeros = per_output(zero_smem[0], group) if zero_smem else float(2 ** (layout.bits - 1))
                code = (words >> (first + jnp.uint32(nth * layout.bits))) & jnp.uint32(2**layout.bits - 1)
                if layout.zero_kind == "real":
                    centred = exact_float(code) - exact_zero(0.0) - zeros
                else:
                    centred = exact_float(code) - exact_zero(zeros)
                run = x_smem.at[:, nth * packing.run : (nth + 1) * packing.run]
                multiply(total, run, (centred * scales).astype(x.dtype))
                # The weights of one field are made while the product with the one before runs.
                plgpu.wgmma_wait(1 if nth < fields - 1 else 0)
            return total

        def compute(pipeline):
            shape = (OUTPUTS, block_m) if turned else (block_m, OUTPUTS)

            def product(total):
                pipeline(total)
                return total[...].astype(x.dtype)

            y = pl.run_scoped(product, plgpu.ACC(shape))

            def write(ref, rows):
                turn(ref)[...] = cast(y[:, rows] if turned else y[rows], _TURNED)

            first, columns = at_m * block_m, pl.ds(at_n * block_n + worker * OUTPUTS, OUTPUTS)
            store_block(write, out_smem.at[worker], out_gmem, rows=block_m, first=first, columns=columns)

        per_group = plgpu.BlockSpec((groups, block_n), lambda at: (at_group(at), at_n))
        plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(steps,),
            in_specs=[
                plgpu.BlockSpec((block_m, depth), lambda at: (at_m, at), transforms=tiled(packing.run, 16)),
                plgpu.BlockSpec(
                    (packing.words, block_n), lambda at: (at // config.parts, at_n), transforms=tiled(OUTPUTS, 32)
                ),
                *[per_group for _ in operands[2:]],
            ],
            memory_registers=LOADER_REGISTERS,
            max_concurrent_steps=config.stages,
            wg_axis="worker",
            num_compute_wgs=config.warpgroups,
            compute_context=compute,
        )(x_gmem, codes_gmem, scale_gmem, *zero_gmem)

    scratch = [plgpu.SMEM((config.warpgroups, STORED_ROWS, OUTPUTS), x.dtype, transforms=tiled(OUTPUTS, 16))]
    if interpret:
        scratch.append(plgpu.SMEM((config.warpgroups, *weights_shape), x.dtype, transforms=tiled(weights_shape[1], 16)))
    call = launch(
        kernel,
        out=jax.ShapeDtypeStruct((padded.shape[0], layout.cols), x.dtype),
        scratch=scratch,
        grid=(padded.shape[0] // block_m, layout.cols // block_n),
        warpgroups=config.warpgroups,
        name=f"affine_matmul_w{layout.bits}_mosaic",
        interpret=interpret,
    )
    return call(*operands)[:m]
