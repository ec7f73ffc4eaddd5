"""``compressjax quickstart``: a real language model at 3 bits in a few minutes."""

import dataclasses
import time
from pathlib import Path

import jax
from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table

from compressjax.checkpoint import load_model, open_model
from compressjax.checkpoint.native_shard import write_whole
from compressjax.cli.arguments import Quickstart
from compressjax.cli.compress import show_disappointing, source_name
from compressjax.cli.evaluate import number, perplexity_text
from compressjax.cli.originals import load_source
from compressjax.cli.samples import draw_samples
from compressjax.cli.screen import Screen
from compressjax.cli.text import scored_bytes, token_windows, tokenizer_of
from compressjax.freed_memory import map_large_arrays
from compressjax.ops import nbits
from compressjax.quantization import GPTQ, RTN, quantize
from compressjax.quantization.outside_blocks import round_outside
from compressjax.reporting.components import component_sizes
from compressjax.reporting.content import ReportContent, Sample
from compressjax.reporting.page import render_page
from compressjax.reporting.quality import Candidate, Quality, measure
from compressjax.streaming import CompressionSummary, compress_model
from compressjax.streaming.summary import size_of

_EMBEDDING_BITS = 16  # the default of `compress`


def run(args: Quickstart, screen: Screen) -> None:
    """Compresses, measures the original, plain rounding and GPTQ once each, and writes the report."""
    map_large_arrays()
    started = time.perf_counter()
    rounding = RTN(bits=args.bits, group=args.group)
    method = GPTQ(bits=args.bits, group=args.group, order="act", grid="hessian", asymmetric="target", alpha=0.5)
    source = open_model(args.model)
    with screen.waiting("Reading texts"):
        calibration = token_windows(source, args.calibration, args.calibration_windows, args.length, "even")
        tokens = token_windows(source, args.text, args.windows, args.length, "start")
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.out / f"{source.name}-gptq-{args.bits}bit"
    summary = _compress(source, folder, method, calibration, args, screen)
    with screen.waiting(f"Reading {source.name}"):
        original = load_source(source)
    with screen.waiting("Rounding to nearest"):
        rounded = dataclasses.replace(original, params=jax.block_until_ready(quantize(original.params, rounding)))
    models = [
        (f"{source.name}, original", original),
        (f"Rounded to nearest, {args.bits} bits", rounded),
        (f"GPTQ, {args.bits} bits", load_model(folder)),
    ]
    with screen.bar("Perplexity of three models", "window") as progress:
        qualities = measure(
            [Candidate(name, model.config, model.params) for name, model in models],
            tokens,
            num_bytes=scored_bytes(tokenizer_of(source), tokens),
            progress=progress,
        )
    samples = draw_samples(models, args.prompt, args.max_new_tokens, screen)
    plain = size_of(rounded.params)
    bits = ((models[1][0], plain.leaf_bits / plain.leaf_parameters), (models[2][0], summary.bits_per_weight))
    content = ReportContent(
        summary=summary,
        components=component_sizes(open_model(folder)),
        qualities=qualities,
        bits=bits,
        evaluation=f"{args.text}, {args.windows} windows of {args.length} tokens",
        prompt=args.prompt,
        samples=samples,
    )
    page = args.out / "report.html"
    write_whole(page, render_page(content).encode())
    seconds = time.perf_counter() - started
    # As stored: what a 16-bit checkpoint takes is what people download; the weights in memory here are 32-bit.
    sizes = [summary.dense_bytes_16bit, nbits(round_outside(rounded.params, _EMBEDDING_BITS)) // 8, summary.bytes]
    _show(qualities, dict(bits), sizes, samples, args.prompt, screen)
    show_disappointing(summary, screen)
    screen.show(f"Model: {folder}", f"Report: {page}", f"{seconds:.0f} seconds")
    screen.finish(
        {
            "command": "quickstart",
            "model": str(folder),
            "report": str(page),
            "seconds": seconds,
            "qualities": [dataclasses.asdict(quality) for quality in qualities],
            "bits_per_weight": dict(bits),
            "bytes": dict(zip((name for name, _ in models), sizes, strict=True)),
            "samples": [dataclasses.asdict(sample) for sample in samples],
            "not_better": [row.path for row in summary.not_better],
        }
    )


def _compress(source, folder: Path, method: GPTQ, tokens, args: Quickstart, screen: Screen) -> CompressionSummary:
    with screen.bar(f"GPTQ, {args.bits} bits", "block") as progress:
        return compress_model(
            source,
            folder,
            method,
            tokens,
            embedding_bits=_EMBEDDING_BITS,
            overwrite=True,
            note={
                "source": source_name(args.model),
                "calibration": args.calibration,
                "windows": args.calibration_windows,
                "length": args.length,
            },
            progress=progress,
        )


def _show(
    qualities: tuple[Quality, ...],
    bits: dict[str, float],
    sizes: list[int],
    samples: tuple[Sample, ...],
    prompt: str,
    screen: Screen,
) -> None:
    table = Table(header_style="bold")
    table.add_column("Model")
    for column in ("Bits per weight", "Size", "Perplexity", "KL (nats)", "Same top token"):
        table.add_column(column, justify="right")
    for quality, size in zip(qualities, sizes, strict=True):
        table.add_row(
            quality.name,
            f"{bits.get(quality.name, 16.0):.2f}",
            decimal(size),
            perplexity_text(quality.perplexity),
            number(quality.kl, "{:.3f}"),
            number(quality.agreement, "{:.1%}"),
        )
    screen.show(table)
    for sample in samples:
        screen.show(Panel(sample.text, title=f"{sample.name}: {prompt}", title_align="left"))
