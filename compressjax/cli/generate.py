"""``compressjax generate``: a model writes."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from compressjax.checkpoint import LoadedModel, load_model
from compressjax.cli.arguments import Generate
from compressjax.cli.methods import parse_kv
from compressjax.cli.prompts import pieces, prompt_ids
from compressjax.cli.screen import Screen
from compressjax.data.resolve import text_from
from compressjax.data.windows import windows
from compressjax.kvcache import Generator, MatryoshkaKV, Stream, TransMLA, collect_kv_stats, gqa_to_mla
from compressjax.kvcache.matryoshka import pack_projections
from compressjax.kvcache.matryoshka_training import kv_moments, pca_init
from compressjax.models import Sampling, stream


def run(args: Generate, screen: Screen) -> None:
    """Prints the continuation of ``args.prompt`` as it is drawn."""
    sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    configs = parse_kv(args.kv)
    with screen.waiting(f"Reading {args.model}"):
        model = load_model(args.model)
    prompt = prompt_ids(model, args.prompt, chat=args.chat)
    options = {
        "max_new_tokens": args.max_new_tokens,
        "sampling": sampling,
        "key": jax.random.key(args.seed),
        "eos_id": model.eos_ids or None,
    }
    tokens = np.asarray(prompt, np.int32)
    if configs:
        drawn = _generator(model, configs, args.kv_text, screen).stream(tokens, **options)
    else:
        drawn = stream(model.config, model.params, tokens, **options)
    clock, text, size = _Clock(drawn), "", None
    with _growing(screen) as show:
        for piece in pieces(model, clock):
            text += piece
            size = drawn.bytes if isinstance(drawn, Stream) else None
            show(piece, text, size)
    screen.write("\n")
    rate = clock.rate()
    screen.notice(f"{clock.count} tokens" + ("" if rate is None else f", {rate:.1f} tokens/s") + _size(size))
    screen.finish(
        {
            "command": "generate",
            "prompt": args.prompt,
            "prompt_tokens": len(prompt),
            "text": text,
            "tokens": clock.count,
            "tokens_per_second": rate,
            "kv": args.kv,
            "cache_bytes": None if size is None else size._asdict(),
        }
    )


def _generator(model: LoadedModel, configs: tuple[Any, ...], text: str, screen: Screen) -> Generator:
    """The generator for ``--kv``; bases and conversions are made from a little text."""
    cfg, params, form, fixed = model.config, model.params, None, ()
    convert = [c for c in configs if isinstance(c, TransMLA)]
    codecs = [c for c in configs if not isinstance(c, TransMLA)]
    if len(convert) > 1 or len(codecs) > 1:
        raise ValueError("--kv takes one cache, or transmla and one cache: transmla:...+round:bits=4")
    codec = codecs[0] if codecs else None
    if convert:
        with screen.waiting("Converting attention"):
            texts = _texts(model, text)
            form, params = gqa_to_mla(cfg, params, collect_kv_stats(cfg, params, texts), convert[0], texts)
    if isinstance(codec, MatryoshkaKV):
        with screen.waiting("Finding principal axes"):
            fixed = pack_projections(pca_init(kv_moments(cfg, params, _texts(model, text))), codec)
    # Sizes are shares of a plain cache in 16 bits, so that what is kept exactly takes 16 too.
    return Generator(cfg, params, codec, form=form, fixed=fixed, cache_dtype="bfloat16")


def _texts(model: LoadedModel, text: str) -> list[np.ndarray]:
    cfg = model.config
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it can read no text")
    ids = model.tokenizer.encode(text_from(text), add_special_tokens=False).ids
    length = min(256, cfg.max_positions)
    found = windows(ids, length, 8, spread="even", context=cfg.max_positions, vocab_size=cfg.vocab_size)
    return [found[at : at + 2] for at in range(0, len(found), 2)]


def _size(size: Any) -> str:
    if size is None:
        return ""
    return f", cache {size.live / 1e6:.2f} MB where 16-bit floats take {size.baseline / 1e6:.2f} MB"


@contextlib.contextmanager
def _growing(screen: Screen) -> Iterator[Callable[[str, str, Any], None]]:
    """Where the text grows: piece by piece, and on a terminal with the cache's size beneath it."""
    if screen.json or not sys.stdout.isatty():
        yield lambda piece, text, size: screen.write(piece)
        return
    console = Console(file=sys.stdout, highlight=False, markup=False)
    last = ""
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible") as live:

        def show(piece: str, text: str, size: Any) -> None:
            nonlocal last
            last = text
            below = [Text(_size(size).removeprefix(", "), style="dim")] if size is not None else []
            live.update(Group(Text(text), *below), refresh=True)

        yield show
    screen.write(last)


class _Clock:
    """Counts tokens on their way through, and times those after the first two: these two wait for compilation."""

    def __init__(self, tokens: Iterator[int]):
        self._tokens = tokens
        self.count = 0
        self._start = self._last = 0.0

    def __iter__(self) -> Iterator[int]:
        for token in self._tokens:
            self.count += 1
            self._last = time.perf_counter()
            if self.count <= 2:
                self._start = self._last
            yield token

    def rate(self) -> float | None:
        """Tokens per second, None when too few were drawn."""
        return None if self.count < 3 else (self.count - 2) / max(self._last - self._start, 1e-9)
