"""``compressjax report``: one HTML page about a compressed model."""

import dataclasses
from pathlib import Path

from compressjax.checkpoint import open_model
from compressjax.checkpoint.native_shard import write_whole
from compressjax.cli.arguments import Report
from compressjax.cli.originals import load_source, original_of, summary_of
from compressjax.cli.samples import draw_samples
from compressjax.cli.screen import Screen
from compressjax.cli.text import scored_bytes, token_windows, tokenizer_of
from compressjax.reporting.components import component_sizes
from compressjax.reporting.content import ReportContent
from compressjax.reporting.page import render_page
from compressjax.reporting.quality import Candidate, measure


def run(args: Report, screen: Screen) -> None:
    """Measures ``args.model`` and its original, asks both, and writes the page."""
    check_page(args.out)
    if args.max_new_tokens < 0:
        raise ValueError(f"--max-new-tokens must be >= 0, got {args.max_new_tokens}")
    source = open_model(args.model)
    summary = summary_of(args.model)
    if summary is None:
        raise ValueError(f"{args.model} was not written by compressjax compress; there is nothing to report")
    original = original_of(summary, args.against, screen)
    with screen.waiting(f"Reading {args.text}"):
        tokens = token_windows(source, args.text, args.windows, args.length, "start")
    models = [] if original is None else [(original.name, load_source(original))]
    models.append((f"{source.name}, compressed", load_source(source)))
    with screen.bar("Perplexity", "window") as progress:
        qualities = measure(
            [Candidate(name, model.config, model.params) for name, model in models],
            tokens,
            num_bytes=scored_bytes(tokenizer_of(source), tokens),
            progress=progress,
        )
    samples = draw_samples(models, args.prompt, args.max_new_tokens, screen) if args.max_new_tokens else ()
    content = ReportContent(
        summary=summary,
        components=component_sizes(source),
        qualities=qualities,
        bits=((models[-1][0], summary.bits_per_weight),),
        evaluation=f"{args.text}, {args.windows} windows of {args.length} tokens",
        prompt=args.prompt if samples else None,
        samples=samples,
    )
    write_whole(args.out, render_page(content).encode())
    screen.show(f"Written to {args.out}")
    screen.finish(
        {
            "command": "report",
            "out": str(args.out),
            "qualities": [dataclasses.asdict(quality) for quality in qualities],
            "samples": [dataclasses.asdict(sample) for sample in samples],
        }
    )


def check_page(path: Path) -> None:
    """Refuses a page that could not be written, before minutes of work.

    Raises:
      FileNotFoundError: its folder is not there.
      IsADirectoryError: it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, name a file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} to write {path.name} into")
