"""config.json of a Hugging Face decoder -> LlamaConfig."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compressjax.models.config import LlamaConfig, RopeScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """Switches a model type fixes, and what its config.json may leave out (defaults of transformers).

    Attributes:
      num_kv_heads, head_dim, max_positions: defaults; None takes the number of heads, or width / heads.
      qkv_bias: None reads ``attention_bias``, which then covers the output projection too.
      qk_norm: as in ``LlamaConfig``.
      window: which key switches the sliding window on: None if the type has no window, "" if it needs no switch.
    """

    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int
    qkv_bias: bool | None = None
    qk_norm: bool = False
    window: str | None = None


_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "llama": _Family(max_positions=2048),
        "mistral": _Family(num_kv_heads=8, max_positions=131072, qkv_bias=False, window=""),
        "qwen2": _Family(num_kv_heads=32, max_positions=32768, qkv_bias=True, window="use_sliding_window"),
        "qwen3": _Family(num_kv_heads=32, head_dim=128, max_positions=32768, qk_norm=True, window="use_sliding_window"),
    }
)

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
)


def config_from_hf(raw: Mapping[str, Any], path: Path) -> LlamaConfig:
    """Architecture of a Hugging Face decoder.

    Args:
      raw: the object in config.json, as written by transformers 4 (``rope_theta``, ``rope_scaling``) or 5
        (``rope_parameters``).
      path: where it came from, for messages.

    Raises:
      ValueError: unknown model type, a missing key, or a feature the models here lack, named.
    """
    kind = raw.get("model_type", "")
    if kind not in _FAMILIES:
        raise ValueError(f"{path}: unknown model_type {kind!r}; known: {', '.join(_FAMILIES)}")
    family = _FAMILIES[kind]

    def need(key: str) -> Any:
        if raw.get(key) is None:
            raise ValueError(f"{path}: {key} is missing")
        return raw[key]

    def have(key: str, default: Any) -> Any:
        return default if raw.get(key) is None else raw[key]

    for key in _COUNTS:
        if not isinstance(have(key, 1), int):
            raise ValueError(f"{path}: {key} should be an integer, got {raw[key]!r}")
    if have("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"{path}: hidden_act {raw['hidden_act']!r} is not supported; supported: silu")
    width, heads = need("hidden_size"), need("num_attention_heads")
    max_positions = have("max_position_embeddings", family.max_positions)
    theta, scaling = _rope(raw, max_positions, path)
    attention_bias = bool(have("attention_bias", False))
    return LlamaConfig(
        vocab_size=need("vocab_size"),
        hidden_size=width,
        intermediate_size=need("intermediate_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=have("num_key_value_heads", family.num_kv_heads or heads),
        head_dim=have("head_dim", family.head_dim or width // heads),
        max_positions=max_positions,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=have("rms_norm_eps", 1e-6),
        tie_embeddings=bool(have("tie_word_embeddings", False)),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias and family.qkv_bias is None,
        mlp_bias=kind == "llama" and bool(have("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sliding_window=_window(raw, family, need("num_hidden_layers"), path),
    )


def _rope(raw: Mapping[str, Any], max_positions: int, path: Path) -> tuple[float, RopeScaling | None]:
    # transformers 5 renames the key and moves rope_theta inside; older files say "type" for "rope_type".
    stated = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if stated and all(isinstance(value, Mapping) for value in stated.values()):
        kinds = list(stated.values())
        if any(value != kinds[0] for value in kinds):
            raise ValueError(f"{path}: rotary settings that differ by layer type are not supported: {dict(stated)}")
        stated = kinds[0]
    theta = float(stated.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    partial = stated.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"{path}: partial_rotary_factor {partial} is not supported")
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ValueError(f"{path}: rotary scaling {kind!r} is not supported; supported: default, linear, llama3")
    keys = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor")
    missing = [key for key in keys if stated.get(key) is None]
    if missing:
        raise ValueError(f"{path}: rotary scaling {kind!r} lacks {', '.join(missing)}")
    factor = float(stated["factor"])
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=factor)
    return theta, RopeScaling(
        kind="llama3",
        factor=factor,
        low_freq_factor=float(stated["low_freq_factor"]),
        high_freq_factor=float(stated["high_freq_factor"]),
        original_max_positions=int(stated.get("original_max_position_embeddings") or max_positions),
    )


def _window(raw: Mapping[str, Any], family: _Family, num_layers: int, path: Path) -> int | None:
    """The sliding window, if all layers have it. Qwen's first ``max_window_layers`` layers have none."""
    if family.window is None or not (family.window == "" or raw.get(family.window)):
        return None
    size = raw.get("sliding_window", 4096)
    if size is None:
        return None
    kinds = raw.get("layer_types")
    if kinds is None:
        full = min(num_layers, raw.get("max_window_layers", 28)) if family.window else 0
        kinds = ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) != {"sliding_attention"}:
        raise ValueError(
            f"{path}: layers of different attention kinds are not supported: {', '.join(sorted(set(kinds)))}"
        )
    return size
