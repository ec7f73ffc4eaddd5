"""Orthogonal matrices from free square ones, differentiable and batched.

Shang et al. (Matryoshka KV, 2024) train through the Cayley map; Householder products and the exponential are offered
beside it. All of them work on ``[..., d, d]`` in float32.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["cayley", "householder", "exp"]


def skew(x: jax.Array) -> jax.Array:
    """``X - X^T`` of the strictly lower triangle."""
    lower = jnp.tril(x, -1)
    return lower - jnp.swapaxes(lower, -1, -2)


def _identity(x: jax.Array) -> jax.Array:
    """The identity in the shape of ``x [..., d, d]``."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def cayley(x: jax.Array) -> jax.Array:
    """``(I - A/2)^{-1} (I + A/2)`` with ``A = skew(x)``; the identity at 0, determinant +1 everywhere."""
    a = skew(x) / 2
    eye = _identity(x)
    return jnp.linalg.solve(eye - a, eye + a)


def inv_cayley(q: jax.Array) -> jax.Array:
    """A matrix whose `cayley` is ``q``, where no eigenvalue of ``q`` is -1.

    Raises:
      ValueError: a concrete ``q`` that is not orthogonal.
    """
    eye = _identity(q)
    miss = jnp.max(jnp.abs(jnp.matmul(jnp.swapaxes(q, -1, -2), q) - eye))
    try:
        off = float(miss)
    except jax.errors.ConcretizationTypeError:  # values are not known under jit
        off = 0.0
    if not off < 1e-3:
        raise ValueError(f"inv_cayley needs an orthogonal matrix; QᵀQ is off the identity by {off:.3g}")
    # A (I + Q) = 2 (Q - I), and both sides commute.
    a = 2 * jnp.linalg.solve(eye + q, q - eye)
    return jnp.tril(a, -1)


def householder(x: jax.Array) -> jax.Array:
    """The product of reflections ``I - tau_j v_j v_j^T`` with ``v_j = e_j +`` the strict lower part of column j.

    ``tau_j = 2 / |v_j|^2``; an even number of reflections of unit vectors at ``x = 0`` gives signs only, which are
    taken out so that 0 is the identity here, too.
    """
    d = x.shape[-1]
    v = jnp.tril(x, -1) + _identity(x)
    tau = 2 / jnp.sum(jnp.square(v), axis=-2)

    def reflect(q, j):
        column = jnp.take(v, j, axis=-1)
        step = jnp.take(tau, j, axis=-1)[..., None, None]
        along = jnp.einsum("...ij,...j->...i", q, column)
        return q - step * along[..., :, None] * column[..., None, :], None

    q, _ = jax.lax.scan(reflect, _identity(x), jnp.arange(d))
    return -q


def exponential(x: jax.Array) -> jax.Array:
    """``exp(skew(x))``."""
    return jax.scipy.linalg.expm(skew(x))


def orthogonal(x: jax.Array, kind: Kind = "cayley") -> jax.Array:
    """The orthogonal matrix of a free one, the identity at 0; see `Kind`."""
    if kind not in MAPS:
        raise ValueError(f"kind must be one of {tuple(MAPS)}, got {kind!r}")
    return MAPS[kind](x)


MAPS = {"cayley": cayley, "householder": householder, "exp": exponential}


def principal_axes(second: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Eigenvectors of covariances, float64 ``[..., d, d]``, as columns of descending eigenvalue.

    Args:
      second: ``E[x x^T]``, ``[..., d, d]``.
      mean: ``E[x]``, ``[..., d]``.
    """
    second, mean = np.asarray(second, np.float64), np.asarray(mean, np.float64)
    covariance = second - mean[..., :, None] * mean[..., None, :]
    _, vectors = np.linalg.eigh(covariance)
    return np.ascontiguousarray(vectors[..., ::-1])
