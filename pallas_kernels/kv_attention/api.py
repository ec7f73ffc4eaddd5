"""The public attention: checks, choice of implementation and gradients."""

import functools

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.kv_attention.config import AttentionConfig, choose_config
from pallas_kernels.kv_attention.layout import KVLayout, Past, Softmax, check_arrays
from pallas_kernels.kv_attention.triton import kv_attention_triton
from pallas_kernels.kv_attention.xla import kv_attention_xla


def kv_attention(
    q: jax.Array,
    past: Past,
    start: jax.Array,
    stop: jax.Array,
    layout: KVLayout,
    *,
    seen: jax.Array | None = None,
    bias: jax.Array | None = None,
    keep_scores: bool = False,
    implementation: str | None = None,
    config: AttentionConfig | None = None,
) -> Softmax:
    """Attention of one new token to packed keys and values, which are read as they are packed.

    Tokens are counted through the blocks, ``block * n + token``; those before ``start`` and from ``stop`` on are not
    seen, and of tiles that hold only such tokens nothing is read.

    Args:
      q: ``[B, K, G, d]`` in bfloat16, float16 or float32, scaled. Keys, values and weights are multiplied in it.
      past: blocks of rounded keys and values, with low-rank parts or without.
      start, stop: int32 ``[B]``.
      layout: what is fixed about the blocks.
      seen: uint8 ``[C, B, n]``, 0 for tokens that are not seen although they lie between; None for none.
      bias: float32 ``[C, B, K, G, n]``, added to scores; None for nothing.
      keep_scores: scores are returned too, for what the caller adds to the average.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      The unnormalised average, its largest score and the sum of weights, to be combined with other parts; float32 sums.
      Differentiable as the formula is.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(q, past, start, stop, seen, bias, layout)
    name = choose("kv_attention", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    flat, tree = jax.tree.flatten((q, past, start, stop, seen, bias))

    def formula(*operands):
        q, past, start, stop, seen, bias = jax.tree.unflatten(tree, operands)
        return kv_attention_xla(q, past, start, stop, seen, bias, layout, keep_scores=keep_scores)

    if name == "xla" or 0 in (q.size, past.k.codes.shape[0]):
        return formula(*flat)
    chosen = choose_config(q, past.k.codes.shape[0], layout, config)
    run = functools.partial(
        kv_attention_triton, layout=layout, config=chosen, keep_scores=keep_scores, interpret=name == "interpret"
    )

    def kernel(*operands):
        return run(*jax.tree.unflatten(tree, operands))

    return with_formula_gradient(kernel, formula)(*varying_alike(*flat))
