"""GEAR on a real language model: what low-rank fit and outliers bring over the same codes alone.

Paper: Kang et al., 2024, arXiv 2403.05527: near-lossless at 4 bits; at 2 bits close to the exact cache where plain
rounding drops. Its throughput and memory figures are those of GPU kernels.
"""

import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.kv.prompts import score, windows
from compressjax.kvcache import GEAR, KIVI

METHOD = "gear"
CLAIM = (
    "at equal bits of its codes, GEAR's 2-bit cache keeps at most 0.45 (per-channel base) and 0.75 (KIVI base) of the "
    "divergence that rounding alone costs, fit and outliers each help, and both together help most; at equal total "
    "bits it does not win here, and the rows say so"
)
SETTING = (
    "SmolLM2-135M-Instruct; prompts of 512 tokens of the Python documentation compressed with every token rounded "
    "(no sinks), KL and log-likelihood over the next 128; cache of a plain run as reference; total bits count codes, "
    "scales, factors and outliers"
)


def _setting(quick: bool):
    bed = lm.smollm2(2 if quick else None)
    count, prompt, rest = (2, 128, 32) if quick else (8, 512, 128)
    return bed, windows(bed, lm.held_out("topics", count, prompt + rest), prompt)


def _bits(result, codec, prompt: int, bed) -> float:
    """Bits per entry of the frozen tokens: the ring and counters are the same for all and left out."""
    cfg = bed.cfg
    ring = 2 * cfg.num_layers * cfg.num_kv_heads * codec.chunk * cfg.head_dim * 2
    entries = 2 * cfg.num_layers * cfg.num_kv_heads * prompt * cfg.head_dim
    return 8 * (result.allocated - ring) / entries


def _gear(bits: int, base: str, rank: int, sparsity: float, group: int = 64) -> GEAR:
    return GEAR(bits=bits, base=base, group=group, rank=rank, sparsity=sparsity, sinks=0)


def ablation(quick: bool) -> list[Row]:
    """Codes alone, with either part, and with both, over both bases."""
    bed, texts = _setting(quick)
    prompt, rows = texts[0].plain["k"].shape[2], []
    parts = {"codes": (0, 0.0), "codes + fit": (4, 0.0), "codes + outliers": (0, 0.02), "GEAR": (4, 0.02)}
    found = {}
    for base, limit in (("kcvt", 0.45), ("kivi", 0.75)):
        for name, (rank, sparsity) in parts.items():
            codec = _gear(2, base, rank, sparsity)
            result = score(bed, codec, texts)
            found[base, name] = (result, _bits(result, codec, prompt, bed))
        plain, ours = found[base, "codes"], found[base, "GEAR"]
        note = "at equal bits of codes; the total, with all that GEAR adds, is in the row"
        rows.append(
            asserted(
                f"KL after a 2-bit prompt, GEAR over {base} at most {limit} of {base}",
                baseline=plain[0].divergence,
                ours=ours[0].divergence,
                limit=limit,
                strict=False,
                bits=ours[1],
                baseline_bits=plain[1],
                equal_bits=False,
                unit="nats a token",
                note=note,
            )
        )
        for name in ("codes + fit", "codes + outliers"):
            alone = found[base, name]
            for better, worse, title in ((alone, plain, f"{name} under codes"), (ours, alone, f"GEAR under {name}")):
                rows.append(
                    asserted(
                        f"KL after a 2-bit prompt, {title} ({base})",
                        baseline=worse[0].divergence,
                        ours=better[0].divergence,
                        bits=better[1],
                        baseline_bits=worse[1],
                        equal_bits=False,
                        unit="nats a token",
                        note=note,
                    )
                )
        for name, (result, bits) in ((name, found[base, name]) for name in parts):
            rows.append(
                printed(
                    f"log-likelihood lost, 2 bits | {base} | {name}",
                    ours=result.gap,
                    baseline=plain[0].gap,
                    why=f"value; standard error {result.gap_error:.3f} over windows",
                    bits=bits,
                    unit="nats a token",
                )
            )
    return rows


def four_bits(quick: bool) -> list[Row]:
    """Near-lossless at 4 bits."""
    bed, texts = _setting(quick)
    prompt, rows = texts[0].plain["k"].shape[2], []
    for base in ("kcvt", "kivi"):
        plain, ours = (_gear(4, base, *part) for part in ((0, 0.0), (4, 0.02)))
        results = [(score(bed, codec, texts), codec) for codec in (plain, ours)]
        (worse, _), (better, codec) = results
        rows.append(
            asserted(
                f"KL after a 4-bit prompt, GEAR over {base} under {base}",
                baseline=worse.divergence,
                ours=better.divergence,
                bits=_bits(better, codec, prompt, bed),
                baseline_bits=_bits(worse, plain, prompt, bed),
                equal_bits=False,
                unit="nats a token",
                note="at equal bits of codes",
            )
        )
        why = f"value; standard error {better.gap_error:.4f} over windows"
        rows.append(printed(f"log-likelihood lost, 4 bits | GEAR over {base}", ours=better.gap, why=why))
    return rows


def total_bits(quick: bool) -> list[Row]:
    """The same at equal total bits, where the overhead of a short prompt and a narrow head counts."""
    bed, texts = _setting(quick)
    prompt, rows = texts[0].plain["k"].shape[2], []
    best = None
    options = {
        "KIVI, 2 bits, groups of 32": KIVI(bits=2, group=32, residual=64, sinks=0),
        "GEAR, 2 bits, rank 2, no outliers": _gear(2, "kivi", 2, 0.0),
        "GEAR, 2 bits, rank 2, 1 %": _gear(2, "kivi", 2, 0.011),
        "KIVI, 3 bits, groups of 64": KIVI(bits=3, group=64, residual=64, sinks=0),
        "GEAR, 2 bits, rank 4, 2 %": _gear(2, "kivi", 4, 0.02),
    }
    for name, codec in options.items():
        result = score(bed, codec, texts)
        best = result.divergence if name.startswith("KIVI, 3") else best
        rows.append(
            printed(
                f"KL by total bits | {name}",
                ours=result.divergence,
                baseline=best,
                why="not asserted: with heads of 64 and 512 tokens the fit costs over a bit an entry, and plain 3-bit "
                "codes do better for less",
                bits=_bits(result, codec, prompt, bed),
                unit="nats a token",
            )
        )
    why = "GPU kernels with other memory and batch; there is no GPU here"
    rows.append(not_comparable("throughput against a 16-bit cache", baseline=2.38, unit="x", why=why))
    rows.append(not_comparable("peak memory against a 16-bit cache", baseline=2.29, unit="x", why=why))
    return rows


def drift(quick: bool) -> list[Row]:
    """KL by position over a long continuation: does the error grow with distance from the prompt?"""
    bed = lm.smollm2(2 if quick else None)
    count, prompt, rest = (2, 128, 32) if quick else (4, 512, 200)
    texts = windows(bed, lm.held_out("wikipedia:test", count, prompt + rest), prompt)
    slopes, rows = {}, []
    for name, codec in (("KIVI", KIVI(bits=2, group=64, residual=64, sinks=0)), ("GEAR", _gear(2, "kivi", 4, 0.02))):
        kl = score(bed, codec, texts).by_position
        half = len(kl) // 2
        slopes[name] = float(np.mean(kl[half:]) / np.mean(kl[:half]))
        rows.append(printed(f"KL, second half over first | {name}", ours=slopes[name], why="growth with distance"))
    rows.append(
        asserted(
            "KL, second half over first, GEAR at most 1.1 of KIVI",
            baseline=slopes["KIVI"],
            ours=slopes["GEAR"],
            limit=1.1,
            strict=False,
        )
    )
    return rows


PARTS = {
    "ablation": Part(run=ablation, about="codes, fit and outliers at 2 bits, over both bases", minutes=4),
    "four_bits": Part(run=four_bits, about="near-lossless at 4 bits", minutes=2),
    "total_bits": Part(run=total_bits, about="the same at equal total bits", minutes=3),
    "drift": Part(run=drift, about="KL by position over 200 tokens", minutes=2),
}
