import pytest

from compressjax.exchange.compressed_tensors_config import read_compressed_config, write_compressed_config
from compressjax.exchange.scheme import Scheme

FOUR = Scheme(bits=4, group=64, symmetric=True, act_order=False)
THREE = Scheme(bits=3, group=-1, symmetric=False, act_order=False)
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}


def stated(weights=WEIGHTS, **extra):
    return {
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    } | extra


def test_one_scheme():
    names = [f"model.layers.{i}.{n}" for i in range(2) for n in ("self_attn.q_proj", "mlp.up_proj")]
    config = write_compressed_config(dict.fromkeys(names, FOUR) | {"lm_head": None})
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    assert config["quantization_status"] == "compressed"
    assert config["ignore"] == ["lm_head"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 64,
        "actorder": None,
        "dynamic": False,
    }


def test_schemes_that_differ_are_targeted_by_name_and_read_back():
    schemes = {
        "model.layers.0.self_attn.q_proj": FOUR,
        "model.layers.1.self_attn.q_proj": FOUR,
        "model.layers.0.mlp.up_proj": THREE,
        "model.layers.1.mlp.up_proj": FOUR,
        "model.layers.0.mlp.down_proj": None,
        "model.layers.1.mlp.down_proj": None,
        "lm_head": THREE,
    }
    config = write_compressed_config(schemes)
    assert [group["targets"] for group in config["config_groups"].values()] == [
        [r"re:model\.layers\.\d+\.self_attn\.q_proj$", "model.layers.1.mlp.up_proj"],
        ["model.layers.0.mlp.up_proj", "lm_head"],
    ]
    assert config["ignore"] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    scheme_of = read_compressed_config(config)
    assert {name: scheme_of(name) for name, scheme in schemes.items() if scheme} == {
        name: scheme for name, scheme in schemes.items() if scheme
    }
    with pytest.raises(ValueError, match=r"mlp\.gate_proj: no target"):
        scheme_of("model.layers.0.mlp.gate_proj")


def test_what_others_write():
    assert read_compressed_config(stated())("model.layers.3.mlp.up_proj").group == 128
    old = stated({**WEIGHTS, "actorder": "group"}, kv_cache_scheme=None, sparsity_config={}, ignore=["lm_head"])
    assert read_compressed_config(old)("x").act_order
    assert not read_compressed_config(stated({**WEIGHTS, "actorder": "weight"}))("x").act_order
    whole = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"}
    assert read_compressed_config(stated(whole))("x") == Scheme(bits=8, group=-1, symmetric=True, act_order=False)


def test_refusals():
    group = {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": {"num_bits": 8}}
    with pytest.raises(NotImplementedError, match="quantised activations"):
        read_compressed_config(stated(config_groups={"group_0": group}))
    with pytest.raises(NotImplementedError, match="format 'int-quantized' is not supported"):
        read_compressed_config(stated(format="int-quantized"))
    with pytest.raises(NotImplementedError, match="type 'float'"):
        read_compressed_config(stated({**WEIGHTS, "type": "float"}))
    with pytest.raises(NotImplementedError, match="strategy 'block'"):
        read_compressed_config(stated({**WEIGHTS, "strategy": "block"}))
    with pytest.raises(NotImplementedError, match="kv_cache_scheme"):
        read_compressed_config(stated(kv_cache_scheme={"num_bits": 8}))
    with pytest.raises(NotImplementedError, match="preset 'W4A16'"):
        read_compressed_config(stated(config_groups={"W4A16": ["Linear"]}))
    with pytest.raises(ValueError, match="lacks config_groups"):
        read_compressed_config({"format": "pack-quantized"})
    with pytest.raises(ValueError, match="num_bits must be 1 to 8, got 16"):
        read_compressed_config(stated({**WEIGHTS, "num_bits": 16}))
    with pytest.raises(ValueError, match="no linear of the model is quantised"):
        write_compressed_config({"lm_head": None})
