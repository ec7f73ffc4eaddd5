"""The public attention: checks, choice of implementation and gradients."""

import functools

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.kv_attention.layout import Softmax
from pallas_kernels.mla_attention.config import MLAConfig, choose_config
from pallas_kernels.mla_attention.layout import Latents, MLALayout, blocks_of, check_arrays
from pallas_kernels.mla_attention.triton import mla_attention_triton
from pallas_kernels.mla_attention.xla import mla_attention_xla


def mla_attention(
    q: jax.Array,
    latents: Latents,
    start: jax.Array,
    stop: jax.Array,
    layout: MLALayout,
    *,
    seen: jax.Array | None = None,
    implementation: str | None = None,
    config: MLAConfig | None = None,
) -> Softmax:
    """Attention of one new token to latents and rotary keys that all query heads share, the latents being the values.

    ``score = q . [c, k_rope]`` and ``acc = sum exp(score - m) c``, with the up-projections of keys absorbed into ``q``
    and those of values left to the caller. Tokens are counted through the blocks, ``block * n + token``; those before
    ``start`` and from ``stop`` on are not seen, and of tiles that hold only such tokens nothing is read.

    Args:
      q: ``[B, H, r + p]`` in bfloat16, float16 or float32, scaled: the absorbed query, then its rotary part. Rows and
        weights are multiplied in its dtype.
      latents: blocks of latents with rotary keys behind them: floats, or ``kv_attention.Codes`` without an axis for key
        heads.
      start, stop: int32 ``[B]``.
      layout: what is fixed about the blocks.
      seen: uint8 ``[C, B, n]``, 0 for tokens that are not seen although they lie between; None for none.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      The unnormalised average of latents, its largest score and the sum of weights, ``[B, H, r]`` and ``[B, H]``, to be
      combined with other parts; float32 sums. Differentiable as the formula is.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(q, latents, start, stop, seen, layout)
    name = choose("mla_attention", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    flat, tree = jax.tree.flatten((q, latents, start, stop, seen))

    def formula(*operands):
        q, latents, start, stop, seen = jax.tree.unflatten(tree, operands)
        return mla_attention_xla(q, latents, start, stop, seen, layout)

    if name == "xla" or 0 in (q.size, blocks_of(latents)):
        return formula(*flat)
    chosen = choose_config(q, blocks_of(latents), layout, config)
    run = functools.partial(mla_attention_triton, layout=layout, config=chosen, interpret=name == "interpret")

    def kernel(*operands):
        return run(*jax.tree.unflatten(tree, operands))

    return with_formula_gradient(kernel, formula)(*varying_alike(*flat))
