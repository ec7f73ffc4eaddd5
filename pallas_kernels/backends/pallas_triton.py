"""The one module that names Pallas' Triton backend: how a kernel is launched, loads, stores and multiplies there."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

# 2**23 as a float32: its mantissa then holds an integer below 2**23 in the low bits.
_MAGIC_BITS = 0x4B000000
_MAGIC = 8388608.0


def launch(
    kernel: Callable[..., None],
    *,
    blocks: int,
    out_shape: Any,
    name: str,
    warps: int,
    stages: int,
    interpret: bool,
    aliases: Mapping[int, int] = MappingProxyType({}),
) -> Callable[..., Any]:
    """A function of whole arrays that runs ``kernel(*inputs, *outputs)`` in ``blocks`` programs.

    The grid has one axis, since Triton takes three and every ``vmap`` adds one. ``aliases`` names inputs that are the
    same memory as an output: what no program writes there stays as it was.
    """
    return pl.pallas_call(
        kernel,
        grid=(blocks,),
        out_shape=out_shape,
        name=name,
        interpret=interpret,
        input_output_aliases=dict(aliases),
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=stages),
    )


def varying_axes(array: jax.Array) -> frozenset[str]:
    """Mesh axes of an enclosing ``shard_map`` over which an array is known to vary."""
    kind = jax.typeof(array)
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying  # jax before 0.11 calls it otherwise


def varying_alike(*operands: jax.Array | None) -> tuple[jax.Array | None, ...]:
    """Operands that all vary over the mesh axes any of them varies over, as JAX's own operations arrange it.

    A gradient for an operand that did not vary is then summed over the mesh by JAX.
    """
    union = frozenset().union(*(varying_axes(a) for a in operands if a is not None))

    def widen(a):
        lacks = None if a is None else tuple(sorted(union - varying_axes(a)))
        return lax.pcast(a, lacks, to="varying") if lacks else a

    return tuple(widen(a) for a in operands)


def result(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.ShapeDtypeStruct:
    """Type of a kernel's result that varies over the mesh axes ``like`` varies over."""
    axes = varying_axes(like)
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    if hasattr(jax.typeof(like), "vma"):
        return jax.ShapeDtypeStruct(shape, dtype, vma=axes)  # pyright: ignore[reportCallIssue]
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).mat)


def program() -> jax.Array:
    """Number of this program in the grid."""
    return pl.program_id(0)


def split_program(extents: Sequence[int]) -> tuple[jax.Array, ...]:
    """Number of this program as one index per extent, the last running fastest."""
    rest, found = program(), []
    for extent in reversed(extents):
        found.append(lax.rem(rest, jnp.int32(extent)))
        rest = lax.div(rest, jnp.int32(extent))
    return tuple(reversed(found))


def iota(length: int) -> jax.Array:
    """``0 .. length - 1`` as int32."""
    return lax.iota(jnp.int32, length)


def load(ref: Any, *where: Any, mask: jax.Array | None = None, past_cache: bool = False) -> jax.Array:
    """``ref[where]`` for integer arrays that broadcast; 0 where ``mask`` is False.

    With ``past_cache`` the first-level cache is not asked, where JAX can say so to Triton: from 0.12 on.
    """
    other = None if mask is None else jnp.zeros((), ref.dtype)
    cache = ".cg" if past_cache and jax.__version_info__ >= (0, 12) else None
    return plt.load(ref.at[where], mask=mask, other=other, cache_modifier=cache)


def store(ref: Any, value: jax.Array, *where: Any, mask: jax.Array | None = None) -> None:
    """``ref[where] = value`` where ``mask`` is True."""
    plt.store(ref.at[where], value.astype(ref.dtype), mask=mask)


def dot(a: jax.Array, b: jax.Array, *, interpret: bool) -> jax.Array:
    """``a @ b`` on tensor cores: 16-bit operands as they are, float32 in three TF32 products, 8-bit ones in int32."""
    if jnp.issubdtype(a.dtype, jnp.integer):
        return lax.dot(a, b, preferred_element_type=jnp.int32)
    if a.dtype != jnp.float32:
        return lax.dot(a, b, preferred_element_type=jnp.float32)
    # The host, which interprets, has no TF32; its float32 product is the exact form of the three.
    precision = lax.Precision.HIGHEST if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def assembly(source: str, operand: jax.Array, dtype: Any, *, words: int, pack: int) -> jax.Array:
    """PTX applied to every element of an array; what the host runs must be written beside it.

    Args:
      source: instructions that make the word ``$0`` of ``pack`` results from the words ``$1, $2, ..`` of as many
        elements.
      operand: the array, of 8 or 16 bits.
      dtype: of the result, 8 bits.
      words: 32-bit words that ``pack`` elements of the operand fill.
      pack: elements that the instructions take at a time, 4.
    """
    kind = jax.ShapeDtypeStruct(operand.shape, dtype)
    constraints = ",".join(["=r", *["r"] * words])
    return plt.elementwise_inline_asm(
        source, args=[operand], constraints=constraints, pack=pack, result_shape_dtypes=[kind]
    )[0]


def unrolled(count: int, step: Callable[[Any, Any], Any], carry: Any, *, interpret: bool) -> Any:
    """``step(i, carry)`` for ``i = 0 .. count - 1``, written out for a GPU.

    The interpreter compiles what it runs, and compiles a loop ``count`` times faster than ``count`` copies.
    """
    if interpret:
        return lax.fori_loop(0, count, step, carry)
    for i in range(count):
        carry = step(i, carry)
    return carry


def unrolled_sums(totals: Any, term: Callable[[Any], jax.Array], *, interpret: bool) -> Any:
    """Adds ``term(i)`` to the ``i``-th of ``totals`` (see :func:`zero_sums`), written out for a GPU."""
    if interpret:
        return lax.fori_loop(0, totals.shape[0], lambda i, sums: sums.at[i].add(term(i)), totals)
    return tuple(total + term(i) for i, total in enumerate(totals))


def zero_sums(count: int, shape: tuple[int, ...], *, interpret: bool) -> Any:
    """``count`` float32 sums at zero: registers for a GPU, one stacked array for the interpreter."""
    if interpret:
        return jnp.zeros((count, *shape), jnp.float32)
    return tuple(jnp.zeros(shape, jnp.float32) for _ in range(count))


def magnitude(x: jax.Array) -> jax.Array:
    """``|x|`` of float32 values as the integers of their bits, which order NaN above all numbers.

    A maximum of floats drops NaN on a GPU, and a block that holds one would come out finite.
    """
    return lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)


def exact_float(code: jax.Array) -> jax.Array:
    """Integers below 2**23 as float32 plus 2**23: one OR, where a conversion would run at a quarter of the rate."""
    return lax.bitcast_convert_type(code | jnp.uint32(_MAGIC_BITS), jnp.float32)


def nearest_code(value: jax.Array) -> jax.Array:
    """Floats in ``[0, 2**22]`` rounded half to even, uint32: one addition and one mask, where a conversion is slow."""
    bits = lax.bitcast_convert_type(value + jnp.float32(_MAGIC), jnp.uint32)
    return bits & jnp.uint32(0x7FFFFF)


def exact_zero(zero: jax.Array | float) -> jax.Array:
    """What to subtract from :func:`exact_float` for ``code - zero``; exact for integers ``zero`` below 2**23."""
    return jnp.asarray(zero, jnp.float32) + jnp.float32(_MAGIC)
