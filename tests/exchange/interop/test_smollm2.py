"""A real model, exported in both formats, loaded with transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.checkpoint import load_model
from compressjax.exchange.export import FolderExtras, export_compressed_tensors, export_gptq
from compressjax.models.llama import Llama

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.filterwarnings("default")]

TEXT = "The Hessian of a layer tells how much an error in each weight costs, and rounding should look at it."


@pytest.fixture
def smollm2():
    try:
        return load_model("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("options", [{"bits": 4, "group": 64, "symmetric": True}, {"bits": 3, "group": 64}], ids=str)
def test_same_logits(tmp_path, smollm2, quantize, load_gptq, load_compressed, logits, record_property, options):
    cfg = smollm2.config
    params = quantize(smollm2.params, **options)
    ids = np.array([smollm2.tokenizer.encode(TEXT).ids])
    wanted = np.asarray(Llama(cfg).apply({"params": params}, jnp.asarray(ids)))
    extras = FolderExtras(tokenizer=smollm2.tokenizer, eos_ids=smollm2.eos_ids, bos_id=smollm2.bos_id)
    gptq = export_gptq(params, cfg, tmp_path / "gptq", extras=extras)
    packed = export_compressed_tensors(params, cfg, tmp_path / "ct", extras=extras, scale_dtype=jnp.float32)
    for name, model in (("gptq", load_gptq(gptq)), ("compressed-tensors", load_compressed(packed))):
        got = logits(model, ids)
        record_property(f"{name} largest difference", float(np.abs(got - wanted).max()))
        # float32 through 30 blocks; the logits reach about 30.
        np.testing.assert_allclose(got, wanted, atol=5e-4)
        assert (got.argmax(-1) == wanted.argmax(-1)).all()
    reread = load_model(gptq)
    assert reread.tokenizer.encode(TEXT).ids == ids[0].tolist()
    again = np.asarray(Llama(cfg).apply({"params": reread.params}, jnp.asarray(ids)))
    np.testing.assert_array_equal(again, wanted)
