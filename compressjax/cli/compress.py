"""``compressjax compress``: a checkpoint in, a smaller one out."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from compressjax.allocation import BestOf, EvoPress
from compressjax.checkpoint import ModelSource, open_model
from compressjax.checkpoint.packages import DECODERS
from compressjax.cli.arguments import Compress
from compressjax.cli.budget import choices_for, levels_from, record_path
from compressjax.cli.methods import described, parse_rules, parse_search, parse_tuning
from compressjax.cli.screen import Screen
from compressjax.cli.text import token_windows
from compressjax.driver import all_rules, statistic_for
from compressjax.freed_memory import map_large_arrays
from compressjax.leaf import is_leaf
from compressjax.quantization.outside_blocks import check_embedding_bits
from compressjax.reporting.verdicts import disappointing, is_plain, mean_errors, worst
from compressjax.select import weights
from compressjax.streaming import CompressionSummary, compress_model

DEFAULT_TEXT = "wikipedia:train"
_WORST = 5
_NAMED = 20  # people read no more names than this; --json has all


def run(args: Compress, screen: Screen) -> None:
    """Compresses ``args.model`` into ``args.out``."""
    map_large_arrays()
    cfg: Any = getattr(args, "config")  # noqa: B009, a field of the class that the method's flags were added to
    rules, tuning = parse_rules(args.rules), parse_tuning(args.tune)
    check_embedding_bits(args.embedding_bits)
    if args.budget is None and args.level:
        raise ValueError("--level says what a matrix may get under a --budget, and none is given")
    if args.budget is not None and rules:
        raise ValueError("--budget chooses for every matrix and takes no --rules")
    source = open_model(args.model)
    _refuse_compressed(source)
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists already; name another folder or give --overwrite")
    levels = () if args.budget is None else levels_from(args, cfg)
    tokens, calibration = calibration_for((cfg, *levels), rules, tuning, source, args, screen)
    choices, searched = {}, {}
    if args.budget is not None:
        choices, searched = choices_for(args, levels, source, tokens, screen)
    with screen.bar(f"Compressing {source.name}", "block") as progress:
        summary = compress_model(
            source,
            args.out,
            cfg,
            tokens,
            rules=rules or None,
            choices=choices,
            tuning=tuning,
            embedding_bits=args.embedding_bits,
            batch=args.batch,
            restart=args.restart,
            overwrite=args.overwrite,
            note={"source": source_name(args.model), **calibration, **searched},
            progress=progress,
        )
    record_path(args.out).unlink(missing_ok=True)
    chosen = all_rules(cfg, rules)
    described = "; ".join(_described(glob, method) for glob, method in chosen.items())
    show_summary(summary, f"{args.search} over levels, {args.budget}" if args.budget else described, screen)
    screen.show(f"Written to {args.out}. Next: compressjax evaluate {args.out}")
    screen.finish({"command": "compress", "out": str(args.out), **summary_json(summary)})


def source_name(model: str) -> str:
    """What ``open_model`` finds the model by from any folder."""
    return model if model in DECODERS else str(Path(model).resolve())


def calibration_for(
    cfgs: tuple, rules: dict[str, Any], tuning: Any, source: ModelSource, args: Compress, screen: Screen
) -> tuple[np.ndarray, dict[str, Any]]:
    """Calibration windows, and what to record about them; one blank token when nothing reads data."""
    methods = [method for cfg in cfgs for method in all_rules(cfg, rules).values() if method is not None]
    searched = args.budget is not None and isinstance(parse_search(args.search), EvoPress | BestOf)
    if tuning is None and not searched and all(statistic_for(method) is None for method in methods):
        if args.calibration is not None:
            screen.notice(f"--calibration {args.calibration} is not read: the method needs no data")
        return np.zeros((1, 1), np.int32), {"calibration": None}
    text = args.calibration or DEFAULT_TEXT
    with screen.waiting(f"Reading {text}"):
        tokens = token_windows(source, text, args.windows, args.length, "even")
    return tokens, {"calibration": text, "windows": args.windows, "length": args.length}


def summary_json(summary: CompressionSummary) -> dict[str, Any]:
    """The summary for machines, with the names of the matrices that are no better than rounding."""
    fields = summary.to_json()
    return {**fields, "not_better": [row.path for row in summary.not_better]}


def show_summary(summary: CompressionSummary, method: str, screen: Screen) -> None:
    """Prints size, bits, errors, and every matrix that is no better than plain rounding."""
    before, after = summary.dense_bytes_16bit, summary.bytes
    table = Table(show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("Model", summary.model)
    table.add_row("Method", method)
    table.add_row("Size", f"{decimal(before)} at 16 bits -> {decimal(after)} ({before / after:.2f}x smaller)")
    share = summary.compressed_parameters / max(summary.parameters, 1)
    table.add_row("Bits per weight", f"{summary.bits_per_weight:.3f} over the {share:.0%} of weights compressed")
    errors = mean_errors(summary.matrices)
    if errors is not None:
        table.add_row("Mean relative error", f"{errors[0]:.5f} (round to nearest {errors[1]:.5f})")
    table.add_row("Time", f"{summary.seconds:.1f} s")
    screen.show(table)
    if summary.matrices and not all(map(is_plain, summary.matrices)):
        screen.show(_worst_table(summary))
    show_disappointing(summary, screen)


def show_disappointing(summary: CompressionSummary, screen: Screen) -> None:
    """Prints the name of every matrix that is no better than plain rounding."""
    named = disappointing(summary)
    if named:
        screen.show(
            Text(f"{len(named)} of {len(summary.matrices)} matrices are no better than rounding:", style="yellow")
        )
        for row in named[:_NAMED]:
            reason = "fell back to rounding" if row.fallback else f"{row.error:.5f} against {row.rounding_error:.5f}"
            screen.show(Text(f"  {row.path}: {reason}", style="yellow"))
        if len(named) > _NAMED:
            screen.show(Text(f"  and {len(named) - _NAMED} more, all in --json", style="yellow"))


def _described(glob: str, method: Any) -> str:
    """A rule in words: "blocks/attn/*: GPTQ(bits=3)"."""
    return ("" if glob == "**" else f"{glob}: ") + described(method)


def _worst_table(summary: CompressionSummary) -> Table:
    table = Table(title="Largest errors", title_justify="left", header_style="bold")
    table.add_column("Matrix")
    for column in ("Bits", "Relative error", "Round to nearest", "Share of it"):
        table.add_column(column, justify="right")
    for row in worst(summary.matrices, _WORST):
        share = f"{row.error / row.rounding_error:.0%}" if row.rounding_error > 0 else "-"
        table.add_row(row.path, f"{row.bits:.2f}", f"{row.error:.5f}", f"{row.rounding_error:.5f}", share)
    return table


def _refuse_compressed(source: ModelSource) -> None:
    if any(is_leaf(weight) for weight in weights(source.block(0)).values()):
        raise ValueError(f"{source.path} is compressed already; compress the original")
