"""The flush through Pallas' Triton backend: values are read once, words are written once, where they belong.

The cache is an operand and a result of the kernel in the same memory; a program writes its words into the block ``at``
and touches no other. Groups stay in registers from the extremes to the codes. A field of a word is a run of tokens, so
packing is a shift and an OR in each lane: codes whose planes differ in width take runs of the narrowest one.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.kv_append import rounding
from pallas_kernels.kv_append.config import columns_of
from pallas_kernels.kv_append.layout import AppendLayout
from pallas_kernels.kv_attention.layout import Codes


def _channels(first: jax.Array, many: int, part: int, layout: AppendLayout) -> tuple[jax.Array, jax.Array | None]:
    """Channels of the columns of a program, and which exist; None when all do."""
    side, column = layout.side, triton.iota(many * part)
    if side.axis == "token" and part != side.group:
        return first * jnp.int32(side.group) + column, column < jnp.int32(side.group)
    channel = first * jnp.int32(many * part) + column
    return channel, None if side.width % (many * part) == 0 else channel < jnp.int32(side.width)


def kv_append_triton(
    held: Codes,
    x: jax.Array,
    at: jax.Array,
    keep: jax.Array | None,
    layout: AppendLayout,
    config: BlockConfig,
    *,
    interpret: bool = False,
) -> Codes:
    """The cache with the block in its place."""
    batch, heads = x.shape[:2]
    side, packing, unit = layout.side, layout.packing, layout.unit
    assert unit is not None  # the layout was checked
    run, fields, span = layout.tile * unit // 32, 32 // unit, layout.span
    many, part = columns_of(layout, config.values)
    count, pairs, by_token = many * part, batch * heads, side.axis == "token"
    across = math.ceil(side.width // side.group / many) if by_token else math.ceil(side.width / part)
    # Fields of one group of tokens, or as many as groups: loaded together.
    section = 1 if by_token else max(1, side.group // run)
    inner = max(1, run // side.group)

    def kernel(*refs):
        x_ref, at_ref, *rest = refs
        keep_ref = None if keep is None else rest[0]
        codes_ref, scale_ref, *low_ref = rest[-(2 if side.sym else 3) :]
        pair, nth, first_part = triton.split_program((pairs, layout.tokens // span, across))
        place = lax.clamp(jnp.int32(0), triton.load(at_ref, jnp.int32(0)), jnp.int32(held.codes.shape[0] - 1))
        row = pair // jnp.int32(heads)
        start = nth * jnp.int32(span)
        channel, exists = _channels(first_part, many, part, layout)
        mask = None if exists is None else exists[None, :]

        def parted(a):
            """Lanes with an axis along groups, and which it is."""
            if by_token:
                return a.reshape(run, many, part), 2
            return (a, 0) if section > 1 or inner == 1 else (a.reshape(inner, side.group, count), 1)

        def extremes(values, counts):
            """Least, largest and largest magnitude of the groups of a section."""

            def over(join, reduce, each, other):
                found = None
                for value, counted in zip(values, counts, strict=True):
                    one = each(value) if counted is None else jnp.where(counted, each(value), other)
                    found = one if found is None else join(found, one)
                assert found is not None  # a section has a field
                together, axis = parted(found)
                return reduce(together, axis=axis)

            peak = over(jnp.maximum, jnp.max, triton.magnitude, jnp.int32(0))
            peak = lax.bitcast_convert_type(peak, jnp.float32)
            if side.sym:
                return peak, peak, peak
            low = over(jnp.minimum, jnp.min, lambda a: a, jnp.float32(jnp.inf))
            return low, over(jnp.maximum, jnp.max, lambda a: a, jnp.float32(-jnp.inf)), peak

        def where_scales(first):
            """Indices of the scales of a section that begins with token ``first`` of the block, and which exist."""
            if by_token:
                parts = first_part * jnp.int32(many) + triton.iota(many)
                groups = side.width // side.group
                inside = None if groups % many == 0 else parts < jnp.int32(groups)
                token = first + triton.iota(run)
                return (token[:, None], parts[None, :]), None if inside is None else inside[None, :]
            group = lax.div(first, jnp.int32(side.group))
            if section > 1 or inner == 1:
                return (group, channel), exists
            return ((group + triton.iota(inner))[:, None], channel[None, :]), mask

        words: dict[tuple[int, int], jax.Array] = {}
        for first_field in range(0, span // run, section):
            values, counts = [], []
            for field in range(first_field, first_field + section):
                token = start + jnp.int32(field * run) + triton.iota(run)
                value = triton.load(x_ref, pair, token[:, None], channel[None, :], mask=mask).astype(jnp.float32)
                counted = mask
                if keep_ref is not None:
                    kept = (triton.load(keep_ref, row, token) != jnp.uint8(0))[:, None]
                    counted = kept if mask is None else kept & mask
                values.append(value)
                counts.append(None if counted is None else jnp.broadcast_to(counted, value.shape))
            scale, low = rounding.statistics(*extremes(values, counts), side, held.scale.dtype)
            where, inside = where_scales(start + jnp.int32(first_field * run))
            triton.store(scale_ref, scale, place, pair, *where, mask=inside)
            if low is not None:
                triton.store(low_ref[0], low, place, pair, *where, mask=inside)
            for field, value in zip(range(first_field, first_field + section), values, strict=True):
                split, axis = parted(value)
                least = None if low is None else jnp.expand_dims(low, axis)
                code = rounding.codes(split, jnp.expand_dims(scale, axis), least, side).reshape(run, count)
                tile, nth_field = divmod(field, fields)
                for width, offset, word in packing.planes:
                    each = width // unit
                    bits = (code >> jnp.uint32(offset)) & jnp.uint32(2**width - 1) if len(packing.planes) > 1 else code
                    bits = bits << jnp.uint32(width * (nth_field // each))
                    key = (word, nth_field % each)
                    words[key] = bits if key not in words else words[key] | bits
                if nth_field == fields - 1:
                    base = (lax.div(start, jnp.int32(layout.tile)) + jnp.int32(tile)) * jnp.int32(packing.words)
                    for (word, which), value in words.items():
                        at_word = base + jnp.int32(word + which * run) + triton.iota(run)
                        triton.store(codes_ref, value, place, pair, at_word[:, None], channel[None, :], mask=mask)
                    words = {}

    def merged(a):
        """Batch and heads as one axis."""
        return a.reshape(*a.shape[: a.ndim - 4], pairs, *a.shape[-2:])

    cache = [merged(a) for a in held if a is not None]
    operands = [merged(x), at.reshape(1), *([] if keep is None else [keep])]
    out = triton.launch(
        kernel,
        blocks=pairs * (layout.tokens // span) * across,
        out_shape=[triton.result(a.shape, a.dtype, a) for a in cache],
        name=f"kv_append_w{side.bits}_{side.axis}",
        warps=config.warps,
        stages=1,
        interpret=interpret,
        aliases={len(operands) + nth: nth for nth in range(len(cache))},
    )(*operands, *cache)
    found = iter(out)
    return Codes(*(None if a is None else next(found).reshape(a.shape) for a in held))  # pyright: ignore[reportArgumentType]
