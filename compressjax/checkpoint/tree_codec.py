"""Trees of arrays and compressed leaves as JSON structure plus a flat list of arrays, without pickle.

A compressed leaf is recorded by class name, static metadata and fields, so any class that registers the verb ``dense``
can be stored; a leaf type of somebody else's is found again once the module that defines it has been imported.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

import compressjax.leaf  # noqa: F401  registers the leaf types of the library
from compressjax.leaf.registration import is_leaf
from compressjax.ops import dense

Node = Any
Builder = Callable[[list[Any]], Any]


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One array of a tree and where it was: ``kind`` is "jax", "numpy" or, for typed random keys, "key:<impl>"."""

    path: str
    value: Any
    kind: str


def leaf_class(name: str, module: str, path: str) -> type:
    """The registered leaf type called ``name``; ``module`` decides between several of that name.

    Raises:
      ValueError: when no such type is registered, or several are and none comes from ``module``.
    """
    types: list[Any] = [t for t in dense.types() if dataclasses.is_dataclass(t)]
    found = [t for t in types if t.__name__ == name]
    exact = [t for t in found if t.__module__ == module]
    if len(exact or found) != 1:
        known = ", ".join(sorted(t.__name__ for t in types))
        raise ValueError(
            f"{path}: leaf type {name!r} of module {module!r} is not registered (known: {known}); "
            "import the module that defines it"
        )
    return (exact or found)[0]


def describe(tree: Any) -> tuple[Node, list[StoredArray]]:
    """Splits a tree into a JSON-able structure and its arrays.

    Args:
      tree: dicts (string or integer keys), lists, tuples, None, arrays, Python scalars, strings, compressed leaves and
        any other registered pytree node, such as the NamedTuples of an optimizer state.

    Raises:
      TypeError: for a value that cannot be stored, naming its path.
      ValueError: for an array whose buffer has been donated or deleted, naming its path.
    """
    arrays: list[StoredArray] = []
    return _describe(tree, "", arrays), arrays


def _describe(value, path, arrays) -> Node:
    if value is None:
        return None
    # Before Python scalars, for np.float64 is a float.
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        arrays.append(_stored_array(value, path))
        return {"array": len(arrays) - 1}
    if isinstance(value, (bool, int, float, str)):
        return {"value": _static(value, path)}
    if type(value) is dict:
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise TypeError(f"{path or 'tree'}: dict keys must be strings or integers, got {key!r}")
        return {"dict": [[key, _describe(v, _join(path, key), arrays)] for key, v in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_describe(v, _join(path, i), arrays) for i, v in enumerate(value)]}
    children = one_level(value)
    if children is None:
        raise TypeError(f"{path or 'tree'}: cannot store a value of type {type(value).__name__}")
    fields = [[name, _describe(child, _join(path, name), arrays)] for name, child in children]
    kind = type(value)
    if not is_leaf(value):
        return {"node": kind.__name__, "fields": fields}
    names = {name for name, _ in children}
    static = {
        f.name: _static(getattr(value, f.name), _join(path, f.name))
        for f in dataclasses.fields(value)
        if f.name not in names
    }
    return {"leaf": kind.__name__, "module": kind.__module__, "static": static, "fields": fields}


def _stored_array(value, path):
    if isinstance(value, Tracer):
        raise TypeError(f"{path}: cannot store a traced array; save outside of jit, grad and vmap")
    if not isinstance(value, jax.Array):
        if not (value.dtype == np.bool_ or jax.dtypes.issubdtype(value.dtype, np.number)):
            raise TypeError(f"{path}: cannot store an array of dtype {value.dtype}")
        return StoredArray(path, np.asarray(value), "numpy")
    if value.is_deleted():
        raise ValueError(f"{path}: the array has been donated or deleted, its values are gone")
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return StoredArray(path, jax.random.key_data(value), f"key:{jax.random.key_impl(value)}")
    return StoredArray(path, value, "jax")


def _static(value, path) -> Node:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, tuple):
        return {"tuple": [_static(v, path) for v in value]}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    raise TypeError(f"{path}: static metadata of type {type(value).__name__} cannot be stored: {value!r}")


def _static_value(node: Node):
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "float":
        return float.fromhex(content)
    if kind == "tuple":
        return tuple(_static_value(v) for v in content)
    if kind == "dtype":
        return np.dtype(jax.numpy.dtype(content))
    raise ValueError(f"unknown kind of static metadata {kind!r}")


def one_level(value: Any) -> list[tuple[str | int, Any]] | None:
    """Names and children of a pytree node, ``None`` children included; None when ``value`` is not a node."""
    paths, structure = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda v: v is not value)
    if structure == jax.tree.structure(0):
        return None
    return [(_key(path[0]), child) for path, child in paths]


def _key(entry):
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            key = getattr(entry, attribute)
            return key if isinstance(key, (str, int)) else str(key)
    return str(entry)


def _join(path, key):
    return f"{path}/{key}" if path else str(key)


_ANY = object()


def plan(node: Node, like: Any = _ANY, shardings: Any = None) -> tuple[Builder, dict[int, Any]]:
    """Turns a structure back into a function that builds the tree, before any array has been read.

    Args:
      node: structure from :func:`describe`.
      like: tree whose structure, container types, shapes and dtypes the stored one must have; without it other pytree
        nodes than dict, list, tuple and leaves become dicts.
      shardings: None, a ``jax.sharding.Sharding``, or a tree of them in which one may stand for a whole sub-tree.

    Returns:
      ``(build, placed)``: ``build(arrays)`` gives the tree; ``placed[i]`` is the pair of the template of array ``i``
      (or None) and its sharding (or None).

    Raises:
      ValueError: when ``like`` or ``shardings`` do not fit the structure, or a leaf type is not known.
    """
    placed: dict[int, Any] = {}
    return _plan(node, like, shardings, "", placed), placed


def anything() -> Any:
    """The value of ``like`` that accepts every structure."""
    return _ANY


def _plan(node, like, shardings, path, placed) -> Builder:
    where = path or "tree"
    if node is None:
        if like is not _ANY and like is not None:
            raise ValueError(f"{where}: None in the checkpoint, {type(like).__name__} in `like`")
        return lambda arrays: None
    if like is None:
        raise ValueError(f"{where}: {_kind(node)} in the checkpoint, None in `like`")
    if "value" in node:
        if like is not _ANY and not isinstance(like, (bool, int, float, str)):
            raise ValueError(f"{where}: a Python scalar in the checkpoint, {type(like).__name__} in `like`")
        value = _static_value(node["value"])
        return lambda arrays: value
    if "array" in node:
        return _plan_array(node["array"], like, shardings, where, placed)
    if "leaf" in node:
        return _plan_leaf(node, like, shardings, path, placed)
    kind = next(k for k in ("dict", "list", "tuple", "node") if k in node)
    entries = list(enumerate(node[kind])) if kind in ("list", "tuple") else node["fields" if kind == "node" else kind]
    names = [name for name, _ in entries]
    children = _children_of(like, names, kind, where)
    parts = [
        _plan(child, template, _below(shardings, name, where), _join(path, name), placed)
        for (name, child), template in zip(entries, children, strict=True)
    ]
    if like is not _ANY and type(like) not in (dict, list, tuple):
        order = [name for name, _ in one_level(like) or []]
        structure = jax.tree_util.tree_structure(like, is_leaf=lambda v: v is not like)
        return lambda arrays: jax.tree_util.tree_unflatten(
            structure, [parts[names.index(name)](arrays) for name in order]
        )
    if kind in ("list", "tuple"):
        container = list if kind == "list" else tuple
        return lambda arrays: container(part(arrays) for part in parts)
    return lambda arrays: {name: part(arrays) for name, part in zip(names, parts, strict=True)}


def _kind(node):
    return "an array" if "array" in node else f"a {node.get('leaf') or node.get('node') or next(iter(node))}"


def _children_of(like, names, kind, where):
    if like is _ANY:
        return [_ANY] * len(names)
    found = None if is_leaf(like) else one_level(like)
    if found is None:
        raise ValueError(f"{where}: a {kind} in the checkpoint, {type(like).__name__} in `like`")
    if kind in ("list", "tuple") and type(like).__name__ != kind:
        raise ValueError(f"{where}: a {kind} in the checkpoint, {type(like).__name__} in `like`")
    templates = dict(found)
    if set(templates) != set(names):
        only = sorted(map(str, set(names) - set(templates))), sorted(map(str, set(templates) - set(names)))
        raise ValueError(f"{where}: only in the checkpoint: {only[0]}; only in `like`: {only[1]}")
    return [templates[name] for name in names]


def _plan_array(index, like, shardings, where, placed) -> Builder:
    template = None
    if like is not _ANY:
        if not hasattr(like, "shape") or not hasattr(like, "dtype"):
            raise ValueError(f"{where}: an array in the checkpoint, {type(like).__name__} in `like`")
        template = like
        if shardings is None and (not isinstance(like, jax.Array) or like.committed):
            shardings = getattr(like, "sharding", None)
    if shardings is not None and not isinstance(shardings, jax.sharding.Sharding):
        raise ValueError(f"{where}: wanted a Sharding for an array, got {type(shardings).__name__}")
    placed[index] = (template, shardings)
    return lambda arrays: arrays[index]


def _plan_leaf(node, like, shardings, path, placed) -> Builder:
    where = path or "tree"
    cls = leaf_class(node["leaf"], node["module"], where)
    static = {name: _static_value(value) for name, value in node["static"].items()}
    names = [name for name, _ in node["fields"]]
    known: dict[str, Any] = {f.name: f for f in dataclasses.fields(cls)}
    unknown = (set(names) | set(static)) - set(known)
    needed = {
        name
        for name, f in known.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = needed - set(names) - set(static)
    if unknown or missing:
        raise ValueError(f"{where}: {cls.__name__} here lacks fields {sorted(unknown)} and wants {sorted(missing)}")
    templates = [_ANY] * len(names)
    if like is not _ANY:
        if type(like) is not cls:
            raise ValueError(f"{where}: a {cls.__name__} leaf in the checkpoint, {type(like).__name__} in `like`")
        for name, value in static.items():
            if getattr(like, name) != value:
                raise ValueError(f"{where}: {name}={value!r} in the checkpoint, {getattr(like, name)!r} in `like`")
        templates = [getattr(like, name) for name in names]
    parts = [
        _plan(child, template, _below(shardings, name, where), _join(path, name), placed)
        for (name, child), template in zip(node["fields"], templates, strict=True)
    ]
    return lambda arrays: cls(**{name: part(arrays) for name, part in zip(names, parts, strict=True)}, **static)


def _below(shardings, name, where):
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return shardings
    children = dict(one_level(shardings) or [])
    if name not in children:
        raise ValueError(f"{where}: `shardings` has no entry {name!r}, only {sorted(map(str, children))}")
    return children[name]
