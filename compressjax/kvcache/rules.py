"""Which codec holds which layers and heads.

A rule's pattern reads ``layers`` or ``layers/heads``, each "*", a number or a range: "0-3", "*/0", "4-29/1-2". The
first rule that names a head of a layer wins; what no rule names, or names None, stays plain.
"""

import re
from collections.abc import Mapping

from compressjax.kvcache.by_head import ByHead
from compressjax.kvcache.dense import DenseKV
from compressjax.kvcache.protocol import Codec, KVSpec, Segment

Rules = Codec | None | Mapping[str, Codec | None]

_PART = re.compile(r"\*|(\d+)(?:-(\d+))?")


def segments_by(rules: Rules, spec: KVSpec) -> tuple[Segment, ...]:
    """Divides the layers of a cache.

    Args:
      rules: one codec for all, None for a plain cache, or codecs by pattern.
      spec: sizes.

    Raises:
      ValueError: a malformed pattern, one that names no layer or head, or codecs that cannot share a cache.
      TypeError: something that is no codec.
    """
    if rules is None:
        rules = DenseKV()
    if isinstance(rules, Codec):
        return rules.segments(spec.layers)
    if not isinstance(rules, Mapping):
        raise TypeError(f"a cache config is a codec, None or a mapping of rules, got {type(rules).__name__}")
    named = {pattern: _named(pattern, spec) for pattern in rules}
    codecs = [codec for codec in rules.values() if codec is not None]
    for codec in codecs:
        if not isinstance(codec, Codec):
            raise TypeError(f"rules map patterns to codecs or None, got {type(codec).__name__}")
    plain = DenseKV(residual=codecs[0].chunk, sinks=codecs[0].exact_sinks) if codecs else DenseKV()
    chosen = []
    for layer in range(spec.layers):
        of_head = []
        for head in range(spec.kv_heads):
            match = next((p for p, (layers, heads) in named.items() if layer in layers and head in heads), None)
            codec = None if match is None else rules[match]
            of_head.append(plain if codec is None else codec)
        chosen.append(_joined(of_head))
    return tuple(_runs(chosen))


def _named(pattern: str, spec: KVSpec) -> tuple[range, range]:
    layers, slash, heads = pattern.partition("/")
    return (
        _numbers(layers, spec.layers, "layers", pattern),
        _numbers(heads if slash else "*", spec.kv_heads, "heads", pattern),
    )


def _numbers(text: str, count: int, what: str, pattern: str) -> range:
    match = _PART.fullmatch(text)
    if not match:
        raise ValueError(f"a cache rule reads layers or layers/heads, such as '0-3' or '*/1', got {pattern!r}")
    if text == "*":
        return range(count)
    first = int(match[1])
    last = int(match[2] or match[1])
    if not first <= last < count:
        raise ValueError(f"cache rule {pattern!r}: {what} go from 0 to {count - 1}, got {first} to {last}")
    return range(first, last + 1)


def _joined(of_head: list[Codec]) -> Codec:
    if len(set(of_head)) == 1:
        return of_head[0]
    return ByHead(
        tuple(
            (codec, tuple(head for head, own in enumerate(of_head) if own == codec)) for codec in dict.fromkeys(of_head)
        )
    )


def _runs(chosen: list[Codec]):
    start = 0
    for layer in range(1, len(chosen) + 1):
        if layer == len(chosen) or chosen[layer] != chosen[start]:
            for codec, first, last in chosen[start].segments(layer - start):
                yield Segment(codec, start + first, start + last)
            start = layer
