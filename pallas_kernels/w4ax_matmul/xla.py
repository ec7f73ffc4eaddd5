"""The product in plain JAX: what runs where no kernel does, and what kernels are compared with; and its gradients."""

import jax
import jax.numpy as jnp

from pallas_kernels.w4ax_matmul.layout import RoundedRows, W4AxLayout, W4AxWeight


def _wide(weight: W4AxWeight, layout: W4AxLayout) -> jax.Array:
    """Which blocks are rounded to ``hi_bits``, bool ``[blocks]``."""
    return jnp.arange(layout.blocks, dtype=jnp.int32) < weight.n_hi


def _rounded(x: jax.Array, weight: W4AxWeight, layout: W4AxLayout) -> tuple[jax.Array, jax.Array]:
    """Codes int8 ``[m, blocks, block]`` and scales float32 ``[m, blocks]`` of ``x [m, rows]``."""
    x = x.astype(jnp.float32)
    if weight.perm is not None:
        x = jnp.take(x, weight.perm, axis=-1)
    x = jnp.pad(x, [(0, 0), (0, layout.padded - layout.rows)]).reshape(-1, layout.blocks, layout.block)
    scale = layout.scale(jnp.max(jnp.abs(x), axis=-1), _wide(weight, layout)[None, :])
    bound = layout.limit(_wide(weight, layout))[None, :, None]
    codes = jnp.round(x * (jnp.float32(1) / scale)[..., None])
    return jnp.clip(codes, -bound, bound).astype(jnp.int8), scale


def _in_place(per_channel: jax.Array, weight: W4AxWeight, layout: W4AxLayout, axis: int) -> jax.Array:
    """What blocks hold of each channel, in the order of the inputs."""
    kept = jax.lax.slice_in_dim(per_channel, 0, layout.rows, axis=axis)
    return kept if weight.perm is None else jnp.take(kept, jnp.argsort(weight.perm), axis=axis)


def _halves(codes: jax.Array) -> jax.Array:
    """Bytes ``[..., half, cols]`` as int8 of 16 times the codes, ``[..., block, cols]``."""
    return jnp.concatenate([codes << jnp.uint8(4), codes & jnp.uint8(0xF0)], axis=-2).astype(jnp.int8)


def dense_matrix(weight: W4AxWeight, layout: W4AxLayout) -> jax.Array:
    """The matrix, float32 ``[rows, cols]``."""
    codes = _halves(weight.codes.reshape(layout.blocks, layout.half, layout.cols)).astype(jnp.float32)
    values = codes * (weight.scale.astype(jnp.float32) / 16)[:, None, :]
    return _in_place(values.reshape(layout.padded, layout.cols), weight, layout, 0)


def w4ax_quantize_xla(x: jax.Array, weight: W4AxWeight, layout: W4AxLayout) -> RoundedRows:
    """Activations permuted and rounded, for ``x [m, rows]``."""
    codes, scale = _rounded(x, weight, layout)
    return RoundedRows(codes.reshape(-1, layout.padded), scale.T)


def w4ax_matmul_xla(x: jax.Array, weight: W4AxWeight, layout: W4AxLayout) -> jax.Array:
    """The product for ``x [m, rows]``, one block at a time, in the dtype of ``x``."""
    codes, scale = _rounded(x, weight, layout)
    packed = weight.codes.reshape(layout.blocks, layout.half, layout.cols)
    by_block = jnp.swapaxes(codes, 0, 1), scale.T, packed, weight.scale.astype(jnp.float32) / 16

    def scaled(inputs):
        codes, s_x, packed, s_w = inputs
        exact = jax.lax.dot(codes, _halves(packed), preferred_element_type=jnp.int32).astype(jnp.float32)
        return exact * s_x[:, None] * s_w[None, :]

    # The first block starts the sum: unlike zeros it varies over the mesh axes that its operands vary over.
    first, rest = (jax.tree.map(lambda a, cut=cut: a[cut], by_block) for cut in (0, slice(1, None)))
    total = jax.lax.scan(lambda total, inputs: (total + scaled(inputs), None), scaled(first), rest)[0]
    return total.astype(x.dtype)


def straight_through(
    x: jax.Array, weight: W4AxWeight, y_bar: jax.Array, layout: W4AxLayout
) -> tuple[jax.Array, W4AxWeight]:
    """Gradients for ``x`` and the weight's arrays as if rounding were the identity; none where values saturate.

    The scale's gradient is that of the product with the activations as rounded.
    """
    codes, scale = _rounded(x, weight, layout)
    read = (codes.astype(jnp.float32) * scale[..., None]).reshape(-1, layout.padded)
    read = _in_place(read, weight, layout, 1)
    _, pull = jax.vjp(lambda read, weight: jnp.matmul(read, dense_matrix(weight, layout)), read, weight)
    x_bar, weight_bar = pull(y_bar.astype(jnp.float32))
    if layout.act_clip < 1:
        limit = layout.limit(_wide(weight, layout))
        reach = jnp.repeat(scale * limit[None, :], layout.block, axis=-1)
        reach = _in_place(reach, weight, layout, 1)
        x_bar = jnp.where(jnp.abs(x.astype(jnp.float32)) > reach, 0, x_bar)
    return x_bar.astype(x.dtype), weight_bar
