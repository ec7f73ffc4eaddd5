"""EMS on a real language model: a score of long and recent attention, and merging that does not hurt.

Paper: 2024, arXiv 2412.08521: lowest perplexity and best LongBench scores at budgets of 128 to 1024 tokens, 95 % of
needles at under 2 % of the context. Those need long contexts and large models; here are 512 tokens and 135M weights.
"""

import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.kv.needle import questions, retrieve
from benchmarks.kv.prompts import Score, score, windows
from compressjax.kvcache import EMS, H2O, SnapKV, StreamingLLM

METHOD = "ems"
CLAIM = (
    "at equal slots, eviction by the global-local score loses at most 0.65 of what H2O's accumulated attention loses "
    "on text, and no more than its global or its local half; merging with centred keys and kept attention mass is no "
    "worse than eviction alone; in retrieval EMS is ahead of H2O and StreamingLLM"
)
SETTING = (
    "SmolLM2-135M-Instruct, prompts of 512 tokens of the Python documentation kept in 64 or 128 slots per head, "
    "log-likelihood lost on the next 128, 20 windows; retrieval of a five-digit code from 512 tokens of Wikipedia"
)


_RETRIEVED = {"StreamingLLM", "H2O", "SnapKV, pool 7", "global-local", "global-local, pool 7", "EMS"}
_ASSERTED = {"H2O", "StreamingLLM", "global only", "local only", "global-local", "global-local, pool 7", "EMS"}


def _window(quick: bool) -> int:
    return 8 if quick else 16


def _variants(budget: int, window: int) -> dict:
    plain = {"budget": budget, "window": window}
    one = {**plain, "pool": 1}
    return {
        "StreamingLLM": StreamingLLM(budget=budget, sinks=4),
        "H2O": H2O(budget=budget, window=window),
        "SnapKV, pool 7": SnapKV(**plain, pool=7),
        "SnapKV, no pool": SnapKV(**one),
        "global only": EMS(**one, score="global", merge="none"),
        "local only": EMS(**one, score="local", merge="none"),
        "global-local": EMS(**one, merge="none"),
        "global-local, naive key merging": EMS(**one, center_sim=False, mass_bias=False),
        "global-local, values merged": EMS(**one, center_sim=False, mass_bias=False, merge="v"),
        "global-local, pool 7": EMS(**plain, merge="none"),
        "EMS": EMS(**plain),
        "EMS, no pool": EMS(**one),
        "EMS, keys before rotation": EMS(**plain, rope_space="pre"),
    }


def text(quick: bool) -> list[Row]:
    """Log-likelihood lost on what follows a prompt cut to few slots."""
    bed = lm.smollm2(2 if quick else None)
    count, prompt, rest = (2, 128, 32) if quick else (20, 512, 128)
    texts = windows(bed, lm.held_out("topics", count, prompt + rest), prompt)
    rows = []
    for budget in (24,) if quick else (64, 128):
        found: dict[str, Score] = {}
        for name, codec in _variants(budget, _window(quick)).items():
            if quick and name not in _ASSERTED:
                continue
            found[name] = result = score(bed, codec, texts)
            why = f"value; standard error {result.gap_error:.3f}, KL {result.divergence:.3f}"
            rows.append(printed(f"log-likelihood lost | {budget} slots | {name}", ours=result.gap, why=why))
        for better, worse, limit in (
            ("global-local", "H2O", 0.65),
            ("global-local", "global only", 1.0),
            ("global-local", "local only", 1.0),
            ("EMS", "global-local, pool 7", 1.0),
        ):
            ours, theirs = found[better], found[worse]
            apart = ours.nll - limit * theirs.nll - (1 - limit) * ours.dense_nll
            error = float(np.std(apart, ddof=1) / len(apart) ** 0.5)
            rows.append(
                asserted(
                    f"log-likelihood lost, {budget} slots, {better} at most {limit} of {worse}",
                    baseline=theirs.gap,
                    ours=ours.gap,
                    limit=limit,
                    strict=False,
                    unit="nats a token",
                    note=f"paired standard error of the margin: {error:.3f}",
                )
            )
    return rows


def retrieval(quick: bool) -> list[Row]:
    """Likelihood of a code hidden in the prompt."""
    bed = lm.smollm2(2 if quick else None)
    count, length = (2, 128) if quick else (16, 512)
    asked, rows = questions(bed, count, length), []
    exact = retrieve(bed, None, asked)
    rows.append(printed("code, nats a token | full cache", ours=exact.nll, why=f"{exact.accuracy:.2f} of digits right"))
    for budget in (24,) if quick else (64, 128):
        found = {}
        for name, codec in _variants(budget, _window(quick)).items():
            if name in _RETRIEVED - (set() if not quick else {"SnapKV, pool 7", "global-local"}):
                found[name] = result = retrieve(bed, codec, asked)
                why = f"{result.accuracy:.2f} of digits right; no method finds whole codes on this model"
                rows.append(printed(f"code, nats a token | {budget} slots | {name}", ours=result.nll, why=why))
        for better, worse in (("EMS", "global-local, pool 7"), ("EMS", "H2O"), ("H2O", "StreamingLLM")):
            rows.append(
                asserted(
                    f"code, {budget} slots, {better} under {worse}",
                    baseline=found[worse].nll,
                    ours=found[better].nll,
                    unit="nats a token",
                )
            )
    for name, value in (("LongBench points at a budget of 256", 1.28), ("needles at under 2 % of the context", 0.95)):
        rows.append(not_comparable(name, baseline=value, why="four models of 7B and more at long contexts"))
    return rows


PARTS = {
    "text": Part(run=text, about="log-likelihood after a prompt in 64 or 128 slots, 13 ways", minutes=25),
    "retrieval": Part(run=retrieval, about="a five-digit code in 512 tokens", minutes=8),
}
