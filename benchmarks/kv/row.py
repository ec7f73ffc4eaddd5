"""``python -m benchmarks.kv.row NAME [--quick]``: measures one family in a process of its own, prints it as JSON."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import language_model as lm
from benchmarks.kv.methods import SHARES, Family, named
from benchmarks.kv.needle import Question, questions, retrieve
from benchmarks.kv.prompts import Window, allocated_bytes, score, score_generator, windows
from compressjax.kvcache import (
    DenseKV,
    Generator,
    MatryoshkaKV,
    TransMLA,
    collect_kv_stats,
    gqa_to_mla,
    pack_projections,
)
from compressjax.kvcache.matryoshka_training import kv_moments, pca_init


def measure(family: Family, quick: bool) -> dict:
    """All shares of one family."""
    bed = lm.smollm2(2 if quick else None)
    count, prompt, rest, asked, shares = (1, 256, 32, 1, (0.5,)) if quick else (6, 1024, 200, 8, SHARES)
    texts = windows(bed, lm.held_out("wikitext2:test", count, prompt + rest), prompt)
    codes = questions(bed, asked, prompt)
    found = Tried(bed, texts, codes, quick)
    points = [point for share in shares if (point := found.at(family, share)) is not None]
    exact = retrieve(bed, None, codes)
    return {
        "name": family.name,
        "baseline": family.baseline,
        "points": points,
        "dense_nll": float(np.mean(score(bed, DenseKV(residual=32), texts).dense_nll)),
        "dense_needle_nll": exact.nll,
        "dense_needle_accuracy": exact.accuracy,
        "prompt": prompt,
    }


class Tried:
    """Texts, questions and what codecs have to be given, shared by the shares of a family."""

    def __init__(self, bed: lm.TestBed, texts: Sequence[Window], codes: Sequence[Question], quick: bool):
        self.bed, self.texts, self.codes, self.quick = bed, texts, codes, quick
        self.dense = texts[0].plain["k"].size * 2 * 2
        self._bases = self._stats = None
        self._sized: dict[str, list[tuple[int, Any]]] = {}
        train = lm.calibration("wikitext2:valid", 2 if quick else 12, 128 if quick else 512)
        self.train = [train[at : at + 2] for at in range(0, len(train), 2)]

    def at(self, family: Family, share: float) -> dict | None:
        """The family's largest config within a share, measured; None when none fits."""
        prompt = self.texts[0].prompt.shape[1]
        if family.name not in self._sized:
            self._sized[family.name] = [(self.bytes(cfg), cfg) for cfg in family.configs(prompt)]
        fitting = [(size, cfg) for size, cfg in self._sized[family.name] if size <= share * self.dense]
        if not fitting:
            return None
        _, cfg = max(fitting, key=lambda pair: pair[0])
        generator = self.generator(cfg)
        latent = generator.form is not None
        if latent:
            result, needle = score_generator(generator, self.texts, self.dense), None
        else:
            result = score(self.bed, cfg, self.texts, fixed=generator.fixed)
            needle = retrieve(self.bed, cfg, self.codes, fixed=generator.fixed)
        quarter = max(1, len(result.by_position) // 4)
        return {
            "share": share,
            "config": repr(cfg),
            "bytes": result.allocated / self.dense,
            "kl": result.divergence,
            "nll_lost": result.gap,
            "nll_lost_error": result.gap_error,
            "kl_first_quarter": float(result.by_position[:quarter].mean()),
            "kl_last_quarter": float(result.by_position[-quarter:].mean()),
            "needle_nll": None if needle is None else needle.nll,
            "needle_accuracy": None if needle is None else needle.accuracy,
            "speed": self.speed(generator),
        }

    def bytes(self, cfg: Any) -> int:
        """Bytes of a config, every array counted."""
        if isinstance(cfg, TransMLA | tuple):
            mla, codec = cfg if isinstance(cfg, tuple) else (cfg, None)
            plain = self.texts[0].plain["k"]
            layers, tokens = plain.shape[0], plain.shape[2]
            numbers = layers * (mla.kv_lora_rank + mla.qk_rope_dim)
            # The ring of 32 tokens, or the frozen tokens with their scales and the ring.
            bits = 16 * tokens if codec is None else (codec.bits + 32 / codec.group) * tokens
            return int(numbers * (bits + 16 * 36) / 8)
        fixed = pack_projections(self.bases, cfg) if isinstance(cfg, MatryoshkaKV) else ()
        return allocated_bytes(self.bed, cfg, self.texts[0], fixed=fixed)

    @property
    def bases(self) -> Any:
        """Principal axes of keys and values."""
        if self._bases is None:
            self._bases = pca_init(kv_moments(self.bed.cfg, self.bed.params, self.train))
        return self._bases

    def generator(self, cfg: Any) -> Generator:
        """A generator with this cache, converted and given its bases."""
        mla, codec = cfg if isinstance(cfg, tuple) else (cfg, None) if isinstance(cfg, TransMLA) else (None, cfg)
        params, form, fixed = self.bed.params, None, ()
        if mla is not None:
            if self._stats is None:
                self._stats = collect_kv_stats(self.bed.cfg, params, self.train)
            form, params = gqa_to_mla(self.bed.cfg, params, self._stats, mla, self.train)
            codec = codec or DenseKV(residual=32)
        if isinstance(codec, MatryoshkaKV):
            fixed = pack_projections(self.bases, codec)
        return Generator(self.bed.cfg, params, codec, form=form, fixed=fixed, cache_dtype="bfloat16")

    def speed(self, generator: Generator) -> float:
        """Tokens per second as a ratio to the plain cache, in turns on one machine."""
        plain = Generator(self.bed.cfg, self.bed.params, DenseKV(residual=32), cache_dtype="bfloat16")
        steps, prompt = (4, self.texts[0].prompt[0]) if self.quick else (24, self.texts[0].prompt[0])
        seconds: list[list[float]] = [[], []]
        for _ in range(3):
            for own, each in zip(seconds, (generator, plain), strict=True):
                stream = each.stream(prompt, max_new_tokens=steps + 2)
                next(stream), next(stream)
                start = time.perf_counter()
                for _ in stream:
                    pass
                own.append((time.perf_counter() - start) / steps)
        return float(np.median(seconds[1]) / np.median(seconds[0]))


def main() -> int:
    """One row on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv.row")
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    start = time.process_time()
    row = measure(named(args.name), args.quick)
    jax.clear_caches()
    print(json.dumps({**row, "cpu_seconds": round(time.process_time() - start, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
