"""On a TPU every leaf is multiplied by its XLA formula; here the programs are compiled for one that is not there."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from compressjax.factorization import SVD, BitStack, lowrank
from compressjax.leaf import pack_codebook
from compressjax.models import Llama, LlamaConfig
from compressjax.ops import matmul
from compressjax.quantization import RTN, PowerQuant, quantize

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="nothing is compiled for TPUs: libtpu is not installed"
    ),
]

WEIGHT = jax.random.normal(jax.random.key(0), (256, 128))


def _codebook(w, bits):
    levels = jnp.broadcast_to(jnp.linspace(-1, 1, 2**bits)[None, :, None], (1, 2**bits, w.shape[1]))
    return pack_codebook(jnp.zeros(w.shape, jnp.uint8), levels, group=-1)


LEAVES = {
    "affine-4": lambda w: quantize({"kernel": w}, RTN(bits=4, group=64)),
    "affine-3": lambda w: quantize({"kernel": w}, RTN(bits=3, group=64, sym=True)),
    "power": lambda w: quantize({"kernel": w}, PowerQuant(bits=4)),
    "codebook": lambda w: {"kernel": _codebook(w, 3)},
    "svd": lambda w: lowrank({"kernel": w}, SVD(reduction=0.5, scale="none")),
    "signs": lambda w: lowrank({"kernel": w}, BitStack(levels=2, rank=4, scale="none")),
}


@pytest.fixture(scope="module")
def tpu():
    """A TPU that is described, not present."""
    from jax.experimental import topologies

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud to ask what machine this is
        yield topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]


def compiled(fn, args, device) -> str:
    sharding = SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
    return jax.jit(fn).trace(*shapes).lower(lowering_platforms=("tpu",)).compile().as_text()


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_compile(name, tpu):
    w = LEAVES[name](WEIGHT)["kernel"]
    assert not isinstance(w, jax.Array)
    program = compiled(matmul, (jax.ShapeDtypeStruct((4, 256), jnp.bfloat16), w), tpu)
    assert "ENTRY" in program and "triton" not in program and "mosaic_gpu" not in program


def test_a_whole_model_compiles(tpu):
    cfg = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        tie_embeddings=True,
    )
    model, tokens = Llama(cfg), jax.ShapeDtypeStruct((1, 16), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.eval_shape(lambda p: quantize(p, RTN(bits=4, group=64)), params)
    program = compiled(lambda params, tokens: model.apply({"params": params}, tokens), (params, tokens), tpu)
    assert "ENTRY" in program
