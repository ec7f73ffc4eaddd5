"""Groups of weights that are either kept, in few bits, or absent: ``w = scale * (code - zero)`` or exactly 0."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.ops import dense, logical_shape, matmul, matmul_t
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula

Layout = Literal["ell", "bsr"]
MOST_GROUPS = 65536  # a 16-bit index names no more
_KERNEL_ROWS = 8


@leaf(static=("layout", "bits", "group", "shape", "zero_kind"))
class GroupSparse:
    """Weight of logical shape ``[in, out]`` that stores some groups of ``group`` inputs; stacked layers lead.

    A kept group is ``w[group*g + k, o] = scale * (code[k] - zero)``; a group that is not stored is 0. In layout "ell"
    every output keeps equally many groups, ``kept``, and the arrays end in ``[kept, out]``. In layout "bsr" outputs
    keep any number, groups of output ``o`` stand at ``row_ptr[o]:row_ptr[o+1]``, and the arrays end in ``[kept]``, the
    total. Either way the groups of an output ascend.

    Attributes:
      codes: uint32 ``[*lead, words, (kept, out) or kept]`` with ``words = group*bits/32`` per group. A plane of width
        ``p`` (see ``numerics.bitpack``) takes ``group*p/32`` words; field ``j`` of word ``k`` holds input
        ``k + j*group*p/32``, so one shift of the words gives a contiguous run of inputs.
      scale: float ``[*lead, (kept, out) or kept]``.
      zero: "int": uint32, codes packed along the last axis; "real": float like ``scale``.
      index: uint8 or uint16 like ``scale``: which group of its output it is; uint8 up to 256 groups.
      row_ptr: int32 ``[*lead, out + 1]`` in layout "bsr", None in "ell".
      layout: "ell" or "bsr".
      bits: code width, 2 to 8.
      group: inputs per group.
      shape: ``(in, out)``.
      zero_kind: "int" or "real".
    """

    codes: jax.Array
    scale: jax.Array
    zero: jax.Array
    index: jax.Array
    row_ptr: jax.Array | None
    layout: Layout
    bits: int
    group: int
    shape: tuple[int, int]
    zero_kind: Literal["int", "real"]


class Groups(NamedTuple):
    """The stored groups of one matrix as a flat list, ``n`` of them.

    Attributes:
      words: uint32 ``[words, n]``.
      scale, zero: float32 ``[n]``.
      index: int32 ``[n]``, the group of inputs.
      output: int32 ``[n]``.
    """

    words: jax.Array
    scale: jax.Array
    zero: jax.Array
    index: jax.Array
    output: jax.Array


def check_group(rows: int, bits: int, group: int) -> int:
    """Number of groups of ``rows`` inputs.

    Raises:
      ValueError: when a group does not divide the inputs, does not fill 32-bit words, or there are too many.
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits must be in 2..8, got {bits}")
    if group < 1 or rows % group:
        raise ValueError(f"group={group} must divide the {rows} inputs: groups are kept or dropped whole")
    if group * bits % 32:
        raise ValueError(f"group * bits must be a multiple of 32 to fill words, got {group} * {bits}")
    if rows // group > MOST_GROUPS:
        raise ValueError(f"at most {MOST_GROUPS} groups of inputs have a 16-bit index, got {rows // group}")
    return rows // group


def pack_group_sparse(
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array,
    kept: jax.Array,
    *,
    bits: int,
    group: int,
    layout: Layout,
    zero_kind: Literal["int", "real"] = "int",
) -> GroupSparse:
    """Builds a :class:`GroupSparse` leaf from one matrix of codes and the list of groups to keep.

    Args:
      codes: integers ``[in, out]``; those of groups that are not kept are ignored.
      scale: float ``[groups, out]``, stored in its dtype.
      zero: ``[groups, out]``: integers in ``[0, 2**bits - 1]``, or floats for "real".
      kept: "ell": int ``[kept, out]``, ascending group numbers per output; "bsr": int ``[kept]``, ascending
        ``output * groups + group``.
      bits, group, layout, zero_kind: as in :class:`GroupSparse`.

    Raises:
      ValueError: for shapes that do not fit, or a group that :func:`check_group` refuses.
    """
    rows, cols = codes.shape
    groups = check_group(rows, bits, group)
    if layout not in ("ell", "bsr"):
        raise ValueError(f"layout must be 'ell' or 'bsr', got {layout!r}")
    if zero_kind not in ("int", "real"):
        raise ValueError(f"zero_kind must be 'int' or 'real', got {zero_kind!r}")
    if scale.shape != (groups, cols) or zero.shape != (groups, cols):
        raise ValueError(f"scale and zero must be {(groups, cols)}, got {scale.shape} and {zero.shape}")
    wanted = "[kept >= 1, out]" if layout == "ell" else "[kept >= 1]"
    if kept.ndim != (2 if layout == "ell" else 1) or kept.shape[0] < 1 or kept.shape[1:] not in ((), (cols,)):
        raise ValueError(f"kept must be {wanted} for layout {layout!r} and {cols} outputs, got {kept.shape}")
    kept = kept.astype(jnp.int32)
    if layout == "ell":
        index, output = kept, jnp.broadcast_to(jnp.arange(cols, dtype=jnp.int32)[None], kept.shape)
        row_ptr = None
    else:
        index, output = kept % groups, kept // groups
        row_ptr = jnp.searchsorted(kept, jnp.arange(cols + 1, dtype=jnp.int32) * groups).astype(jnp.int32)
    inside = jnp.moveaxis(codes.reshape(groups, group, cols), 1, -1)[index, output]
    zero = zero[index, output]
    return GroupSparse(
        codes=_pack_words(jnp.moveaxis(inside, -1, 0), bits),
        scale=scale[index, output],
        zero=zero if zero_kind == "real" else _pack_last(zero, bits),
        index=index.astype(jnp.uint8 if groups <= 256 else jnp.uint16),
        row_ptr=row_ptr,
        layout=layout,
        bits=bits,
        group=group,
        shape=(rows, cols),
        zero_kind=zero_kind,
    )


def _pack_last(a, bits):
    return jnp.swapaxes(bitpack.pack(jnp.swapaxes(a[None], -1, -2), bits, 32), -1, -2)[0]


def _pack_words(codes, bits):
    """``[group, *n]`` codes to ``[group*bits/32, *n]`` words."""
    group, *rest = codes.shape
    codes = jnp.clip(codes.astype(jnp.int32), 0, 2**bits - 1).astype(jnp.uint32)
    words = []
    for width, offset in bitpack.planes(bits):
        fields = 32 // width
        field = ((codes >> jnp.uint32(offset)) & jnp.uint32(2**width - 1)).reshape(fields, group // fields, *rest)
        shift = jnp.arange(fields, dtype=jnp.uint32).reshape(fields, *[1] * (field.ndim - 1)) * jnp.uint32(width)
        words.append(jnp.sum(field << shift, axis=0, dtype=jnp.uint32))
    return jnp.concatenate(words)


def unpack_words(words: jax.Array, bits: int, group: int) -> jax.Array:
    """``[group*bits/32, *n]`` words of a :class:`GroupSparse` to float32 codes ``[group, *n]``."""
    rest, at, codes = words.shape[1:], 0, jnp.zeros((), jnp.uint32)
    for width, offset in bitpack.planes(bits):
        fields = 32 // width
        tall = group // fields
        shift = jnp.arange(fields, dtype=jnp.uint32).reshape(fields, *[1] * words.ndim) * jnp.uint32(width)
        field = ((words[at : at + tall][None] >> shift) & jnp.uint32(2**width - 1)).reshape(group, *rest)
        codes = field if offset == 0 else codes | (field << jnp.uint32(offset))
        at += tall
    return codes.astype(jnp.float32)


def stored_groups(w: GroupSparse) -> Groups:
    """The stored groups of an unstacked leaf, in the order of its arrays."""
    index = w.index.astype(jnp.int32)
    if w.zero_kind == "real":
        zero = w.zero.astype(jnp.float32)
    else:
        zero = bitpack.unpack(w.zero, w.bits, 32, index.shape[-1], axis=-1, dtype=jnp.float32)
    if w.row_ptr is None:
        output = jnp.broadcast_to(jnp.arange(w.shape[1], dtype=jnp.int32)[None], index.shape)
    else:
        place = jnp.arange(index.shape[0], dtype=jnp.int32)
        output = jnp.searchsorted(w.row_ptr, place, side="right").astype(jnp.int32) - 1
    return Groups(
        words=w.codes.reshape(w.codes.shape[0], -1),
        scale=w.scale.astype(jnp.float32).reshape(-1),
        zero=zero.reshape(-1),
        index=index.reshape(-1),
        output=output.reshape(-1),
    )


def places(found: Groups, groups: int, cols: int) -> jax.Array:
    """Where each group of the dense weight is stored, int32 ``[groups, out]``; the number of stored ones if nowhere."""
    count = found.index.shape[0]
    nowhere = jnp.full((groups, cols), count, jnp.int32)
    return nowhere.at[found.index, found.output].set(jnp.arange(count, dtype=jnp.int32), unique_indices=True)


def kept_groups(w: GroupSparse) -> jax.Array:
    """Which groups an unstacked leaf stores, bool ``[groups, out]``."""
    found = stored_groups(w)
    return places(found, w.shape[0] // w.group, w.shape[1]) < found.index.shape[0]


def _over_lead(f, w):
    for _ in range(len(logical_shape(w)) - 2):
        f = jax.vmap(f)
    return f


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(GroupSparse)
@jax.jit
def _dense(w: GroupSparse):
    def one(w):
        found = stored_groups(w)
        place = places(found, w.shape[0] // w.group, w.shape[1])

        # Packed words are gathered, not weights: an eighth of the traffic, and the unpacking fuses behind it.
        def fetch(a):
            return jnp.take(a, place, axis=-1, mode="fill", fill_value=0)

        codes = unpack_words(fetch(found.words), w.bits, w.group)
        blocks = fetch(found.scale)[None] * (codes - fetch(found.zero)[None])
        return jnp.moveaxis(blocks, 0, 1).reshape(w.shape)

    return _over_lead(one, w)(w)


@logical_shape.register(GroupSparse)
def _shape(w: GroupSparse):
    return (*w.index.shape[: -2 if w.row_ptr is None else -1], *w.shape)


def gemv(x: jax.Array, w: GroupSparse) -> jax.Array:
    """``x @ w`` for one row ``x [in]`` and an unstacked leaf, without rebuilding the dense weight; float32 ``[out]``.

    ``y_o = sum over the groups g of o: scale (sum_k code_k x_gk - zero sum_k x_gk)``: absent groups cost nothing.
    """
    found = stored_groups(w)
    x_kg = x.astype(jnp.float32).reshape(-1, w.group).T
    picked = jnp.take(x_kg, found.index, axis=1)
    total = jnp.take(jnp.sum(x_kg, axis=0), found.index)
    codes = unpack_words(found.words, w.bits, w.group)
    parts = found.scale * (jnp.sum(codes * picked, axis=0) - found.zero * total)
    if w.row_ptr is None:
        return jnp.sum(parts.reshape(w.index.shape), axis=0)
    return jax.ops.segment_sum(parts, found.output, w.shape[1], indices_are_sorted=True)


@matmul.register(GroupSparse)
def _matmul(x, w: GroupSparse):
    return kernel_or_formula(_matmul_kernel, _matmul_formula, kernel_refusal(x, w), x, w)


def _matmul_kernel(x, w: GroupSparse):
    from pallas_kernels.group_sparse_matmul import group_sparse_matmul

    return group_sparse_matmul(x, *kernel_operands(w), implementation="triton")


def kernel_operands(w: GroupSparse):
    """Arrays and layout of an unstacked leaf as ``pallas_kernels.group_sparse_matmul`` takes them."""
    from pallas_kernels.group_sparse_matmul import GroupSparseLayout, StoredGroups

    (rows, cols), kept = w.shape, w.index.shape[0]
    layout = GroupSparseLayout(
        rows=rows, cols=cols, kept=kept, equal=w.row_ptr is None, bits=w.bits, group=w.group, zero_kind=w.zero_kind
    )
    return StoredGroups(w.codes, w.scale, w.zero, w.index, w.row_ptr), layout


def kernel_refusal(x: jax.Array, w: GroupSparse) -> str | None:
    """Why the GPU kernel does not take this product, or None."""
    if len(logical_shape(w)) > 2:
        return "the weight is a stack of layers"
    if math.prod(x.shape[:-1]) > _KERNEL_ROWS:
        return f"more than {_KERNEL_ROWS} rows of activations are faster through the dense weight"
    if w.bits not in (2, 4, 8) or w.group not in (8, 16, 32, 64, 128):
        return f"groups of {w.group} codes of {w.bits} bits"
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {x.dtype.name}"
    return None


def _matmul_formula(x, w: GroupSparse):
    if math.prod(x.shape[:-1]) == 1 and len(logical_shape(w)) == 2:
        return gemv(x.reshape(-1), w).astype(x.dtype).reshape(*x.shape[:-1], w.shape[1])
    return x @ dense(w).astype(x.dtype)


@matmul_t.register(GroupSparse)
def _matmul_t(x, w: GroupSparse):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))
