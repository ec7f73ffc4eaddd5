"""Bonds of matrix product operators: found for an error, made smaller afterwards, or set layer by layer."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.driver import compress
from compressjax.factorization.compactifai import CompactifAI
from compressjax.leaf.by_layer import by_layer
from compressjax.leaf.tensor_train import TensorTrain, bonds_of
from compressjax.numerics.tensor_train import Dims, balance, capped_bonds, interleave, round_train
from compressjax.ops import dense
from compressjax.select import replace, resolve, weights


def truncate(leaf: TensorTrain, max_bond: int | Sequence[int], *, dtype: str = "float16") -> TensorTrain:
    """A matrix product operator with smaller bonds, found without forming the matrix.

    With two sites it is what truncating the matrix itself gives.

    Args:
      leaf: of one weight or stacked.
      max_bond: of every bond, or one each; bonds that are smaller stay.
      dtype: of the new cores.

    Raises:
      ValueError: a bond below 1, or another number of them.
    """
    now = bonds_of(leaf)
    wanted = [max_bond] * len(now) if isinstance(max_bond, int) else list(max_bond)
    if len(wanted) != len(now) or any(bond < 1 for bond in wanted):
        raise ValueError(f"max_bond must be one bond >= 1 or {len(now)}, got {max_bond}")
    bonds = capped_bonds(leaf.in_dims, leaf.out_dims, [min(pair) for pair in zip(wanted, now, strict=True)])

    cores = _rounded(tuple(map(dense, leaf.cores)), leaf.in_dims, leaf.out_dims, bonds)
    return dataclasses.replace(leaf, cores=tuple(core.astype(dtype) for core in cores))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _rounded(cores, in_dims, out_dims, bonds):
    cores = tuple(core.astype(jnp.float32) for core in cores)
    lead = cores[0].shape[:-2]
    flat = tuple(core.reshape(-1, *core.shape[-2:]) for core in cores)
    # One layer after the other: a batch of them may wait for ever in the CPU's QR.
    found = jax.lax.map(lambda one: balance(round_train(one, in_dims, out_dims, bonds), in_dims, out_dims), flat)
    return tuple(core.reshape(*lead, *core.shape[1:]) for core in found)


def bonds_within(w: jax.Array, rel_tol: float, in_dims: Dims, out_dims: Dims) -> Dims:
    """The smallest bonds with ``|W - Ŵ| <= rel_tol |W|``, the loss shared evenly among the bonds.

    Bonds are shapes, so this looks at values and is no part of a traced program; what it returns goes into
    ``CompactifAI.max_bond``. A stack gets for each bond the largest that one of its layers needs.

    Args:
      w: ``[in, out]`` or stacked.
      rel_tol: in (0, 1).
      in_dims, out_dims: factors of the sides.

    Raises:
      ValueError: a tolerance outside (0, 1).
    """
    if not 0 < rel_tol < 1:
        raise ValueError(f"rel_tol must be in (0, 1), got {rel_tol}")
    found = [_within(layer, rel_tol, in_dims, out_dims) for layer in w.reshape(-1, *w.shape[-2:])]
    return tuple(max(bonds) for bonds in zip(*found, strict=True))


def _within(w, rel_tol, in_dims, out_dims):
    carry = interleave(w.astype(jnp.float32), in_dims, out_dims).reshape(1, -1)
    allowed = rel_tol**2 * float(jnp.sum(carry**2)) / max(len(in_dims) - 1, 1)
    bonds: list[int] = []
    for i, o in zip(in_dims[:-1], out_dims[:-1], strict=True):
        _, s, right = jnp.linalg.svd(carry.reshape(carry.shape[0] * i * o, -1), full_matrices=False)
        # What is lost when only the first r are kept, r = 0, 1, ...
        tails = np.append(np.cumsum(np.asarray(s, np.float64)[::-1] ** 2)[::-1], 0.0)
        bonds.append(max(1, int(np.argmax(tails <= allowed))))
        carry = s[: bonds[-1], None] * right[: bonds[-1]]
    return tuple(bonds)


def tensorize(params: Any, bonds: Mapping[str, int | None | Sequence[int | None]], cfg: CompactifAI) -> Any:
    """Weights as matrix product operators with bonds of their own, layer by layer of a stack where asked.

    Args:
      params: nested dicts of arrays; kernels are ``[in, out]`` or stacked once, ``[layers, in, out]``.
      bonds: path or pattern -> largest bond, or one per layer of a stack; None leaves a weight or a layer dense. The
        first pattern that matches wins.
      cfg: everything else.

    Returns:
      The tree with ``TensorTrain`` leaves, or with ``ByLayer`` leaves where the layers of a stack differ.

    Raises:
      ValueError: another number of bonds than layers, or as the verb ``lowrank``.
    """
    chosen, found = resolve(params, bonds), weights(params)
    alike = {path: dataclasses.replace(cfg, max_bond=b) for path, b in chosen.items() if isinstance(b, int)}
    new = {path: _layers(path, found[path], list(b), cfg) for path, b in chosen.items() if path not in alike}
    if alike:
        params = compress(params, {**alike, "**": None})[0]
    return replace(params, new)


def _layers(path, w, bonds, cfg):
    if w.ndim != 3 or len(bonds) != w.shape[0]:
        raise ValueError(f"bonds of {path} {tuple(w.shape)} must be one, or one per layer, got {len(bonds)}")
    layers: list[Any] = list(w)
    for bond in dict.fromkeys(b for b in bonds if b is not None):
        at = [i for i, b in enumerate(bonds) if b == bond]
        leaf = compress({"kernel": w[np.asarray(at)]}, dataclasses.replace(cfg, max_bond=bond))[0]["kernel"]
        for place, i in enumerate(at):
            layers[i] = jax.tree.map(lambda a, place=place: a[place], leaf)
    return by_layer(layers)
