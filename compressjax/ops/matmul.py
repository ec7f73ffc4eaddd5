"""Products with a weight: ``x @ w`` and ``x @ w.T``."""

from typing import Any

import jax

from compressjax.dispatch import verb


@verb(on="w")
def matmul(x: jax.Array, w: Any) -> jax.Array:
    """``x @ w`` for a weight ``w`` of logical shape ``[in, out]``.

    Args:
      x: activations ``[..., in]``, floating point.
      w: a dense array or a compressed leaf.

    Returns:
      ``[..., out]`` in the dtype of ``x``.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="w")
def matmul_t(x: jax.Array, w: Any) -> jax.Array:
    """``x @ w.T`` for a weight ``w`` of logical shape ``[out, in]``, as a tied output head needs.

    Args:
      x: activations ``[..., in]``, floating point.
      w: a dense array or a compressed leaf, for example an embedding ``[vocab, width]``.

    Returns:
      ``[..., out]`` in the dtype of ``x``.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@matmul.register(jax.Array)
def _matmul_dense(x, w):
    return x @ w.astype(x.dtype)


@matmul_t.register(jax.Array)
def _matmul_t_dense(x, w):
    return jax.lax.dot_general(x, w.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))
