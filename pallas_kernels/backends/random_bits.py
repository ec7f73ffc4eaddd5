"""Random numbers that a kernel makes for itself: Threefry of a key and of the place the number is for.

A number depends on its key and place only, so a kernel and the plain formula draw the same ones, and a kernel reads
nothing. Paper: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"; 20 rounds, as JAX has them.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.backends.pallas_triton import exact_float, exact_zero

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: tuple[jax.Array, jax.Array], place: jax.Array, nth: int) -> tuple[jax.Array, jax.Array]:
    """Two words of 32 random bits for each place.

    Args:
      key: two uint32 scalars.
      place: uint32 of any shape.
      nth: which pair of words of that place.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    a, b = place + schedule[0], jnp.uint32(nth) + jnp.broadcast_to(schedule[1], place.shape)
    for step in range(5):
        for turn in _ROTATIONS[step % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(turn)) | (b >> jnp.uint32(32 - turn)))
        a, b = a + schedule[(step + 1) % 3], b + schedule[(step + 2) % 3] + jnp.uint32(step + 1)
    return a, b


def centred_uniforms(key: tuple[jax.Array, jax.Array], place: jax.Array, count: int) -> list[jax.Array]:
    """``count`` float32 numbers for each place, uniform on the middles of 65,536 cells of (-1/2, 1/2).

    One Threefry call makes four of them. A value rounded after such a number was added has the value as its mean, to
    ``2^-17`` of a step.
    """
    found = []
    for nth in range(-(-count // 4)):
        for word in threefry(key, place, nth):
            for bits in (word & jnp.uint32(0xFFFF), word >> jnp.uint32(16)):
                centred = (exact_float(bits) - exact_zero(2**15)) + jnp.float32(0.5)
                found.append(centred * jnp.float32(2.0**-16))
    return found[:count]


def key_words(op: str, key: jax.Array) -> jax.Array:
    """uint32 ``[2]`` of a JAX key of either style.

    Raises:
      ValueError: for a key that is not one of Threefry's.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if data.shape != (2,) or data.dtype != jnp.uint32:
        raise ValueError(f"{op}: key must be one Threefry key, uint32 [2], got {data.dtype} {list(data.shape)}")
    return data
