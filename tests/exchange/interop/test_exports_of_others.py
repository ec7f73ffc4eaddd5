"""We load what other quantisers make and compute the same logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.checkpoint import load_model
from compressjax.leaf import Affine
from compressjax.models.llama import Llama

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

# float32 against float32 through two blocks; the logits reach about 3.
CLOSE = 2e-5


def our_logits(loaded, tokens):
    return np.asarray(Llama(loaded.config).apply({"params": loaded.params}, jnp.asarray(tokens)))


def kernel(loaded, place):
    part, name = place.split("/")
    return loaded.params["blocks"][part][name]["kernel"]


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 4, "group_size": 32, "sym": True},
        {"bits": 3, "group_size": 32, "sym": False},
        {"bits": 4, "group_size": 32, "sym": True, "desc_act": True, "act_group_aware": False},
        {"bits": 2, "group_size": 32, "sym": False, "format": "gptq_v2"},
        {"bits": 2, "group_size": 16, "sym": False},
        {"bits": 4, "group_size": 32, "dynamic": {r".*down_proj.*": {"bits": 8}, r"-:.*o_proj.*": {}}},
    ],
    ids=str,
)
def test_gptqmodel(tmp_path, their_model, torch, gptqmodel, logits, tokens, settings):
    rng = np.random.default_rng(0)
    samples = [{"input_ids": rng.integers(0, 94, 48).tolist(), "attention_mask": [1] * 48} for _ in range(8)]
    made = gptqmodel.GPTQModel.load(str(their_model), gptqmodel.QuantizeConfig(**settings), device="cpu")
    made.quantize(samples, batch_size=1)
    made.save(str(tmp_path / "made"))
    read = gptqmodel.GPTQModel.load(
        str(tmp_path / "made"), device="cpu", backend=gptqmodel.BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    loaded = load_model(tmp_path / "made")
    down = kernel(loaded, "mlp/down")
    assert isinstance(down, Affine)
    assert down.bits == (8 if "dynamic" in settings else settings["bits"])
    assert (down.g_idx is not None) == settings.get("desc_act", False)
    assert isinstance(kernel(loaded, "attn/o"), Affine) == ("dynamic" not in settings)
    theirs = logits(torch.nn.Module.float(read.model), tokens)
    np.testing.assert_allclose(our_logits(loaded, tokens), theirs, atol=CLOSE)


@pytest.mark.parametrize(
    "groups",
    [
        {"Linear": {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}},
        {"Linear": {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 32}},
        {"Linear": {"num_bits": 8, "symmetric": True, "strategy": "channel"}},
        {
            r"re:.*down_proj$": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
            r"re:.*(q|k|v|gate|up)_proj$": {
                "num_bits": 4,
                "symmetric": False,
                "strategy": "group",
                "group_size": 32,
            },
        },
    ],
    ids=str,
)
def test_llm_compressor(tmp_path, their_model, torch, transformers, llmcompressor, logits, tokens, groups):
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = transformers.LlamaForCausalLM.from_pretrained(their_model, dtype=torch.float32)
    stated = {f"g{i}": {"targets": [t], "weights": {"type": "int", **w}} for i, (t, w) in enumerate(groups.items())}
    llmcompressor.oneshot(model=model, recipe=QuantizationModifier(config_groups=stated, ignore=["lm_head"]))
    theirs = logits(model, tokens)
    model.save_pretrained(tmp_path / "made", save_compressed=True)
    loaded = load_model(tmp_path / "made")
    assert kernel(loaded, "mlp/down").bits == next(iter(groups.values()))["num_bits"]
    assert isinstance(kernel(loaded, "attn/o"), Affine) == (len(groups) == 1)
    np.testing.assert_allclose(our_logits(loaded, tokens), theirs, atol=CLOSE)
