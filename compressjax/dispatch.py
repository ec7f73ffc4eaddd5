"""Open single dispatch on a named argument: how verbs meet configs and leaves.

A verb is a function whose behaviour is chosen by the type of one argument: compress-time verbs by the type of the
config, run-time ops by the type of the weight. Rules live beside the type they serve, so a new method or leaf is one
new file and nothing else changes. Dispatch is on functions, not methods, so that users can add types and verbs alike.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def verb(on: str) -> Callable[[Callable[..., Any]], Any]:
    """Turns a documented signature into a verb that dispatches on the argument named ``on``.

    The body of the decorated function is never run: it carries the signature and the docstring. Rules are added with
    ``the_verb.register(SomeType)``, are found along the type's ancestors, and get the arguments as they were passed.
    A rule for ``jax.Array`` serves concrete arrays, tracers, ``jax.ShapeDtypeStruct`` and NumPy arrays.

    Args:
      on: name of the dispatching argument.

    Returns:
      A decorator; the verb has ``register(type)``, ``rule_for(value)``, ``knows(value)`` and ``types()``.

    Raises:
      TypeError: at decoration, when the function has no argument ``on``.
      NotImplementedError: at a call, when no rule fits; the message names verb, type and the known types.
    """

    def decorate(signature_of: Callable[..., Any]):
        names = list(inspect.signature(signature_of).parameters)
        if on not in names:
            raise TypeError(f"verb(on={on!r}): {signature_of.__name__} has no such argument, only {names}")
        position = names.index(on)
        rules: dict[type, Callable[..., Any]] = {}

        def rule_for(value: Any) -> Callable[..., Any] | None:
            for ancestor in type(value).__mro__:
                if ancestor in rules:
                    return rules[ancestor]
            if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
                return rules.get(jax.Array)
            return None

        @functools.wraps(signature_of)
        def call(*args, **kwargs):
            if len(args) > position:
                value = args[position]
            elif on in kwargs:
                value = kwargs[on]
            else:
                raise TypeError(f"{signature_of.__name__}() misses the argument {on!r}")
            rule = rule_for(value)
            if rule is None:
                known = ", ".join(sorted(t.__name__.rpartition(".")[2] for t in rules)) or "none"
                raise NotImplementedError(
                    f"{signature_of.__name__} has no rule for {on} of type {type(value).__name__}; known: {known}"
                )
            return rule(*args, **kwargs)

        def register(kind: type):
            def add(rule: Callable[..., Any]):
                rules[kind] = rule
                return rule

            return add

        call.register = register  # pyright: ignore[reportAttributeAccessIssue]
        call.rule_for = rule_for  # pyright: ignore[reportAttributeAccessIssue]
        call.knows = lambda value: rule_for(value) is not None  # pyright: ignore[reportAttributeAccessIssue]
        call.types = lambda: tuple(rules)  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate
