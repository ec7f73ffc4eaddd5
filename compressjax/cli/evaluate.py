"""``compressjax evaluate``: what a model predicts, beside its original."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from compressjax.checkpoint import ModelSource, load_params, open_model
from compressjax.cli.arguments import Evaluate
from compressjax.cli.originals import original_of, summary_of
from compressjax.cli.screen import Screen
from compressjax.cli.text import scored_bytes, token_windows, tokenizer_of
from compressjax.cli.zero_shot import TaskScore, load_tasks, score_tasks
from compressjax.ops import nbits
from compressjax.reporting.quality import Candidate, Quality, measure


def run(args: Evaluate, screen: Screen) -> None:
    """Measures ``args.model``, and its original when there is one."""
    source, summary = open_model(args.model), summary_of(args.model)
    original = original_of(summary, args.against, screen)
    if original is not None and original.config.vocab_size != source.config.vocab_size:
        raise ValueError(
            f"vocabularies differ: {original.name} has {original.config.vocab_size} tokens, "
            f"{source.name} {source.config.vocab_size}"
        )
    tasks = load_tasks(args.tasks, args.limit)
    with screen.waiting(f"Reading {args.text}"):
        tokens = token_windows(source, args.text, args.windows, args.length, "start")
    name = source.name if original is None else f"{source.name}, compressed" if summary else source.name
    models = [] if original is None else [Candidate(original.name, original.config, load_params(original))]
    models.append(Candidate(name, source.config, load_params(source)))
    with screen.bar("Perplexity", "window") as progress:
        qualities = measure(models, tokens, num_bytes=scored_bytes(tokenizer_of(source), tokens), progress=progress)
    scores = [score_tasks(model, tokenizer_of(source), source.eos_ids, tasks, screen) for model in models]
    disk = stored_bytes(source)
    bits = summary.bits_per_weight if summary is not None else None
    screen.show(quality_table(f"{args.text}, {args.windows} x {args.length} tokens", qualities, scores))
    if summary is not None:
        screen.show(f"True bits per weight: {bits:.3f} over the compressed matrices")
    screen.show(f"Size: {decimal(disk)} on disk, {decimal(nbits(models[-1].params) // 8)} in memory")
    rows = [
        {**dataclasses.asdict(quality), "tasks": [dataclasses.asdict(score) for score in task_scores]}
        for quality, task_scores in zip(qualities, scores, strict=True)
    ]
    screen.finish(
        {
            "command": "evaluate",
            "text": args.text,
            "windows": args.windows,
            "length": args.length,
            "model": rows[-1],
            "original": None if original is None else rows[0],
            "bits_per_weight": bits,
            "disk_bytes": disk,
            "memory_bytes": nbits(models[-1].params) // 8,
        }
    )


def stored_bytes(source: ModelSource) -> int:
    """Bytes of the model on disk: of its folder, or of its single file."""
    path = Path(source.path)
    return sum(f.stat().st_size for f in path.iterdir() if f.is_file()) if path.is_dir() else path.stat().st_size


def quality_table(title: str, qualities: Sequence[Quality], scores: Sequence[Sequence[TaskScore]] = ()) -> Table:
    """One row per model."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("Model")
    names = [score.task for score in scores[0]] if scores else []
    for column in ("Perplexity", "Bits per byte", "KL (nats)", "Same top token", *names):
        table.add_column(column, justify="right")
    for index, quality in enumerate(qualities):
        own = scores[index] if scores else ()
        table.add_row(
            quality.name,
            perplexity_text(quality.perplexity),
            number(quality.bits_per_byte, "{:.3f}"),
            number(quality.kl, "{:.3f}"),
            number(quality.agreement, "{:.1%}"),
            *(f"{score.accuracy:.1%}" for score in own),
        )
    return table


def perplexity_text(value: float) -> str:
    """Two decimals while they mean something."""
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}" if math.isfinite(value) else "infinite"


def number(value: Any, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else form.format(value)
