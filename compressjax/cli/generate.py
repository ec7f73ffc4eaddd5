"""``compressjax generate``: a model writes."""

import time
from collections.abc import Iterator

import jax
import numpy as np

from compressjax.checkpoint import load_model
from compressjax.cli.arguments import Generate
from compressjax.cli.prompts import pieces, prompt_ids
from compressjax.cli.screen import Screen
from compressjax.models import Sampling, stream


def run(args: Generate, screen: Screen) -> None:
    """Prints the continuation of ``args.prompt`` as it is drawn."""
    sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    with screen.waiting(f"Reading {args.model}"):
        model = load_model(args.model)
    prompt = prompt_ids(model, args.prompt, chat=args.chat)
    drawn = stream(
        model.config,
        model.params,
        np.asarray(prompt, np.int32),
        max_new_tokens=args.max_new_tokens,
        sampling=sampling,
        key=jax.random.key(args.seed),
        eos_id=model.eos_ids or None,
    )
    clock, text = _Clock(drawn), ""
    for piece in pieces(model, clock):
        text += piece
        screen.write(piece)
    screen.write("\n")
    rate = clock.rate()
    screen.notice(f"{clock.count} tokens" + ("" if rate is None else f", {rate:.1f} tokens/s"))
    screen.finish(
        {
            "command": "generate",
            "prompt": args.prompt,
            "prompt_tokens": len(prompt),
            "text": text,
            "tokens": clock.count,
            "tokens_per_second": rate,
        }
    )


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
