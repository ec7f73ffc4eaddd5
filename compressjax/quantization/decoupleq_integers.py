"""The integer part of decoupleQ: codes for given scales and zeros, by a GPTQ sweep or by projected gradients."""

import jax
import jax.numpy as jnp

from compressjax.numerics.grids import Grid, decode
from compressjax.numerics.sweep import sweep
from compressjax.quantization.decoupleq_grid import decode_all, round_all, round_to
from compressjax.quantization.hessian_plan import HessianPlan

# Adam of the reference's projected gradients: (b1, b2), and epsilon before and between the roundings.
_BETAS = (0.9, 0.999)
_EPS_BEFORE, _EPS_BETWEEN = 1e-5, 1e-4


def solve_integers(w: jax.Array, grid: Grid, plan: HessianPlan, cfg) -> jax.Array:
    """Codes that approximately minimise ``(ŵ - w)ᵀ H (ŵ - w)`` with ``ŵ = scale * (u - zero)`` at fixed grids.

    Args:
      w: ``[in, out]``, float32.
      grid: ``[groups, out]``.
      plan: visiting order, factor and damped Hessian ``plan.h``.
      cfg: ``bits``, ``solver`` and what that solver reads.

    Returns:
      Unsigned codes, float32 ``[in, out]``.
    """
    return (_swept if cfg.solver == "gptq" else _projected)(w, grid, plan, cfg)


def _swept(w, grid, plan, cfg):
    back = jnp.argsort(plan.perm)
    of_row = plan.perm // plan.group
    ordered = w[plan.perm]

    def round_row(row, i, state):
        codes, rounded = _round_input(row, i, grid, of_row, cfg.bits)
        return rounded, codes, state

    out = sweep(ordered, plan.factor.u, round_row, block=cfg.block)
    if not cfg.polish:
        return out.codes[back]
    h = plan.h[plan.perm][:, plan.perm]

    def again(_, now):
        return _descend(now[1], ordered, h, grid, of_row, cfg)

    codes, _ = jax.lax.fori_loop(0, cfg.polish, again, (out.codes, out.weight))
    return codes[back]


def _round_input(row, i, grid, of_row, bits):
    """Codes and rounded weights ``[out]`` of the input visited ``i``-th."""
    at = of_row[jnp.minimum(i, of_row.shape[0] - 1)]
    own = Grid(grid.scale[at], grid.zero[at])
    codes = round_to(row, own, bits)
    return codes, decode(codes, own)


def _descend(rounded, w, h, grid, of_row, cfg):
    """One round of coordinate descent: every input in turn takes the code that is best with all others fixed.

    The pull ``H (w - ŵ)`` is brought up to date inside a block of inputs at once and beyond it in one product.
    """
    width, block = w.shape[0], cfg.block
    count = -(-width // block)
    pad = count * block - width
    h = jnp.pad(h, ((0, pad), (0, pad)))
    curvature = jnp.diagonal(h)
    curvature = jnp.where(curvature > 0, curvature, 1)

    def padded(a):
        return jnp.pad(a, ((0, pad), (0, 0)))

    def one_block(pull, b):
        at = b * block
        rows = jax.lax.dynamic_slice_in_dim(h, at, block, 0)
        inside = jax.lax.dynamic_slice_in_dim(rows, at, block, 1)

        def one_input(own, j):
            old = before[at + j]
            code, new = _round_input(old + own[j] / curvature[at + j], at + j, grid, of_row, cfg.bits)
            new = jnp.where(at + j < width, new, old)
            return own - inside[j][:, None] * (new - old)[None], (code, new)

        own = jax.lax.dynamic_slice_in_dim(pull, at, block, 0)
        _, (code, new) = jax.lax.scan(one_input, own, jnp.arange(block))
        step = new - jax.lax.dynamic_slice_in_dim(before, at, block, 0)
        return pull - jnp.matmul(rows.T, step, precision="highest"), (code, new)

    before = padded(rounded)
    pull = jnp.matmul(h, padded(w) - before, precision="highest")
    _, (codes, rounded) = jax.lax.scan(one_block, pull, jnp.arange(count))
    return tuple(a.reshape(-1, w.shape[1])[:width] for a in (codes, rounded))


def _projected(w, grid, plan, cfg):
    group, width = plan.group, w.shape[0]
    # To a mean diagonal of one, so that Adam's epsilon means the same for any number of tokens.
    h = plan.h / jnp.mean(jnp.diagonal(plan.h))
    ends = [decode_all(jnp.full_like(w, end), grid, group) for end in (0, 2**cfg.bits - 1)]
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)

    def descend(state, eps, moving):
        v, first, second, count = state
        count = count + 1
        gradient = jnp.matmul(h, v - w, precision="highest")
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
        unbiased = first / (1 - _BETAS[0] ** count), second / (1 - _BETAS[1] ** count)
        step = cfg.lr * unbiased[0] / (jnp.sqrt(unbiased[1]) + eps)
        return jnp.where(moving, jnp.clip(v - step, low, high), v), first, second, count

    everywhere = jnp.ones((width, 1), bool)
    state = w, jnp.zeros_like(w), jnp.zeros_like(w), jnp.float32(0)
    state = jax.lax.fori_loop(0, cfg.pgd_iters, lambda _, s: descend(s, _EPS_BEFORE, everywhere), state)
    state = jnp.clip(state[0], low, high), *state[1:]

    def settle(i, state):
        own = Grid(grid.scale[i // group], grid.zero[i // group])
        row = decode(round_to(state[0][i], own, cfg.bits), own)
        state = state[0].at[i].set(row), *state[1:]
        later = (jnp.arange(width) > i)[:, None]
        return jax.lax.fori_loop(0, cfg.round_iters, lambda _, s: descend(s, _EPS_BETWEEN, later), state)

    v = jax.lax.fori_loop(0, width, settle, state)[0]
    return round_all(v, grid, cfg.bits, group)
