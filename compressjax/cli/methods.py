"""The methods ``--method`` knows, and rules by path written on one line.

A method is one line in the table: its config becomes flags by itself.
"""

import ast
import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

METHODS: Mapping[str, str] = MappingProxyType(
    {
        "gptq": "compressjax.quantization:GPTQ",
        "bitstack": "compressjax.factorization:BitStack",
        "comet": "compressjax.quantization:COMET",
        "compactifai": "compressjax.factorization:CompactifAI",
        "decoupleq": "compressjax.quantization:DecoupleQ",
        "lord": "compressjax.factorization:LoRD",
        "gqsa": "compressjax.sparsity:GQSA",
        "nm": "compressjax.sparsity:NM",
        "nupes": "compressjax.quantization:NUPES",
        "powerquant": "compressjax.quantization:PowerQuant",
        "rtn": "compressjax.quantization:RTN",
        "sparsegpt": "compressjax.sparsity:SparseGPT",
        "svd": "compressjax.factorization:SVD",
        "spqr": "compressjax.quantization:SpQR",
        "squeezellm": "compressjax.quantization:SqueezeLLM",
    }
)
"""Name on the command line -> "module:config". Named and not imported, for a config pulls in jax."""


def config_class(name: str) -> type:
    """The config of a method.

    Raises:
      ValueError: no such method.
    """
    return _imported(name, METHODS)


def _imported(name: str, known: Mapping[str, str]) -> type:
    if name not in known:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(known)}")
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


TUNINGS: Mapping[str, str] = MappingProxyType({"block": "compressjax.training:BlockTuning"})
"""Name after ``--tune`` -> "module:config" of what trains a block once its weights are compressed."""


SEARCHES: Mapping[str, str] = MappingProxyType(
    {
        "uniform": "compressjax.allocation:Uniform",
        "greedy": "compressjax.allocation:Greedy",
        "dp": "compressjax.allocation:KnapsackDP",
        "neighbours": "compressjax.allocation:NeighbourDP",
        "best": "compressjax.allocation:BestOf",
        "evopress": "compressjax.allocation:EvoPress",
    }
)
"""Name after ``--search`` -> "module:config" of what divides a budget over the weights."""


KV: Mapping[str, str] = MappingProxyType(
    {
        "dense": "compressjax.kvcache:DenseKV",
        "round": "compressjax.kvcache:RoundKV",
        "kivi": "compressjax.kvcache:KIVI",
        "kv4": "compressjax.kvcache:KV4",
        "gear": "compressjax.kvcache:GEAR",
        "streaming-llm": "compressjax.kvcache:StreamingLLM",
        "h2o": "compressjax.kvcache:H2O",
        "snapkv": "compressjax.kvcache:SnapKV",
        "ems": "compressjax.kvcache:EMS",
        "minicache": "compressjax.kvcache:MiniCache",
        "matryoshka-kv": "compressjax.kvcache:MatryoshkaKV",
        "transmla": "compressjax.kvcache:TransMLA",
    }
)
"""Name after ``--kv`` -> "module:config" of how the cache of past tokens is held."""


def parse_kv(text: str) -> tuple[Any, ...]:
    """Cache configs from the form ``name:field=value,...``, several joined by "+"; empty for "none".

    Raises:
      ValueError: no such way, an unknown field, or a value the field cannot take.

    Example:
      >>> parse_kv("gear:bits=2,rank=2")[0].rank
      2
    """
    found = [_config(part, f"--kv {text}", KV) for part in text.split("+")]
    return tuple(cfg for cfg in found if cfg is not None)


def described(method: Any) -> str:
    """A method without the fields left at their defaults: "GPTQ(bits=3)".

    Example:
      >>> described(parse_level("rtn:bits=3")), described(None)
      ('RTN(bits=3)', 'left alone')
    """
    if method is None:
        return "left alone"
    fields = ((field, getattr(method, field.name)) for field in dataclasses.fields(method))
    changed = ", ".join(f"{field.name}={value}" for field, value in fields if value != field.default)
    return f"{type(method).__name__}({changed})"


def parse_search(text: str) -> Any:
    """A search from the form ``name:field=value,...``; the parts of a tuple are joined by "/".

    Raises:
      ValueError: no such search, an unknown field, or a value the field cannot take.

    Example:
      >>> parse_search("evopress:offspring=8,survivors=2/1,tokens=512/1024").survivors
      (2, 1)
    """
    return _config(text, f"--search {text}", SEARCHES)


def parse_level(text: str) -> Any:
    """A method from the form ``name:field=value,...``; "none" leaves a weight as it is.

    Raises:
      ValueError: no such method, an unknown field, or a value the field cannot take.
    """
    return _config(text, f"--level {text}", METHODS)


def parse_tuning(text: str) -> Any:
    """A way of tuning from the form ``name:field=value,field=value``, or None for "none".

    Raises:
      ValueError: no such way, an unknown field, or a value the field cannot take.

    Example:
      >>> parse_tuning("block:epochs=2,target=original").epochs
      2
    """
    return _config(text, f"--tune {text}", TUNINGS)


def parse_rules(lines: Iterable[str]) -> dict[str, Any]:
    """Rules by path from the form ``pattern=method:field=value,field=value``; ``pattern=none`` leaves weights alone.

    Args:
      lines: rules in order; the first that matches a weight wins.

    Returns:
      pattern -> config or None, as the verbs take them.

    Raises:
      ValueError: a malformed rule, an unknown method or field, a value the field cannot take, or a pattern given twice.

    Example:
      >>> parse_rules(["**/mlp/*=rtn:bits=3,group=64", "blocks/attn/o=none"])["**/mlp/*"].bits
      3
    """
    rules: dict[str, Any] = {}
    for line in lines:
        pattern, equals, method = line.partition("=")
        if not (pattern and equals and method):
            raise ValueError(f"a rule reads pattern=method:field=value,..., got {line!r}")
        if pattern in rules:
            raise ValueError(f"the rule for {pattern!r} is given twice")
        rules[pattern] = _config(method, f"rule {line!r}", METHODS)
    return rules


def _config(text: str, where: str, known: Mapping[str, str]) -> Any:
    name, _, settings = text.partition(":")
    if name == "none" and not settings:
        return None
    cls = _imported(name, known)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    values = {}
    for setting in filter(None, settings.split(",")):
        field, equals, value = setting.partition("=")
        if not equals or field not in defaults:
            raise ValueError(f"{where}: {setting!r} is not field=value of {name}; fields: {', '.join(defaults)}")
        values[field] = _value(value, defaults[field], f"{where}: {field}")
    return cls(**values)


def _value(text: str, default: Any, where: str) -> Any:
    """``text`` as the type that the field's default has."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{where} must be true or false, got {text!r}")
        return text.lower() == "true"
    if default is None:  # its type is not in the default; the config checks what it gets
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    if isinstance(default, tuple):
        return tuple(_value(part, default[0], where) for part in text.split("/"))
    if not isinstance(default, (int, float, str)):
        raise ValueError(f"{where} has parts of its own and cannot be set in a rule; set it from Python")
    try:
        return type(default)(text)
    except ValueError:
        raise ValueError(f"{where} must be of type {type(default).__name__}, got {text!r}") from None
