from pathlib import Path

import pytest

from compressjax.checkpoint import open_model
from compressjax.checkpoint.linear_format import QUANTIZED, PlainLinear, linear_format

PATH = Path("config.json")


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_plain_without_quantisation(config):
    assert linear_format(config, PATH) == PlainLinear()


@pytest.mark.parametrize("method", ["awq", "bitsandbytes", None])
def test_unknown_methods_are_named(method):
    with pytest.raises(NotImplementedError, match=f"quant_method {method!r} .* known: gptq, compressed-tensors"):
        linear_format({"quantization_config": {"quant_method": method}}, PATH)


def test_a_folder_with_an_unknown_method_is_refused_before_its_tensors(reference_folder, edit_config):
    folder = reference_folder("llama3")
    edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(NotImplementedError, match="'awq'"):
        open_model(folder)


def test_known_methods_make_formats():
    made = linear_format({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}, PATH)
    assert callable(made.layout) and callable(made.read)
    assert set(QUANTIZED) == {"gptq", "compressed-tensors"}
