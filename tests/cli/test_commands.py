"""Each command from its words to its files and figures, on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest

from compressjax.checkpoint import load_model, open_model
from compressjax.evaluation.divergence import divergence
from compressjax.evaluation.logits import LinenLogits
from compressjax.evaluation.perplexity import perplexity
from compressjax.leaf import Affine
from compressjax.models import Llama, generate
from compressjax.ops import dense
from compressjax.quantization import RTN, quantize
from compressjax.streaming import read_summary

EVALUATION = ("--windows", 3, "--length", 32)


def windows(folder: Path, text: Path) -> np.ndarray:
    ids = open_model(folder).tokenizer.encode(text.read_text()).ids
    return np.asarray(ids[: 3 * 32]).reshape(3, 32)


def test_quickstart_compares_three_models(quickstarted):
    original, rounded, ours = quickstarted["qualities"]
    assert original["kl"] is None and 0 < ours["kl"] < rounded["kl"]
    assert [len(quickstarted[name]) for name in ("samples", "bits_per_weight", "bytes")] == [3, 2, 3]
    assert all(3 < bits < 5 for bits in quickstarted["bits_per_weight"].values())
    assert quickstarted["not_better"] == []
    page = Path(quickstarted["report"]).read_text()
    assert f"{ours['bits_per_byte']:.3f}" in page and "Rounded to nearest" in page


def test_compress_writes_a_model_and_says_what_it_did(command, tiny, text, tmp_path, method, compressed):
    out = tmp_path / "out"
    ended = command(
        "compress", tiny, "--out", out, *method, "--calibration", text, "--windows", 8, "--length", 32, "--json"
    )
    assert ended.code == 0, ended.err
    result, summary = ended.result, read_summary(out)
    assert result["bits_per_weight"] == summary.bits_per_weight
    assert len(result["matrices"]) == 21 and result["not_better"] == []
    assert result["note"] == {"source": str(tiny), "calibration": str(text), "windows": 8, "length": 32}
    assert "block" in ended.err  # progress is not on stdout
    # The same model, calibration and method as the quickstart's: the same bytes.
    for shard in sorted(compressed.glob("*.safetensors")):
        assert (out / shard.name).read_bytes() == shard.read_bytes()


def test_compress_tunes_blocks(command, tiny, text, tmp_path):
    words = ("compress", tiny, "--method", "rtn", "--bits", 2, "--group", 16, "--calibration", text, "--windows", 8)
    shards = {}
    for name, tune in (("plain", "none"), ("tuned", "block:epochs=2,held_out=0.25")):
        ended = command(*words, "--length", 32, "--tune", tune, "--out", tmp_path / name)
        assert ended.code == 0, ended.err
        shards[name] = load_model(tmp_path / name).params["blocks"]["mlp"]["up"]["kernel"]
    assert "BlockTuning" in read_summary(tmp_path / "tuned").method
    np.testing.assert_array_equal(shards["plain"].codes, shards["tuned"].codes)
    assert np.any(np.asarray(shards["plain"].scale) != np.asarray(shards["tuned"].scale))


def test_compress_prints_tables(command, tiny, text, tmp_path, method):
    words = ("compress", tiny, *method, "--calibration", text, "--windows", 8, "--length", 32)
    ended = command(*words, "--out", tmp_path / "out")
    assert ended.code == 0
    assert "GPTQ(bits=3, group=16, grid=hessian, asymmetric=target, alpha=0.5)" in ended.out
    assert "Bits per weight" in ended.out and "Largest errors" in ended.out and "kernel" in ended.out
    assert "no better than rounding" not in ended.out


def test_matrices_that_are_no_better_are_named(command, tiny, text, tmp_path, monkeypatch, method):
    import compressjax.streaming.compress as streaming

    def worse(index, params, infos):
        rows = original(index, params, infos)
        return tuple(
            streaming.MatrixRow(**{**vars(row), "error": 2 * row.rounding_error}) if "mlp/up" in row.path else row
            for row in rows
        )

    original = streaming.matrix_rows
    monkeypatch.setattr(streaming, "matrix_rows", worse)
    words = ("compress", tiny, *method, "--calibration", text, "--windows", 8, "--length", 32)
    named = [f"blocks/{i}/mlp/up/kernel" for i in range(3)]
    shown = command(*words, "--out", tmp_path / "shown")
    assert "3 of 21 matrices are no better than rounding" in shown.out
    assert all(f"  {path}:" in shown.out for path in named)
    assert command(*words, "--out", tmp_path / "json", "--json").result["not_better"] == named


def test_rounding_reads_no_text_and_equals_the_verb(command, tiny, tmp_path):
    out = tmp_path / "out"
    words = ("compress", tiny, "--method", "rtn", "--bits", 4, "--group", 16, "--out", out)
    ended = command(*words, "--calibration", "nowhere.txt")
    assert ended.code == 0 and "not read" in ended.err
    assert "no better" not in ended.out  # plain rounding is the method, not a failure of one
    want = quantize(load_model(tiny).params, RTN(bits=4, group=16))["blocks"]["mlp"]["down"]["kernel"]
    got = load_model(out).params["blocks"]["mlp"]["down"]["kernel"]
    np.testing.assert_array_equal(dense(got), dense(want))


def test_rules_reach_the_weights_they_name(command, tiny, tmp_path):
    rules = ("--rules", "blocks/attn/*=rtn:bits=4,group=16", "--rules", "blocks/mlp/up=none")
    out = tmp_path / "out"
    assert command("compress", tiny, "--method", "rtn", "--bits", 2, "--group", 16, *rules, "--out", out).code == 0
    blocks = load_model(out).params["blocks"]
    assert blocks["attn"]["q"]["kernel"].bits == 4 and blocks["mlp"]["down"]["kernel"].bits == 2
    assert not isinstance(blocks["mlp"]["up"]["kernel"], Affine)


def test_evaluate_agrees_with_the_evaluation_library(command, tiny, compressed, text):
    ended = command("evaluate", compressed, "--text", text, *EVALUATION, "--json")
    assert ended.code == 0, ended.err
    before, after, tokens = load_model(tiny), load_model(compressed), windows(tiny, text)
    logits = LinenLogits(Llama(before.config))
    far = divergence(logits, before.params, after.params, tokens)
    result = ended.result
    assert result["original"]["nll"] == pytest.approx(perplexity(logits, before.params, tokens).nll, rel=1e-5)
    assert result["model"]["nll"] == pytest.approx(perplexity(logits, after.params, tokens).nll, rel=1e-5)
    assert result["model"]["kl"] == pytest.approx(far.kl, rel=1e-4)
    assert result["model"]["agreement"] == pytest.approx(far.agreement)
    # One token is one byte here.
    assert result["model"]["bits_per_byte"] == pytest.approx(result["model"]["nll"] / np.log(2))
    assert result["bits_per_weight"] == read_summary(compressed).bits_per_weight
    assert result["disk_bytes"] == sum(file.stat().st_size for file in compressed.iterdir())


def test_evaluate_prints_a_table_with_or_without_the_original(command, compressed, text):
    beside = command("evaluate", compressed, "--text", text, *EVALUATION)
    assert "tiny, compressed" in beside.out and "True bits per weight" in beside.out
    alone = command("evaluate", compressed, "--text", text, *EVALUATION, "--against", "none", "--json").result
    assert alone["original"] is None and alone["model"]["kl"] is None


def test_evaluate_answers_questions(command, tiny, compressed, tmp_path, text):
    choices, words = tmp_path / "choices.jsonl", tmp_path / "words.jsonl"
    choices.write_text(json.dumps({"query": "Two?", "choices": ["a", "bb"], "gold": 1}) + "\n")
    words.write_text("".join(json.dumps({"context": "The end", "continuation": "is"}) + "\n" for _ in range(3)))
    tasks = ("--tasks", choices, "--tasks", words, "--limit", 2)
    result = command("evaluate", compressed, "--text", text, *EVALUATION, *tasks, "--json").result
    first, second = result["model"]["tasks"]
    assert (first["task"], first["questions"], second["questions"]) == ("choices", 1, 2)
    assert first["accuracy"] in (0, 1) and second["accuracy_norm"] is None
    assert len(result["original"]["tasks"]) == 2


def test_generate_streams_what_the_library_generates(command, compressed):
    words = ("generate", compressed, "Hello", "--max-new-tokens", 6)
    result = command(*words, "--json").result
    model = load_model(compressed)
    ids = np.asarray(model.tokenizer.encode("Hello").ids)
    want = generate(model.config, model.params, ids[None], max_new_tokens=6)[0, len(ids) :]
    assert result["text"] == model.tokenizer.decode(list(map(int, want)))
    assert result["tokens"] == 6 and result["prompt_tokens"] == 5
    plain = command(*words)
    assert plain.out == result["text"] + "\n" and "6 tokens" in plain.err


def test_generate_draws_by_seed_and_reads_the_chat_template(command, compressed):
    words = ("generate", compressed, "Hi", "--max-new-tokens", 6, "--temperature", 50, "--json")
    texts = [command(*words, "--seed", seed).result["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert command(*words, "--chat").result["prompt_tokens"] == len("<user> Hi\n")


def test_report_measures_and_writes_one_page(command, compressed, text, tmp_path):
    page = tmp_path / "page.html"
    words = ("report", compressed, "--out", page, "--text", text, *EVALUATION, "--max-new-tokens", 8, "--prompt", "Hi.")
    result = command(*words, "--json").result
    written = page.read_text(encoding="utf-8")
    assert [f"{quality['bits_per_byte']:.3f}" in written for quality in result["qualities"]] == [True, True]
    assert len(result["samples"]) == 2 and list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
def test_export_keeps_every_weight(command, compressed, tmp_path, layout):
    out = tmp_path / "out"
    result = command("export", compressed, "--format", layout, "--out", out, "--json").result
    assert result["disk_bytes"] == sum(file.stat().st_size for file in out.iterdir())
    want, got = (load_model(folder).params["blocks"]["attn"]["q"]["kernel"] for folder in (compressed, out))
    np.testing.assert_array_equal(dense(got), dense(want))


def test_export_writes_one_gguf_file(command, compressed, make_model, tmp_path):
    model, folder, out = tmp_path / "model", tmp_path / "folder", tmp_path / "model.gguf"
    make_model(model)
    tokens = json.loads((model / "tokenizer.json").read_text())
    # GGUF has no empty list of merges, so a token makes room for one.
    replaced = tokens["model"]["vocab"].pop("ł")
    tokens["model"] |= {"vocab": tokens["model"]["vocab"] | {"He": replaced}, "merges": [["H", "e"]]}
    (model / "tokenizer.json").write_text(json.dumps(tokens))
    rounding = ("--method", "rtn", "--bits", 3, "--group", 32)
    assert command("compress", model, *rounding, "--out", folder).code == 0
    result = command("export", folder, "--format", "gguf", "--out", out, "--json").result
    assert result["disk_bytes"] == out.stat().st_size and sorted(tmp_path.iterdir()) == [folder, model, out]
    first, second = load_model(folder), load_model(out)
    want = np.asarray(dense(first.params["blocks"]["attn"]["q"]["kernel"]))
    np.testing.assert_array_equal(second.params["blocks"]["attn"]["q"]["kernel"], want)
    assert first.tokenizer.encode("Hello").ids == second.tokenizer.encode("Hello").ids
    ended = command("export", folder, "--format", "gguf", "--out", out)
    assert ended.code == 2 and "overwrite is False" in ended.err
    ended = command("export", compressed, "--format", "gguf", "--out", tmp_path / "other.gguf")
    assert ended.code == 2 and "the tokenizer has no merges" in ended.err and not (tmp_path / "other.gguf").exists()


def test_methods_lists_the_catalogue(command):
    ended = command("methods", "--json")
    assert len(ended.result["methods"]) == 61 and ended.result["cli"][0] == "gptq"
    shown = command("methods").out
    assert "GPTQ" in shown and "2210.17323" in shown


def test_claims_say_why_they_cannot_run(command, tmp_path, monkeypatch):
    monkeypatch.setattr("compressjax.cli.claims.ROOT", tmp_path)
    ended = command("claims", "gptq")
    assert ended.code == 2 and "source checkout" in ended.err


@pytest.mark.parametrize("code", [0, 1])
def test_claims_run_the_benchmarks_of_a_checkout(command, tmp_path, monkeypatch, code):
    package = tmp_path / "benchmarks" / "claims"
    package.mkdir(parents=True)
    # Without these it is a namespace package, and loses to the real benchmarks of an editable install.
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import json, sys\nprint('running')\nprint(json.dumps({'method': sys.argv[1], 'holds': True}))\n"
        f"sys.exit({code})\n"
    )
    monkeypatch.setattr("compressjax.cli.claims.ROOT", tmp_path)
    ended = command("claims", "gptq", "--json")
    assert ended.code == code
    assert ended.result["claims"] == [{"method": "gptq", "holds": True}]
