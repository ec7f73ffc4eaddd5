"""Adam's moments moved by one kernel on a GPU: codes in, codes out, and nothing decoded stands in memory.

The kernel takes the place of ``scale_by_adam`` between decoding and coding; what an optimizer does with the direction
(weight decay, trust ratio, learning rate) stays optax's, fused by XLA with the change of the parameters.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula
from compressjax.training.eight_bit.blockwise import BlockQ
from compressjax.training.eight_bit.code_maps import code_map
from compressjax.training.eight_bit.state_policy import StatePolicy

_MOST_BLOCK = 8192  # values of a block that one program of the kernel holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamParts:
    """What an optimizer is made of.

    Attributes:
      b1, b2, eps: of ``optax.scale_by_adam``.
      rest: transforms that follow it in the chain; None where the optimizer is ``scale_by_adam`` itself.
    """

    b1: Any
    b2: Any
    eps: Any
    rest: tuple[optax.GradientTransformation, ...] | None


def with_adam_kernel(
    formula: optax.GradientTransformationExtraArgs, parts: AdamParts, policy: StatePolicy | None
) -> optax.GradientTransformationExtraArgs:
    """``formula``, an 8-bit optimizer made of ``parts``, with its update through the kernel on a GPU.

    Args:
      formula: as `quantized_state` makes it; its state is kept as it is.
      parts: of the optimizer.
      policy: the one ``formula`` was made with.
    """
    policy = StatePolicy() if policy is None else policy

    def update(updates, state, params=None, **extra) -> Any:
        def through_xla(updates, state, params):
            return formula.update(updates, state, params, **extra)

        def through_kernel(updates, state, params):
            return _update(updates, state, params, parts, policy)

        refusal = "the optimizer takes further arguments" if extra else kernel_refusal(updates, state, parts, policy)
        return kernel_or_formula(through_kernel, through_xla, refusal, updates, state, params)

    return optax.GradientTransformationExtraArgs(formula.init, update)


def kernel_refusal(updates: Any, state: Any, parts: AdamParts, policy: StatePolicy) -> str | None:
    """Why the GPU kernel does not take this step, or None."""
    if policy.stochastic or policy.floor_zeros or policy.skip_nonfinite:
        return "the policy rounds at random, floors zeros or skips gradients"
    if jax.device_count() > 1 and not jax.sharding.get_abstract_mesh().manual_axes:
        return "arrays may be sharded, and a kernel outside shard_map would gather them"
    adam, rest = _split(state.inner, parts)
    if not isinstance(adam, optax.ScaleByAdamState) or len(rest) != len(parts.rest or ()):
        return "the state is not that of a chain that starts with scale_by_adam"
    pairs = list(zip(_leaves(adam.mu), _leaves(adam.nu), strict=True))
    grads = jax.tree.leaves(updates)
    if [g.shape for g in grads] != [mu.shape for mu, _ in pairs]:
        return "the state does not fit the gradients"
    for g, (mu, nu) in zip(grads, pairs, strict=True):
        if isinstance(mu, BlockQ) != isinstance(nu, BlockQ):
            return "one moment is in 8 bits and the other is not"
        if g.dtype.name not in KERNEL_ACTIVATIONS:
            return f"gradients are {g.dtype.name}"
        if isinstance(mu, BlockQ) and min(mu.block_size, mu.codes.size) > _MOST_BLOCK:
            return f"blocks have {mu.block_size} values"
    if not any(isinstance(mu, BlockQ) for mu, _ in pairs):
        return "no moment is in 8 bits"
    return None


def _split(inner, parts: AdamParts) -> tuple[Any, tuple]:
    if parts.rest is None:
        return inner, ()
    return (inner[0], tuple(inner[1:])) if isinstance(inner, tuple) and inner else (None, ())


def _leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, BlockQ))


def _maps(moment, name: str, parts: AdamParts, policy: StatePolicy) -> list[np.ndarray | None]:
    """The map of each leaf of a moment, by its path in the whole state; None for leaves in float32."""
    lead = () if parts.rest is None else (jax.tree_util.SequenceKey(0),)
    paths, _ = jax.tree_util.tree_flatten_with_path(moment, is_leaf=lambda leaf: isinstance(leaf, BlockQ))
    named = [((*lead, jax.tree_util.GetAttrKey(name), *path), leaf) for path, leaf in paths]
    return [
        code_map(policy.map_for(path, leaf.codes.size)) if isinstance(leaf, BlockQ) else None for path, leaf in named
    ]


def _update(updates, state, params, parts: AdamParts, policy: StatePolicy):
    adam, rest = _split(state.inner, parts)
    grads, structure = jax.tree.flatten(updates)
    mus, nus = _leaves(adam.mu), _leaves(adam.nu)
    maps = list(zip(_maps(adam.mu, "mu", parts, policy), _maps(adam.nu, "nu", parts, policy), strict=True))
    kept = [nth for nth, mu in enumerate(mus) if not isinstance(mu, BlockQ)]
    plain = optax.scale_by_adam(parts.b1, parts.b2, parts.eps)
    wide = [grads[nth].astype(jnp.float32) for nth in kept]
    held = optax.ScaleByAdamState(adam.count, [mus[nth] for nth in kept], [nus[nth] for nth in kept])
    found: Any
    fresh: Any
    found, fresh = plain.update(wide, held)
    directions: list[Any] = [None] * len(grads)
    for nth, direction, mu, nu in zip(kept, found, fresh.mu, fresh.nu, strict=True):
        directions[nth], mus[nth], nus[nth] = direction, mu, nu
    for nth, (m_map, v_map) in enumerate(maps):
        if m_map is not None and v_map is not None:
            directions[nth], mus[nth], nus[nth] = _moved(
                grads[nth], mus[nth], nus[nth], (m_map, v_map), fresh.count, parts, policy
            )
    direction = jax.tree.unflatten(structure, directions)
    moved = optax.ScaleByAdamState(fresh.count, jax.tree.unflatten(structure, mus), jax.tree.unflatten(structure, nus))
    inner: Any = moved
    if parts.rest is not None:
        values = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        following: Any
        direction, following = optax.chain(*parts.rest).update(direction, rest, values)
        inner = (moved, *following)
    narrow = jax.tree.map(lambda new, old: new.astype(old.dtype), direction, updates)
    return narrow, state._replace(inner=inner)


def _moved(g, mu: BlockQ, nu: BlockQ, maps, count, parts: AdamParts, policy: StatePolicy):
    """Direction and both moments of one leaf."""
    from pallas_kernels.blockwise_adam import AdamLayout, Hyper, Moments, blockwise_adam

    m_map, v_map = (tuple(map(float, values)) for values in maps)
    flat = mu.axis_mode == "flat"
    layout = AdamLayout(block=mu.block_size, flat=flat, m_map=m_map, v_map=v_map, keep_sign=policy.keep_sign)
    steps = count.astype(jnp.float32)
    hyper = Hyper(parts.b1, parts.b2, 1 - parts.b1**steps, 1 - parts.b2**steps, parts.eps)
    moments = Moments(mu.codes, mu.absmax, nu.codes, nu.absmax)
    direction, fresh = blockwise_adam(g, moments, hyper, layout, implementation="triton")
    return (
        direction,
        dataclasses.replace(mu, codes=fresh.m_codes, absmax=fresh.m_scale),
        dataclasses.replace(nu, codes=fresh.v_codes, absmax=fresh.v_scale),
    )
