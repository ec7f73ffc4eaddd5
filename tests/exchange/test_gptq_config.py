import pytest

from compressjax.exchange.gptq_config import read_gptq_config, write_gptq_config
from compressjax.exchange.scheme import Scheme

FOUR = Scheme(bits=4, group=64, symmetric=True, act_order=False)
THREE = Scheme(bits=3, group=32, symmetric=False, act_order=True)


def model(**schemes):
    """Module name -> scheme for two layers; unnamed linears have FOUR. The head stays dense."""
    places = {"q": "self_attn.q_proj", "o": "self_attn.o_proj", "down": "mlp.down_proj"}
    out = {f"model.layers.{i}.{name}": schemes.get(key, FOUR) for i in range(2) for key, name in places.items()}
    return out | {"lm_head": schemes.get("head")}


def test_one_scheme_needs_no_rules():
    config = write_gptq_config(model(), checkpoint_format="gptq")
    assert config["quant_method"] == "gptq"
    assert config["checkpoint_format"] == "gptq"
    assert (config["bits"], config["group_size"], config["sym"], config["desc_act"]) == (4, 64, True, False)
    assert config["lm_head"] is False
    assert "dynamic" not in config and "modules_in_block_to_quantize" not in config


def test_a_linear_left_alone_and_one_with_other_bits():
    config = write_gptq_config(model(o=None, down=THREE), checkpoint_format="gptq_v2")
    assert config["dynamic"] == {
        r"-:model\.layers\.\d+\.self_attn\.o_proj$": {},
        r"+:model\.layers\.\d+\.mlp\.down_proj$": {"bits": 3, "group_size": 32, "sym": False, "desc_act": True},
    }
    assert config["modules_in_block_to_quantize"] == [["mlp.down_proj", "self_attn.q_proj"]]


def test_one_layer_differs():
    schemes = model() | {"model.layers.1.mlp.down_proj": THREE}
    config = write_gptq_config(schemes, checkpoint_format="gptq")
    assert list(config["dynamic"]) == [r"+:model\.layers\.1\.mlp\.down_proj$"]


@pytest.mark.parametrize("head", [None, FOUR, THREE])
@pytest.mark.parametrize("checkpoint_format, version", [("gptq", 1), ("gptq_v2", 2)])
def test_read_back(head, checkpoint_format, version):
    schemes = model(down=THREE, head=head) | {"model.layers.1.self_attn.q_proj": THREE}
    scheme_of, got = read_gptq_config(write_gptq_config(schemes, checkpoint_format=checkpoint_format))
    assert got == version
    assert {name: scheme_of(name) for name, scheme in schemes.items() if scheme} == {
        name: scheme for name, scheme in schemes.items() if scheme
    }


def test_what_others_write():
    scheme_of, version = read_gptq_config({"bits": 4, "group_size": 128, "desc_act": True, "quant_method": "gptq"})
    assert version == 1
    assert scheme_of("model.layers.0.mlp.up_proj") == Scheme(bits=4, group=128, symmetric=True, act_order=True)
    rules = {r".*\.18\..*gate.*": {"bits": 8}, r"-:.*down.*": {}, r"+:.*up.*": {"group_size": -1}}
    scheme_of, version = read_gptq_config(
        {"bits": 4, "group_size": 32, "sym": False, "format": "gptq_v2", "pack_dtype": "int32", "dynamic": rules}
    )
    assert version == 2
    assert scheme_of("model.layers.18.mlp.gate_proj").bits == 8
    assert scheme_of("model.layers.1.mlp.gate_proj").bits == 4
    assert scheme_of("model.layers.1.mlp.up_proj").group == -1


def test_refusals():
    stated = {"bits": 4, "group_size": 128}
    for extra in ({"checkpoint_format": "marlin"}, {"is_marlin_format": True}):
        with pytest.raises(NotImplementedError, match="'marlin' is not supported; supported: gptq, gptq_v2"):
            read_gptq_config(stated | extra)
    with pytest.raises(NotImplementedError, match="pack_dtype 'int16'"):
        read_gptq_config(stated | {"pack_dtype": "int16"})
    with pytest.raises(ValueError, match="bits must be 2, 3, 4 or 8, got 5"):
        read_gptq_config(stated | {"bits": 5})
    with pytest.raises(ValueError, match="group_size must be -1 or >= 1, got None"):
        read_gptq_config({"bits": 4})
    with pytest.raises(ValueError, match="no linear of the model is quantised"):
        write_gptq_config({"lm_head": None}, checkpoint_format="gptq")
