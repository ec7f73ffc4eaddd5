"""The library's own functions compiled for a GPU that is not there: the kernels are in their programs."""

import re

import jax
import jax.numpy as jnp
import pytest

from compressjax.distributed import QSGD, BlockTopK, MinMax
from compressjax.kvcache import GEAR, KIVI, KV4, DenseKV, KVSpec, flush, kv_compress, view_of
from compressjax.kvcache.cache import Layout
from compressjax.kvcache.protocol import Segment
from compressjax.leaf.group_sparse import GroupSparse
from compressjax.leaf.w4ax import W4Ax
from compressjax.ops import matmul
from compressjax.training.eight_bit import adamw_8bit
from pallas_kernels.proof.compile import compile_for
from pallas_kernels.proof.targets import H100
from pallas_kernels.proof.traffic import moved_bytes, operations

pytestmark = pytest.mark.kernels


def kernels(fn, *shapes) -> list[str]:
    """Names of the kernels of this library in the compiled program."""
    program = compile_for(fn, shapes, H100)
    found = {name for ptx in program.ptx for name in re.findall(r"\.entry (\w+)", ptx)}
    ours = "quantize_pack|unpack_dequantize|blockwise_adam|topk_pack|group_sparse|w4ax|mla_attention"
    return sorted(name for name in found if re.match(ours, name))


def test_compressors_of_gradients(compiler):
    x, key = jax.ShapeDtypeStruct((1 << 16,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.uint32)

    def there_and_back(x, key):
        found = []
        for each in (MinMax(bits=4), QSGD(bits=8), BlockTopK()):
            found.append(each.decode(each.encode(x, key), x.shape[0], key))
        return found

    assert kernels(there_and_back, x, key) == [
        "quantize_pack_minmax_w4",
        "quantize_pack_norm_w8",
        "topk_pack",
        "unpack_dequantize_minmax_w4",
        "unpack_dequantize_norm_w8",
    ]


@pytest.mark.standard_promotion("optax.adam mixes the dtypes of its moments")
def test_eight_bit_optimizers(compiler, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    params = {"w": jax.ShapeDtypeStruct((256, 512), jnp.float32), "b": jax.ShapeDtypeStruct((512,), jnp.float32)}
    tx = adamw_8bit(1e-3)
    state = jax.eval_shape(tx.init, params)
    assert kernels(lambda *args: tx.update(*args), params, state, params) == ["blockwise_adam_direction"]


def test_leaves_with_stored_groups(compiler):
    w = GroupSparse(
        codes=jax.ShapeDtypeStruct((2, 16, 96), jnp.uint32),
        scale=jax.ShapeDtypeStruct((16, 96), jnp.float16),
        zero=jax.ShapeDtypeStruct((16, 12), jnp.uint32),
        index=jax.ShapeDtypeStruct((16, 96), jnp.uint8),
        row_ptr=None,
        layout="ell",
        bits=4,
        group=16,
        shape=(512, 96),
        zero_kind="int",
    )
    x = jax.ShapeDtypeStruct((1, 512), jnp.bfloat16)
    assert kernels(matmul, x, w) == ["group_sparse_matmul_w4_ell"]
    assert kernels(matmul, jax.ShapeDtypeStruct((64, 512), jnp.bfloat16), w) == []


def test_leaves_that_round_what_they_read(compiler):
    w = W4Ax(
        codes=jax.ShapeDtypeStruct((128, 96), jnp.uint8),
        scale=jax.ShapeDtypeStruct((2, 96), jnp.float16),
        perm=jax.ShapeDtypeStruct((256,), jnp.uint16),
        n_hi=jax.ShapeDtypeStruct((), jnp.int32),
        block=128,
        hi_bits=8,
        lo_bits=4,
        act_clip=1.0,
        shape=(256, 96),
    )
    assert kernels(matmul, jax.ShapeDtypeStruct((1, 256), jnp.bfloat16), w) == ["w4ax_matmul_fused"]
    assert kernels(matmul, jax.ShapeDtypeStruct((2, 64, 256), jnp.bfloat16), w) == ["w4ax_matmul", "w4ax_quantize"]


@pytest.mark.parametrize("codec", [DenseKV(), KV4(group=32)], ids=["float", "packed"])
def test_caches_of_latents(compiler, codec):
    """A model that TransMLA converted: the prompt and later chunks, one kernel each."""
    spec = KVSpec(
        layers=1,
        batch=1,
        q_heads=9,
        kv_heads=1,
        head_dim=224,
        value_dim=192,
        shared=True,
        prompt=256,
        max_len=512,
        dtype="bfloat16",
    )
    layout = Layout(spec, (Segment(codec, 0, 1),))
    k = jax.ShapeDtypeStruct((1, 1, 1, spec.prompt, spec.head_dim), jnp.bfloat16)
    state = jax.eval_shape(
        lambda k: codec.prefill(spec, k, k[..., :0], jnp.ones((1, spec.prompt), bool), None, None), k
    )
    q = jax.ShapeDtypeStruct((1, 1, 9, 1, spec.head_dim), jnp.bfloat16)
    count = jax.ShapeDtypeStruct((), jnp.int32)

    def attend(state, q, real, frozen, hot):
        return codec.attend(spec, state, q, view_of(layout, codec, real, frozen, hot, 1), 0)[0]

    kind = "float" if isinstance(codec, DenseKV) else "w"
    names = kernels(attend, state, q, jax.ShapeDtypeStruct((1, spec.max_len), bool), count, count)
    assert [name.rstrip("_0123456789") for name in names] == [f"mla_attention_{kind}"] * 2


@pytest.mark.parametrize("codec", [KIVI(), GEAR(sparsity=0)], ids=["kivi", "gear"])
def test_full_rings(compiler, codec):
    """The rings of all layers are rounded into the cache's own memory, and nothing of the cache is copied."""
    k = jax.ShapeDtypeStruct((4, 1, 128, 3, 64), jnp.bfloat16)
    prompt = {"k": k, "v": k, "mask": jax.ShapeDtypeStruct((1, 128), bool)}
    cache = jax.eval_shape(lambda prompt: kv_compress(prompt, codec, q_heads=9, max_len=8192), prompt)
    program = compile_for(flush, (cache,), H100, donate=(0,))
    entries = {name for ptx in program.ptx for name in re.findall(r"\.entry (\w+)", ptx)}
    ours = {name.rstrip("_0123456789") for name in entries if name.startswith("kv_append")}
    assert ours == {"kv_append_w2_channel", "kv_append_w2_token"}
    copies = [op.bytes for op in operations(program.hlo) if "copy" in op.name]
    assert sum(copies) < sum(a.size * a.dtype.itemsize for a in cache.states[0].hot)
    if isinstance(codec, KIVI):
        ring = sum(a.size * a.dtype.itemsize for a in cache.states[0].hot)
        assert moved_bytes(program.hlo) < 1.2 * ring
