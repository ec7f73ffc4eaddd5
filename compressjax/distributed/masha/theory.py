"""Operators of saddle points, and the step size that the analysis of MASHA1 allows."""

import math
from collections.abc import Callable
from typing import Any

import jax


def saddle_operator(f: Callable[..., jax.Array]) -> Callable[..., tuple[Any, Any]]:
    """``F(x, y) = (grad_x f, -grad_y f)`` of ``min_x max_y f(x, y, batch)``.

    Args:
      f: ``(x, y, batch) -> scalar``.

    Returns:
      ``((x, y), batch) -> F``.
    """
    gradient = jax.grad(f, argnums=(0, 1))

    def operator(z: tuple[Any, Any], batch: Any) -> tuple[Any, Any]:
        along_x, along_y = gradient(*z, batch)
        return along_x, jax.tree.map(lambda g: -g, along_y)

    return operator


def theory_stepsize(
    *,
    lipschitz: float,
    mean_lipschitz: float,
    strength: float,
    workers: int,
    q_up: float,
    q_down: float,
    p: float,
    participate: int | None = None,
    shared_mask: bool = False,
) -> float:
    """A step size with which MASHA1 converges.

        C^2 = q_s (L^2 + [(M - b) / (M - 1) + q_d - 1] Lt^2 / b)
        gamma = min(sqrt(p / 2) / C, p / (2 mu), tau / mu)

    With a mask shared by all workers ``C^2 = q_s q_d L^2``. Then ``E V^k <= (1 - gamma mu / 2)^k V^0`` for
    ``V = tau |z - z*|^2 + |w - z*|^2``. The rule was derived for this library from the one-step identity of
    extragradient with a snapshot, and is tested numerically; the paper's has the same form with other constants.

    Args:
      lipschitz: L of the mean operator.
      mean_lipschitz: Lt, root of the mean of the squared constants of the workers' operators.
      strength: mu >= 0 of strong monotonicity; 0 for a monotone operator, where the average of the half points has a
        gap of order 1 / (gamma K).
      workers: M.
      q_up, q_down: variance constants of the two compressors.
      p: snapshot probability; the last term of the minimum is dropped at 1, plain extragradient.
      participate: workers b that send in a step; None for all.
      shared_mask: whether all workers keep the same entries.

    Raises:
      ValueError: an argument out of range.
    """
    b = workers if participate is None else participate
    if not 1 <= b <= workers:
        raise ValueError(f"participate must be in 1..{workers}, got {participate}")
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p}")
    if not (lipschitz > 0 and mean_lipschitz > 0 and strength >= 0):
        raise ValueError(f"constants must be positive, got {lipschitz}, {mean_lipschitz}, {strength}")
    if min(q_up, q_down) < 1:
        raise ValueError(f"variance constants are at least 1, got {q_up} and {q_down}")
    if shared_mask:
        square = q_down * q_up * lipschitz**2
    else:
        absent = (workers - b) / (workers - 1) if workers > 1 else 0.0
        square = q_down * (lipschitz**2 + (absent + q_up - 1) * mean_lipschitz**2 / b)
    limits = [math.sqrt(p / 2 / square)]
    if strength > 0:
        limits.append(p / (2 * strength))
        if p < 1:
            limits.append((1 - p) / strength)
    return min(limits)
