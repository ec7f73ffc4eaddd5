from pathlib import Path

import pytest

from compressjax.checkpoint import load_model, open_model
from compressjax.ops import nbits, size
from compressjax.reporting.components import component_sizes

REFERENCE = Path(__file__).resolve().parent.parent / "models" / "reference"


@pytest.mark.parametrize("name", ["smollm2", "qwen2", "qwen3"])
def test_components_add_up_to_the_model(name):
    parts = component_sizes(open_model(REFERENCE / name))
    params = load_model(REFERENCE / name).params
    assert sum(part.parameters for part in parts) == size(params)
    assert sum(part.bits for part in parts) == nbits(params)
    assert [part.name for part in parts][:3] == ["Embedding", "Attention", "MLP"]
    mlp = next(part for part in parts if part.name == "MLP")
    assert mlp.parameters == sum(size(m["kernel"]) for m in params["blocks"]["mlp"].values())
    assert mlp.dense_bits == 16 * mlp.parameters
