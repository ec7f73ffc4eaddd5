"""``quantization_config`` of GPTQ checkpoints: written for, and read from, GPTQModel, transformers and vLLM."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from compressjax._version import __version__
from compressjax.exchange.scheme import Scheme

VERSIONS = {"gptq": 1, "gptq_v2": 2}


def write_gptq_config(schemes: Mapping[str, Scheme | None], *, checkpoint_format: str) -> dict[str, Any]:
    """The object that goes into config.json.

    The most common scheme is stated for all; others, and linears left alone, become ``dynamic`` rules, which GPTQModel
    and vLLM read. ``modules_in_block_to_quantize`` says the latter once more for optimum and transformers.

    Args:
      schemes: module name ("model.layers.0.mlp.down_proj") -> scheme, or None for a linear that stays dense.
      checkpoint_format: "gptq" (version 1) or "gptq_v2".

    Raises:
      ValueError: no linear is quantised.
    """
    common = _most_common(schemes)
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
        **_fields(common),
        "true_sequential": True,
        "lm_head": schemes.get("lm_head") is not None,
        "meta": {"quantizer": [f"compressjax:{__version__}"]},
    }
    rules = {}
    # The head is left alone unless "lm_head" says otherwise, so it needs no rule of its own.
    body = {name: scheme for name, scheme in schemes.items() if name != "lm_head"}
    for pattern, scheme in _patterns({name: s for name, s in body.items() if s != common}, body):
        rules[("+:" if scheme else "-:") + pattern] = _fields(scheme) if scheme else {}
    head = schemes.get("lm_head")
    if head is not None and head != common:
        rules[r"+:lm_head$"] = _fields(head)
    if rules:
        config["dynamic"] = rules
    quantised = {_in_block(name) for name, scheme in body.items() if scheme}
    if quantised != {_in_block(name) for name in body}:
        config["modules_in_block_to_quantize"] = [sorted(quantised)]
    return config


def read_gptq_config(config: Mapping[str, Any]) -> tuple[Callable[[str], Scheme], int]:
    """What :func:`write_gptq_config` and other quantisers state.

    Returns:
      Module name -> scheme, and the version of the layout, 1 or 2. Modules that stay dense have a scheme too; that
      they have no packed tensors tells them apart.

    Raises:
      ValueError: bits or group size missing or wrong.
      NotImplementedError: a layout other than versions 1 and 2 in 32-bit words.
    """
    stated = config.get("checkpoint_format") or config.get("format") or "gptq"
    stated = "marlin" if config.get("is_marlin_format") else stated
    if stated not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise NotImplementedError(f"GPTQ checkpoint_format {stated!r} is not supported; supported: {known}")
    if config.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        raise NotImplementedError(f"GPTQ pack_dtype {config['pack_dtype']!r} is not supported; supported: int32")
    common = _scheme(config, config)
    rules = [
        (re.compile(re.sub(r"^[+-]:", "", pattern)), None if pattern.startswith("-:") else _scheme(config, fields))
        for pattern, fields in (config.get("dynamic") or {}).items()
    ]

    def scheme_of(name: str) -> Scheme:
        return next((scheme for pattern, scheme in rules if pattern.match(name)), common) or common

    return scheme_of, VERSIONS[stated]


def _fields(scheme: Scheme) -> dict[str, Any]:
    return {
        "bits": scheme.bits,
        "group_size": scheme.group,
        "sym": scheme.symmetric,
        "desc_act": scheme.act_order,
    }


def _scheme(config: Mapping[str, Any], override: Mapping[str, Any]) -> Scheme:
    fields = {**config, **override}
    bits, group = fields.get("bits", fields.get("w_bit")), fields.get("group_size", fields.get("q_group_size"))
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"GPTQ quantization_config: bits must be 2, 3, 4 or 8, got {bits!r}")
    if not isinstance(group, int) or (group < 1 and group != -1):
        raise ValueError(f"GPTQ quantization_config: group_size must be -1 or >= 1, got {group!r}")
    return Scheme(
        bits=bits,
        group=group,
        symmetric=bool(fields.get("sym", True)),
        act_order=bool(fields.get("desc_act", False)),
    )


def _most_common(schemes: Mapping[str, Scheme | None]) -> Scheme:
    counts = Counter(scheme for scheme in schemes.values() if scheme)
    if not counts:
        raise ValueError("no linear of the model is quantised, so there is nothing to say in a quantization_config")
    return counts.most_common(1)[0][0]


def _in_block(name: str) -> str:
    return re.sub(r"^model\.layers\.\d+\.", "", name)


def _patterns(
    wanted: Mapping[str, Scheme | None], everything: Mapping[str, Scheme | None]
) -> list[tuple[str, Scheme | None]]:
    """Regular expressions for module names: one for all layers where they agree, else one per layer."""
    out: dict[str, Scheme | None] = {}
    for name, scheme in wanted.items():
        alike = [value for other, value in everything.items() if _in_block(other) == _in_block(name)]
        if all(value == scheme for value in alike):
            out[rf"model\.layers\.\d+\.{re.escape(_in_block(name))}$"] = scheme
        else:
            out[rf"{re.escape(name)}$"] = scheme
    return list(out.items())
