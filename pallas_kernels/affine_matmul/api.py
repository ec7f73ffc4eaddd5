"""The public product: checks, choice of implementation and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.affine_matmul import gradients, jax_triton
from pallas_kernels.affine_matmul.config import choose_config
from pallas_kernels.affine_matmul.layout import AffineLayout, check_arrays
from pallas_kernels.affine_matmul.mosaic_config import MosaicConfig, misfit, mosaic_config
from pallas_kernels.affine_matmul.triton import affine_matmul_triton
from pallas_kernels.affine_matmul.xla import affine_matmul_xla
from pallas_kernels.backends.choose import choose, needs_gpu, needs_hopper
from pallas_kernels.backends.packed_product import fields_share_groups
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.product_config import ProductConfig, least_tiles


def affine_matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    layout: AffineLayout,
    *,
    implementation: str | None = None,
    config: ProductConfig | MosaicConfig | None = None,
) -> jax.Array:
    """``x @ w`` with ``w[i, o] = scale[i // group, o] * (code[i, o] - zero[i // group, o])`` read as it is packed.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32.
      codes: uint32 ``[words, cols]``, see :mod:`pallas_kernels.packing`.
      scale: float ``[groups, cols]``.
      zero: of the kind ``layout`` names: uint32 ``[groups, words of the outputs]``, float ``[groups, cols]`` or None.
      layout: what is fixed about the matrix.
      implementation: "triton" (Pallas), "xla", "interpret" (the Pallas kernel run by the host, for tests), "mosaic"
        (for Hopper and at least 128 rows of activations) or "jax-triton" (a kernel in Triton's own language); the
        last two are forward only and take Pallas' gradients. None takes the Pallas kernel on a GPU, XLA elsewhere.
      config: block sizes, a :class:`MosaicConfig` for "mosaic"; those measured on this machine or chosen by rule when
        None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums are float32. Differentiable in ``x``, ``scale`` and a real ``zero``.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, codes, scale, zero, layout)
    rows = x.reshape(-1, layout.rows)
    m = rows.shape[0]
    given = config if isinstance(config, MosaicConfig) else None
    hopper = needs_hopper() or misfit(m, x.dtype, scale.dtype, layout, given)
    # Triton's comes first even where both can run: neither was timed yet, and it takes every shape.
    ways = {
        "triton": needs_gpu(),
        "xla": None,
        "interpret": None,
        "mosaic": hopper,
        "jax-triton": jax_triton.refusal(x.dtype, layout),
    }
    name = choose("affine_matmul", implementation, ways)
    if name == "xla" or m == 0:
        return affine_matmul_xla(x, codes, scale, zero, layout)
    if config is not None and (given is not None) != (name == "mosaic"):
        wanted = "MosaicConfig" if name == "mosaic" else "ProductConfig"
        raise TypeError(f"affine_matmul: config must be a {wanted} for {name!r}, got {type(config).__name__}")
    operands = varying_alike(rows, codes, scale, zero)
    if name == "mosaic":
        y = _product(layout, given or mosaic_config(m, layout), name, *operands)
        return y.reshape(*x.shape[:-1], layout.cols)
    if name == "jax-triton":
        blocks = config or jax_triton.jax_triton_config(m, layout, x.dtype)
        y: jax.Array = _product(layout, blocks, name, *operands)
        return y.reshape(*x.shape[:-1], layout.cols)
    chosen = choose_config(m, layout, x.dtype, config)  # pyright: ignore[reportArgumentType] - of its kind by now
    if chosen.tiles < least_tiles(layout.packing.run):
        raise ValueError(
            f"affine_matmul: config.tiles must be at least {least_tiles(layout.packing.run)} for {layout.bits} bits at "
            f"tile {layout.tile}, or a product is less than 16 deep; got {chosen.tiles}"
        )
    y: jax.Array = _product(layout, chosen, name, *operands)
    return y.reshape(*x.shape[:-1], layout.cols)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(layout, config, name, x, codes, scale, zero):
    if name == "mosaic":
        from pallas_kernels.affine_matmul.mosaic import affine_matmul_mosaic  # a second to import, for few who ask

        return affine_matmul_mosaic(x, codes, scale, zero, layout, config)
    if name == "jax-triton":
        return jax_triton.affine_matmul_jax_triton(x, codes, scale, zero, layout, config)
    return affine_matmul_triton(x, codes, scale, zero, layout, config, interpret=name == "interpret")


def _forward(layout, config, name, x, codes, scale, zero):
    return _product(layout, config, name, x, codes, scale, zero), (x, codes, scale, zero)


def _backward(layout, config, name, saved, y_bar):
    x, codes, scale, zero = saved
    interpret = name == "interpret"
    blocks = gradients.activation_config(x.shape[0], layout, x.dtype)
    x_bar = gradients.activation_gradient(y_bar, codes, scale, zero, layout, blocks, interpret=interpret)
    if fields_share_groups(layout.packing, layout.group, least_tiles(layout.packing.run)):
        scale_bar, zero_bar = gradients.group_gradients(x, y_bar, codes, scale, zero, layout, interpret=interpret)
    else:  # fields cross groups, so a field has no sum of its own: build the dense gradient
        scale_bar, zero_bar = _dense_group_gradients(x, y_bar, codes, scale, zero, layout)
    nothing = np.zeros(codes.shape, jax.dtypes.float0)
    if zero is not None:
        zero_bar = (
            zero_bar.astype(zero.dtype) if layout.zero_kind == "real" else np.zeros(zero.shape, jax.dtypes.float0)
        )
    return x_bar, nothing, scale_bar.astype(scale.dtype), None if zero is None else zero_bar


def _dense_group_gradients(x, y_bar, codes, scale, zero, layout):
    exact = (zero if layout.zero_kind == "real" else None, scale)

    def product(real_zero, scale):
        return affine_matmul_xla(x, codes, scale, zero if real_zero is None else real_zero, layout)

    _, pull = jax.vjp(product, *exact)
    zero_bar, scale_bar = pull(y_bar)
    return scale_bar, jnp.zeros((), jnp.float32) if zero_bar is None else zero_bar


_product.defvjp(_forward, _backward)
