"""MiniCache where its premise holds, and where it does not.

Paper: Liu et al., 2024, arXiv 2405.14366: adjacent layers in the deep half have like caches, so merging pairs along the
great circle is near-lossless and gives 5.02x with 4 bits. SmolLM2's layers are not alike, so the claim is tested on a
model made from it whose layers are: inner blocks applied twice, their residual branches halved.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.kv.prompts import score, windows
from compressjax.kvcache import MiniCache, layer_similarity, plan_pairs

METHOD = "minicache"
CLAIM = (
    "where adjacent layers are alike, merging all pairs along the great circle loses at most 0.01 nats a token, no "
    "more than averaging and at most 0.8 of keeping the larger vector (KL), and 4-bit directions cost little more; "
    "where they are not, the plan finds no pair"
)
SETTING = (
    "SmolLM2-135M-Instruct, and a model of 56 layers made from it: blocks 2 to 27 applied twice with halved residual "
    "branches; prompts of 512 tokens of the Python documentation, 128 tokens scored, 8 windows"
)


def doubled(bed: lm.TestBed, first: int, last: int) -> lm.TestBed:
    """Blocks ``first .. last`` twice in a row, what each adds to the residual stream halved."""
    twice = [layer for layer in range(first, last + 1) for _ in (0, 1)]
    order = [*range(first), *twice, *range(last + 1, bed.cfg.num_layers)]
    inner = np.array([first <= layer <= last for layer in order])
    blocks = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[np.array(order)]), bed.params["blocks"])
    share = jnp.asarray(np.where(inner, 0.5, 1.0), jnp.float32)[:, None, None]
    for part, name in (("attn", "o"), ("mlp", "down")):
        blocks[part] = {**blocks[part], name: {"kernel": blocks[part][name]["kernel"] * share}}
    cfg = dataclasses.replace(bed.cfg, num_layers=len(order))
    return lm.TestBed(cfg, {**bed.params, "blocks": blocks})


def _setting(quick: bool):
    bed = lm.smollm2(4 if quick else None)
    count, prompt, rest = (2, 128, 32) if quick else (8, 512, 128)
    return bed, lm.held_out("topics", count, prompt + rest), prompt


def _similar(texts) -> np.ndarray:
    return np.mean([np.asarray(layer_similarity(t.plain["k"], t.plain["v"])) for t in texts], axis=0)


def premise(quick: bool) -> list[Row]:
    """Cosines of adjacent layers, and the merge forced on layers that are not alike."""
    bed, tokens, prompt = _setting(quick)
    texts = windows(bed, tokens, prompt)
    found = _similar(texts)
    pairs = plan_pairs(jnp.asarray(found), start=0)
    rows = [
        asserted("pairs planned on a model whose layers are not alike", baseline=0.0, ours=len(pairs), strict=False),
    ]
    for at, name in enumerate(("keys", "values")):
        most = float(found[:, at].max())
        rows.append(printed(f"largest cosine of adjacent {name}", ours=most, why="the premise asks for 0.5 and more"))
    layers = bed.cfg.num_layers
    for start in (layers - 2,) if quick else (26, 20, 14):
        for merge in ("slerp", "average", "max_norm"):
            result = score(bed, MiniCache(start=start, merge=merge, bits=None), texts)
            rows.append(
                printed(
                    f"log-likelihood lost, unlike layers from {start} | {merge}",
                    ours=result.gap,
                    why="the method cannot work here; averages shrink an orthogonal mix, which is safer",
                )
            )
    return rows


def alike(quick: bool) -> list[Row]:
    """All pairs of a model whose layers are alike, merged in three ways."""
    base, tokens, prompt = _setting(quick)
    first, last = (1, 2) if quick else (2, 27)
    bed = doubled(base, first, last)
    texts = windows(bed, tokens, prompt)
    lower = tuple(range(first, first + 2 * (last + 1 - first), 2))
    found = _similar(texts)[np.array(lower)]
    planned = plan_pairs(jnp.asarray(_similar(texts)), start=first)
    rows = [
        asserted(
            "pairs that the plan leaves out where layers are alike",
            baseline=0.0,
            ours=len(set(lower) - set(planned)),
            strict=False,
        ),
        printed("least cosine of a pair's keys", ours=float(found[:, 0].min()), why="value"),
        printed("least cosine of a pair's values", ours=float(found[:, 1].min()), why="value"),
    ]
    codec = MiniCache(pairs=lower, bits=None)
    made = {
        "slerp": codec,
        "slerp, t = 0.6": dataclasses.replace(codec, t=0.6),
        "slerp, gamma = 0.2": dataclasses.replace(codec, gamma=0.2),
        "average": dataclasses.replace(codec, merge="average"),
        "max_norm": dataclasses.replace(codec, merge="max_norm"),
        "slerp in 4 bits": dataclasses.replace(codec, bits=4),
        "4 bits without merging": dataclasses.replace(codec, bits=4, pairs=()),
    }
    got = {name: score(bed, cfg, texts) for name, cfg in made.items()}
    for name, result in got.items():
        why = f"value; {result.share:.3f} of 16-bit bytes, {result.gap:.4f} nats a token lost"
        rows.append(printed(f"KL, all pairs | {name}", ours=result.divergence, why=why, unit="nats a token"))
    rows.append(
        asserted("log-likelihood lost, all pairs, at most 0.01", baseline=0.01, ours=got["slerp"].gap, strict=False)
    )
    for name, limit in (("average", 1.0), ("max_norm", 0.8)):
        rows.append(
            asserted(
                f"KL, all pairs, slerp at most {limit} of {name}",
                baseline=got[name].divergence,
                ours=got["slerp"].divergence,
                limit=limit,
                strict=False,
            )
        )
    both, apart = got["slerp in 4 bits"], got["slerp"]
    rows.append(
        printed(
            "log-likelihood lost, 4-bit directions against exact ones",
            ours=both.gap,
            baseline=apart.gap,
            why="both are near zero, where a ratio says little",
        )
    )
    rows.append(
        asserted(
            "bytes, pairs in 4 bits under 4 bits alone",
            baseline=got["4 bits without merging"].share,
            ours=both.share,
            unit="share of 16-bit bytes",
            note="magnitudes, retained rows, sinks and the ring of 128 tokens counted",
        )
    )
    rows.append(
        not_comparable(
            "compression with 4 bits on LLaMA-2-7B",
            baseline=5.02,
            unit="x",
            why="counts neither magnitudes nor retained rows",
        )
    )
    return rows


PARTS = {
    "premise": Part(run=premise, about="cosines of adjacent layers, and merging where they are not alike", minutes=5),
    "alike": Part(run=alike, about="all pairs of a model whose layers are alike", minutes=9),
}
