"""``quantization_config`` of compressed-tensors checkpoints, format ``pack-quantized``: written and read."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from compressjax.exchange.scheme import Scheme

FORMAT = "pack-quantized"


def write_compressed_config(schemes: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """The object that goes into config.json.

    Args:
      schemes: module name ("model.layers.0.mlp.down_proj") -> scheme, or None for a linear that stays dense.

    Raises:
      ValueError: no linear is quantised.
    """
    distinct = list(dict.fromkeys(scheme for scheme in schemes.values() if scheme))
    if not distinct:
        raise ValueError("no linear of the model is quantised, so there is nothing to say in a quantization_config")
    groups = {}
    for index, scheme in enumerate(distinct):
        members = [name for name, other in schemes.items() if other == scheme]
        targets = ["Linear"] if len(distinct) == 1 else _targets(members, schemes)
        groups[f"group_{index}"] = {
            "targets": targets,
            "weights": _weights(scheme),
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name, scheme in schemes.items() if scheme is None],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def read_compressed_config(config: Mapping[str, Any]) -> Callable[[str], Scheme]:
    """Module name -> scheme, as :func:`write_compressed_config` and other quantisers state it.

    The function raises ``ValueError`` for a module that no target covers.

    Raises:
      ValueError: ``config_groups`` missing or wrong.
      NotImplementedError: a format other than ``pack-quantized``; activations, the cache or a transform quantised too.
    """
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if config.get(key) and config[key] != {"format": "dense"}:
            raise NotImplementedError(f"compressed-tensors {key} is not supported, only weights are read")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"compressed-tensors quantization_config lacks config_groups, got {groups!r}")
    targets: list[tuple[str, Scheme]] = []
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise NotImplementedError(f"compressed-tensors preset {name!r} is not supported, only spelled-out groups")
        scheme = _scheme(group, config.get("format"), name)
        targets += [(target, scheme) for target in group.get("targets", ())]

    def scheme_of(module: str) -> Scheme:
        # A name or an expression says more than the class of a module, so it goes first.
        for target, scheme in targets:
            if target == module or (target.startswith("re:") and re.match(target[3:], module)):
                return scheme
        for target, scheme in targets:
            if target == "Linear":
                return scheme
        raise ValueError(f"{module}: no target of the quantization_config covers it: {[t for t, _ in targets]}")

    return scheme_of


def _weights(scheme: Scheme) -> dict[str, Any]:
    grouped = scheme.group != -1
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": scheme.group if grouped else None,
        "actorder": None,
        "dynamic": False,
    }


def _scheme(group: Mapping[str, Any], format: str | None, name: str) -> Scheme:
    where = f"compressed-tensors {name}"
    stored = group.get("format") or format
    if stored != FORMAT:
        raise NotImplementedError(f"{where}: format {stored!r} is not supported; supported: {FORMAT}")
    if group.get("input_activations") or group.get("output_activations"):
        raise NotImplementedError(f"{where}: quantised activations are not supported, only weights are read")
    weights = group.get("weights") or {}
    if weights.get("type", "int") != "int":
        raise NotImplementedError(f"{where}: weights of type {weights['type']!r} are not supported; supported: int")
    bits, size = weights.get("num_bits"), weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if size and size > 0 else "channel" if size == -1 else "tensor")
    if strategy not in ("group", "channel", "tensor"):
        raise NotImplementedError(f"{where}: strategy {strategy!r} is not supported; supported: group, channel, tensor")
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"{where}: num_bits must be 1 to 8, got {bits!r}")
    group_size = size if strategy == "group" else -1
    if not isinstance(group_size, int) or (group_size < 1 and group_size != -1):
        raise ValueError(f"{where}: group_size must be >= 1, got {size!r}")
    return Scheme(
        bits=bits,
        group=group_size,
        symmetric=bool(weights.get("symmetric", True)),
        act_order=weights.get("actorder") in ("group", "dynamic", True),
    )


def _targets(members: list[str], schemes: Mapping[str, Scheme | None]) -> list[str]:
    """Names, or one expression for all layers where they agree."""
    out = {}
    for name in members:
        tail = re.sub(r"^model\.layers\.\d+\.", "", name)
        alike = [other for other in schemes if re.sub(r"^model\.layers\.\d+\.", "", other) == tail]
        shared = len(alike) > 1 and all(schemes[other] == schemes[name] for other in alike)
        out[rf"re:model\.layers\.\d+\.{re.escape(tail)}$" if shared else name] = None
    return list(out)
