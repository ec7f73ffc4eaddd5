"""The public product: checks, choice of implementation and gradients."""

from collections.abc import Callable

import jax

from pallas_kernels.backends.choose import choose, needs_gpu, needs_hopper
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.w4ax_matmul.config import W4AxConfig, choose_config
from pallas_kernels.w4ax_matmul.layout import RoundedRows, W4AxLayout, W4AxWeight, check_arrays
from pallas_kernels.w4ax_matmul.mosaic_config import MosaicConfig, misfit, mosaic_config
from pallas_kernels.w4ax_matmul.triton import w4ax_matmul_triton, w4ax_quantize_triton
from pallas_kernels.w4ax_matmul.xla import straight_through, w4ax_matmul_xla, w4ax_quantize_xla


def w4ax_quantize(
    x: jax.Array, weight: W4AxWeight, layout: W4AxLayout, *, implementation: str | None = None
) -> RoundedRows:
    """The activations as :func:`w4ax_matmul` multiplies them: permuted, and rounded per row and block.

    Args:
      x: ``[m, rows]`` in bfloat16, float16 or float32.
      weight, layout, implementation: as for :func:`w4ax_matmul`.

    Returns:
      Codes and scales; those of many rows of activations are what its first launch writes.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, weight, layout)
    if x.ndim != 2:
        raise ValueError(f"w4ax_matmul: x must be [m, {layout.rows}] to be quantised, got shape {x.shape}")
    name = choose("w4ax_matmul", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    if name == "xla" or x.shape[0] == 0:
        return w4ax_quantize_xla(x, weight, layout)
    return w4ax_quantize_triton(x, weight, layout, interpret=name == "interpret")


def w4ax_matmul(
    x: jax.Array,
    weight: W4AxWeight,
    layout: W4AxLayout,
    *,
    implementation: str | None = None,
    config: W4AxConfig | MosaicConfig | None = None,
) -> jax.Array:
    """``x @ w`` with ``x`` rounded per row and block to 8 or 4 bits and every block multiplied in integers.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32.
      weight: see :class:`W4AxWeight`.
      layout: what is fixed about the matrix.
      implementation: "triton", "xla", "interpret" (the Triton kernel run by the host, for tests) or "mosaic" (for
        Hopper and at least 128 rows of activations); None takes Triton's kernel on a GPU and XLA elsewhere.
      config: sizes, a :class:`MosaicConfig` for "mosaic"; those measured on this machine or chosen by rule when None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums over blocks are float32. Differentiable in ``x``, straight through the
      rounding and not at all where values saturate, and in ``scale``.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, weight, layout)
    rows = x.reshape(-1, layout.rows)
    given = config if isinstance(config, MosaicConfig) else None
    # Triton's comes first even where both can run: neither was timed yet, and it takes every number of rows.
    refusals = {
        "triton": layout.refusal or needs_gpu(),
        "xla": None,
        "interpret": layout.refusal,
        "mosaic": needs_hopper() or misfit(rows.shape[0], layout, given),
    }
    name = choose("w4ax_matmul", implementation, refusals)
    if config is not None and name != "xla" and (given is not None) != (name == "mosaic"):
        wanted = "MosaicConfig" if name == "mosaic" else "W4AxConfig"
        raise TypeError(f"w4ax_matmul: config must be a {wanted} for {name!r}, got {type(config).__name__}")

    def run(x, weight):
        if name == "xla" or x.shape[0] == 0:
            return w4ax_matmul_xla(x, weight, layout)
        if name == "mosaic":
            from pallas_kernels.w4ax_matmul.mosaic import w4ax_matmul_mosaic  # a second to import, for few who ask

            return w4ax_matmul_mosaic(x, weight, layout, given or mosaic_config(x.shape[0], layout))
        chosen = choose_config(x.shape[0], layout, config)  # pyright: ignore[reportArgumentType] - of its kind by now
        return w4ax_matmul_triton(x, weight, layout, chosen, interpret=name == "interpret")

    alike, *arrays = varying_alike(rows, *weight)
    y = _differentiable(run, layout)(alike, W4AxWeight(*arrays))  # pyright: ignore[reportArgumentType]
    return y.reshape(*x.shape[:-1], layout.cols)


def _differentiable(run: Callable[..., jax.Array], layout: W4AxLayout) -> Callable[..., jax.Array]:
    @jax.custom_vjp
    def product(x, weight):
        return run(x, weight)

    def forward(x, weight):
        return product(x, weight), (x, weight)

    def backward(kept, y_bar):
        x, weight = kept
        return straight_through(x, weight, y_bar, layout)

    product.defvjp(forward, backward)
    return product
