"""Optax's optimizers with 8-bit states, under their names with ``_8bit`` behind.

Arguments are those of the optax function of the same name, with ``policy`` and ``key`` of `quantized_state` added; the
arithmetic of the update is optax's, in float32; on a GPU, moments of Adam, AdamW and LAMB go through a kernel with
the same. Where the reference's defaults differ, the docstring says so.

Paper: Dettmers et al., 2022, arXiv 2110.02861.
"""

import jax
import optax
from optax import ScalarOrSchedule

from compressjax.training.eight_bit.adam_on_gpu import AdamParts, with_adam_kernel
from compressjax.training.eight_bit.quantized_state import quantized_state
from compressjax.training.eight_bit.state_policy import StatePolicy

Transform = optax.GradientTransformationExtraArgs


def scale_by_adam_8bit(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """Adam's direction ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`` with m and v in 8 bits.

    With b2 = 0.999 and rounding to nearest, v falls by less than half a gap of its codes in a step, so it stays until
    its block's maximum moves. That is the reference's behaviour; ``StatePolicy(stochastic={"nu"})`` avoids it.
    """
    plain = quantized_state(optax.scale_by_adam(b1, b2, eps), policy, key=key)
    return with_adam_kernel(plain, AdamParts(b1=b1, b2=b2, eps=eps, rest=None), policy)


def adam_8bit(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    nesterov: bool = False,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.adam` with 8-bit moments (Kingma and Ba, 2015)."""
    plain = quantized_state(optax.adam(learning_rate, b1, b2, eps, nesterov=nesterov), policy, key=key)
    if nesterov:
        return plain
    rest = (optax.scale_by_learning_rate(learning_rate),)
    return with_adam_kernel(plain, AdamParts(b1=b1, b2=b2, eps=eps, rest=rest), policy)


def adamw_8bit(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    mask=None,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.adamw` with 8-bit moments (Loshchilov and Hutter, 2019); the reference's decay of 0.01 is the default."""
    inner = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    rest = (optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))
    parts = AdamParts(b1=b1, b2=b2, eps=eps, rest=rest)
    return with_adam_kernel(quantized_state(inner, policy, key=key), parts, policy)


def sgd_8bit(
    learning_rate: ScalarOrSchedule,
    momentum: float = 0.9,
    *,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.sgd` with 8-bit momentum; ``weight_decay`` is added to the gradient before it."""
    inner = optax.sgd(learning_rate, momentum, nesterov)
    decayed = optax.chain(optax.add_decayed_weights(weight_decay), inner) if weight_decay else inner
    return quantized_state(decayed, policy, key=key)


def rmsprop_8bit(
    learning_rate: ScalarOrSchedule,
    decay: float = 0.99,
    eps: float = 1e-8,
    *,
    momentum: float | None = None,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.rmsprop` with an 8-bit second moment and eps outside the root; decay 0.99 is the reference's."""
    inner = optax.rmsprop(learning_rate, decay, eps, eps_in_sqrt=False, momentum=momentum)
    return quantized_state(inner, policy, key=key)


def adagrad_8bit(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    *,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.adagrad` with an 8-bit sum of squares (Duchi et al., 2011), which starts at 0 as in the reference.

    The reference adds eps to the root of the sum, optax adds its argument inside: it is given ``eps ** 2``, which puts
    the floor of the root at the same ``eps``. The sum only grows, so rounding to nearest freezes it once a squared
    gradient is below half a gap of its code: give a key and ``StatePolicy(stochastic={"sum_of_squares"})``.
    """
    inner = optax.adagrad(learning_rate, initial_accumulator_value, eps**2)
    return quantized_state(inner, policy, key=key)


def lion_8bit(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    *,
    mask=None,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.lion` with 8-bit momentum (Chen et al., 2023); no weight decay unless given, as in the reference."""
    return quantized_state(optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask), policy, key=key)


def lamb_8bit(
    learning_rate: ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    *,
    mask=None,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.lamb` with 8-bit moments (You et al., 2020).

    The norms are of whole tensors and of the fresh update, trust ratio 1 where either is 0. The reference's 8-bit LAMB
    leaves the trust ratio out; this one has it.
    """
    inner = optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    rest = (
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_trust_ratio(),
        optax.scale_by_learning_rate(learning_rate),
    )
    parts = AdamParts(b1=b1, b2=b2, eps=eps, rest=rest)
    return with_adam_kernel(quantized_state(inner, policy, key=key), parts, policy)


def lars_8bit(
    learning_rate: ScalarOrSchedule,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
    momentum: float = 0.9,
    *,
    nesterov: bool = False,
    policy: StatePolicy | None = None,
    key: jax.Array | None = None,
) -> Transform:
    """`optax.lars` with 8-bit momentum (You et al., 2017).

    The gradient is scaled by ``trust_coefficient |p| / |g|`` before it enters the momentum, as the paper of LARS has
    it. The reference instead caps the update's norm at 0.02 of the weight's.
    """
    inner = optax.lars(
        learning_rate,
        weight_decay,
        trust_coefficient=trust_coefficient,
        eps=eps,
        momentum=momentum,
        nesterov=nesterov,
    )
    return quantized_state(inner, policy, key=key)
