"""Healing: a short training of the floats inside compressed weights on the whole model's own loss.

What CompactifAI does after its truncations (Tomut et al., 2024, arXiv 2401.14109), for cores or any other floats of
compressed leaves, with any optax transformation, on one device or on the data axis of a mesh. Integers, and all weights
that are not selected, stay bit for bit; masters are float32 and what comes back is in the storage dtypes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from compressjax.leaf.registration import is_leaf
from compressjax.leaf.tensor_train import TensorTrain
from compressjax.training.trainable import trainable_form


def is_tensor_train(node: Any) -> bool:
    """Whether a node of a tree is a matrix product operator."""
    return isinstance(node, TensorTrain)


class TrainedPart(NamedTuple):
    """The selected part of a tree, taken out for training.

    Attributes:
      floats: list of float32 trees, one per selected node.
      build: ``floats -> params``, differentiable.
      store: ``floats -> nodes`` in their storage dtypes.
      put: ``nodes -> params``.
    """

    floats: list[Any]
    build: Callable[[list[Any]], Any]
    store: Callable[[list[Any]], list[Any]]
    put: Callable[[list[Any]], Any]


def trained_part(params: Any, which: Callable[[Any], bool] = is_tensor_train) -> TrainedPart:
    """Takes the floats of selected nodes out of a tree.

    Args:
      params: nested dicts of arrays and leaves; layers inside a ``ByLayer`` leaf are nodes of their own.
      which: says of a compressed leaf or an array whether it is trained.

    Raises:
      ValueError: nothing is selected.
      TypeError: a selected array is not floating point.
    """
    nodes, structure = jax.tree.flatten(params, is_leaf=which)
    at = [i for i, node in enumerate(nodes) if which(node)]
    if not at:
        raise ValueError(f"nothing in params is selected for training, nodes are {sorted(set(map(_kind, nodes)))}")
    forms = [trainable_form(nodes[i]) if is_leaf(nodes[i]) else None for i in at]
    floats = [_float32(nodes[i]) if form is None else form.floats for i, form in zip(at, forms, strict=True)]

    def put(new):
        filled = list(nodes)
        for i, node in zip(at, new, strict=True):
            filled[i] = node
        return jax.tree.unflatten(structure, filled)

    def build(floats):
        return put([f if form is None else form.build(f, form.frozen) for f, form in zip(floats, forms, strict=True)])

    def store(floats):
        return [
            f.astype(nodes[i].dtype) if form is None else form.store(f)
            for i, f, form in zip(at, floats, forms, strict=True)
        ]

    return TrainedPart(floats, build, store, put)


def _float32(array):
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"selected arrays must be floating point, got {array.dtype} {array.shape}")
    return array.astype(jnp.float32)


def _kind(node):
    return type(node).__name__


class Healed(NamedTuple):
    """A model after healing.

    Attributes:
      params: the tree; what was not trained is what was given.
      losses: float32 ``[steps]``, each before its step, over all devices.
    """

    params: Any
    losses: jax.Array


def heal(
    params: Any,
    loss: Callable[[Any, Any], jax.Array],
    batches: Any,
    tx: optax.GradientTransformation,
    *,
    which: Callable[[Any], bool] = is_tensor_train,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> Healed:
    """Trains the selected floats of a compressed model, one step per batch, in one compiled loop.

    Args:
      params: the tree.
      loss: ``(params, batch) -> scalar``, the mean over a batch: of the next token's cross-entropy, or of the
        divergence from the original model.
      batches: pytree of arrays ``[steps, batch, ...]``.
      tx: any optax transformation; with a schedule, of as many steps.
      which: says of a node whether it is trained.
      mesh: for data-parallel healing: every device takes its share of each batch, gradients are averaged; parameters
        and the optimizer's state are alike on all devices. None for one device.
      axis: the mesh's axis that batches are cut along.

    Returns:
      :class:`Healed`.

    Raises:
      ValueError: no batches; batches that the axis does not divide; an axis that the mesh has not; nothing to train.
    """
    shapes = {a.shape[:2] for a in jax.tree.leaves(batches)}
    steps = {shape[0] for shape in shapes}
    if len(steps) != 1 or 0 in steps:
        raise ValueError(f"batches must be arrays [steps >= 1, batch, ...] of as many steps, got {sorted(shapes)}")
    if mesh is not None:
        if axis not in mesh.axis_names:
            raise ValueError(f"the mesh has axes {mesh.axis_names}, none called {axis!r}")
        uneven = [shape for shape in shapes if shape[1] % mesh.shape[axis]]
        if uneven:
            raise ValueError(f"batches must be divisible by the {mesh.shape[axis]} devices of {axis!r}, got {uneven}")
    nodes, losses = _run(params, batches, loss=loss, tx=tx, which=which, mesh=mesh, axis=axis)
    return Healed(trained_part(params, which).put(nodes), losses)


@functools.partial(jax.jit, static_argnames=("loss", "tx", "which", "mesh", "axis"))
def _run(params, batches, *, loss, tx, which, mesh, axis):
    def local(params, batches):
        part = trained_part(params, which)

        def step(state, batch):
            floats, moments = state
            value, gradient = jax.value_and_grad(lambda f: loss(part.build(f), batch))(floats)
            if mesh is not None:
                value, gradient = jax.lax.pmean((value, gradient), axis)
            with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to an integer step count
                updates, moments = tx.update(gradient, moments, floats)
                floats: Any = optax.apply_updates(floats, updates)
            return (floats, moments), value.astype(jnp.float32)

        (floats, _), losses = jax.lax.scan(step, (part.floats, tx.init(part.floats)), batches)
        return part.store(floats), losses

    if mesh is None:
        return local(params, batches)
    alike = PartitionSpec()
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(alike, PartitionSpec(None, axis)), out_specs=alike, check_vma=False
    )
    return mapped(params, batches)
