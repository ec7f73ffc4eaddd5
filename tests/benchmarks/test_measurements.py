import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import language_model as lm
from benchmarks.claims.gptq import PARTS, best
from benchmarks.matrix_errors import errors, hessians, pick_layers
from benchmarks.one_process import named
from benchmarks.quantize.methods import runs
from benchmarks.quantize.speed import forward_flops, gram_flops
from benchmarks.trace import __main__ as trace
from benchmarks.trace.measure import FORMS, decoder, shapes
from compressjax.models import Llama
from compressjax.ops import nbits
from compressjax.quantization import GPTQ, RTN, quantize
from compressjax.select import weights


@pytest.fixture(scope="module")
def bed() -> lm.TestBed:
    cfg = decoder(64, 2)
    params = Llama(cfg).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    gains = jax.random.uniform(jax.random.key(1), (2, 64), minval=0.5, maxval=2.0)
    blocks = params["blocks"] | {"attn_norm": {"scale": gains}, "mlp_norm": {"scale": gains[::-1]}}
    return lm.TestBed(cfg, {**params, "blocks": blocks})


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 512, (4, 32)).astype(np.int32)


def test_folding_gains_keeps_the_function_and_moves_every_reader(bed, tokens):
    folded = lm.folded(bed.params)
    chex.assert_trees_all_close(bed.logits(folded, tokens), bed.logits(bed.params, tokens), rtol=0, atol=1e-5)
    before, after = weights(bed.params), weights(folded)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    readers = {f"blocks/{name}/kernel" for name in ("attn/q", "attn/k", "attn/v", "mlp/gate", "mlp/up")}
    assert changed == readers | {"blocks/attn_norm/scale", "blocks/mlp_norm/scale"}


def test_bits_count_the_kernels_of_the_blocks_alone(bed):
    assert lm.bits_per_weight(bed.params) == 32
    rounded = quantize(bed.params, RTN(bits=4, group=32))
    assert lm.bits_per_weight(rounded) == pytest.approx(4 + 20 / 32)
    assert sum(nbits(w) for w in lm.projections(rounded).values()) < nbits(rounded)


def test_chosen_blocks_are_a_model(bed, tokens):
    last = lm.chosen_blocks(bed, [1])
    assert last.cfg.num_layers == 1
    np.testing.assert_array_equal(
        last.params["blocks"]["mlp"]["up"]["kernel"][0], bed.params["blocks"]["mlp"]["up"]["kernel"][1]
    )
    assert last.logits(last.params, tokens).shape == (4, 32, 512)


def test_errors_agree_on_one_set_of_tokens_and_tell_methods_apart(bed, tokens):
    seen, unseen = hessians(bed, tokens[:2]), hessians(bed, tokens[2:])
    rtn, ours = RTN(bits=3, group=32), GPTQ(bits=3, group=32)
    same = errors(bed, ours, seen, seen)
    assert same.seen.shape == (7, 2)
    # The reported error and the error of the stored leaf are the same sum in another order.
    np.testing.assert_allclose(same.seen, same.unseen, rtol=1e-3)
    other = errors(bed, ours, seen, unseen)
    np.testing.assert_array_equal(other.seen, same.seen)
    assert other.unseen.mean() > other.seen.mean()
    assert same.seen.mean() < 0.5 * errors(bed, rtn, seen, unseen).seen.mean()


def test_errors_of_some_layers_are_those_layers_errors(bed, tokens):
    seen = hessians(bed, tokens)
    whole = errors(bed, RTN(bits=2, group=32), seen, seen)
    last = pick_layers(seen, [1])
    part = errors(lm.chosen_blocks(bed, [1]), RTN(bits=2, group=32), last, last)
    np.testing.assert_allclose(part.seen[:, 0], whole.seen[:, 1], rtol=1e-5)


def test_flops_are_those_that_xla_counts():
    cfg, length = decoder(256, 1), 64
    params = shapes(cfg, "dense")
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32)
    hidden = jax.jit(lambda p, t: Llama(cfg).apply({"params": p}, t, method="hidden")[0])
    counted = hidden.lower(params, ids).compile().cost_analysis()["flops"]
    # XLA counts norms, rotations and softmax too, a few per cent at this width.
    assert 0.9 < forward_flops(cfg, 2, length) / counted <= 1.0
    assert gram_flops(cfg, 1, 1) == 3 * 256 * 257 + 512 * 513


@pytest.mark.parametrize("form", FORMS)
def test_shapes_of_a_form_hold_no_array_and_have_its_size(form):
    found = lm.projections(shapes(decoder(64, 2), form))
    assert all(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(found))
    bits = {"dense": 32, "affine": 3 + 19 / 32}
    if form in bits:
        assert lm.bits_per_weight({"blocks": shapes(decoder(64, 2), form)["blocks"]}) == pytest.approx(bits[form])
    else:
        assert lm.bits_per_weight({"blocks": shapes(decoder(64, 2), form)["blocks"]}) < 3 + 128 / 64 + 1e-9
    with pytest.raises(ValueError, match="form must be one of"):
        shapes(decoder(64, 2), "sparse")


def test_ratios_take_the_worst_point():
    def row(axis, point, form, trace):
        return {"axis": axis, "point": point, "form": form, "trace": trace, "trace_again": 1.0, "compile": point}

    rows = [row(axis, p, "dense", 1.0) for axis in ("width", "depth") for p in (2, 4)]
    rows += [row(axis, p, form, p) for axis in ("width", "depth") for p in (2, 4) for form in FORMS[1:]]
    found = trace.ratios(rows)
    assert found["trace, affine over dense, largest"] == 4
    assert found["trace_again, codebook over dense, largest"] == 1
    assert found["compile, dense, by depth, last over first"] == 2


def test_rows_have_names_of_their_own():
    assert len({run.name for run in runs()}) == len(runs())
    assert named(runs(), "GPTQ k-means, 3 bits").cfg.levels == "kmeans"
    with pytest.raises(ValueError, match="no row 'GPTQ, 5 bits'"):
        named(runs(), "GPTQ, 5 bits")


def test_claim_parts_fit_their_budget():
    assert sum(part.minutes for part in PARTS.values()) <= 50
    assert best(3).bits == 3


@pytest.mark.slow
def test_trace_runs_and_draws(tmp_path):
    assert trace.main(["--quick", "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "trace.json").read_text())
    assert {row["form"] for row in result["rows"]} == set(FORMS)
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_quantize_runs_and_draws(tmp_path, smollm2_path):
    from benchmarks.quantize.__main__ import main

    assert main(["--quick", "--only", "RTN, 3", "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "quantize.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["RTN, 3 bits"]
    assert result["rows"][0]["bits_per_weight"] == pytest.approx(3 + 19 / 64, abs=1e-3)
    assert 0 < result["speed"]["ratio"] < 2
    assert (tmp_path / "quantize.png").read_bytes().startswith(b"\x89PNG")
