"""``compressjax compress --budget``: which level every matrix gets, so that the whole model has a given size."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.filesize import decimal

from compressjax.allocation import BestOf, EvoPress, Generation, ModelLevels, TextFitness, allocate, assemble_dense
from compressjax.allocation.model_levels import model_levels
from compressjax.calibration import Fisher, calibrate
from compressjax.calibration.joint import HessianAndMoments
from compressjax.checkpoint import ModelSource, load_params
from compressjax.checkpoint.native_shard import write_whole
from compressjax.cli.arguments import Compress
from compressjax.cli.methods import described, parse_level, parse_search
from compressjax.cli.screen import Screen
from compressjax.cli.sizes import bytes_of
from compressjax.driver import statistic_for
from compressjax.evaluation.logits import LinenLogits
from compressjax.models import Llama
from compressjax.ops import nbits
from compressjax.quantization.outside_blocks import round_outside
from compressjax.select import weights

_BITS = (2, 3, 4, 8)


def choices_for(
    args: Compress, levels: tuple, source: ModelSource, tokens: np.ndarray, screen: Screen
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of every matrix under ``args.budget``, and what to record about the search.

    Args:
      args: the command.
      levels: what a matrix may get, from :func:`levels_from`.
      source: the model.
      tokens: calibration tokens ``[N, T]``, on which some searches also judge choices.
      screen: output.

    Raises:
      ValueError: a budget that no choice of levels fits, or levels that do not rise in bits.
    """
    budget, search = bytes_of(args.budget or "", "budget"), parse_search(args.search)
    params = round_outside(load_params(source), args.embedding_bits)
    found = _levels(params, levels, source, tokens, screen)
    fixed = nbits(params) - sum(nbits(weights(params)[path]) for path in found.leaves)
    smallest = fixed + int(found.db.cost[:, 0].sum())
    if smallest > 8 * budget:
        raise ValueError(
            f"budget {args.budget} is too small: at the lowest levels the model takes {decimal(-(-smallest // 8))}, of "
            f"which {decimal(fixed // 8)} are embedding, head and norms (--embedding-bits {args.embedding_bits})"
        )
    state, generations = _searched(args, search, found, 8 * budget - fixed, source, tokens, screen)
    counts = {described(level): int((state == at).sum()) for at, level in enumerate(levels)}
    screen.show("Levels: " + ", ".join(f"{count} of {level}" for level, count in counts.items() if count))
    about = {"budget": budget, "search": repr(search), "generations": generations, "levels": counts}
    return found.choices(state), about


def record_path(out: Path) -> Path:
    """Where an unfinished search keeps its best choice."""
    return out.with_name(out.name + ".search.json")


def levels_from(args: Compress, cfg: Any) -> tuple[Any, ...]:
    """What a matrix may get, from the smallest: as ``--level`` says, or the method at 2, 3, 4 and 8 bits.

    Raises:
      ValueError: the method has no bits and there is no ``--level``; or one cannot be read.
    """
    if args.level:
        return tuple(map(parse_level, args.level))
    if not hasattr(cfg, "bits"):
        raise ValueError(f"{type(cfg).__name__} has no bits to choose from: name its levels with --level")
    return tuple(dataclasses.replace(cfg, bits=bits) for bits in _BITS)


def _levels(params: Any, levels: tuple, source: ModelSource, tokens: np.ndarray, screen: Screen) -> ModelLevels:
    statistic = _statistic(levels)
    model, stats = Llama(source.config), None

    def hidden(tree: Any, ids: Any) -> Any:
        return model.apply({"params": tree}, ids, method="hidden")[0]

    if statistic is not None:
        batches = [jnp.asarray(row[None]) for row in tokens]
        with screen.bar("Calibrating", "window") as progress:
            stats = calibrate(
                hidden, params, batches, statistic, paths="blocks/**", progress=lambda done: progress(done, len(tokens))
            )
    with screen.bar("Compressing every matrix at every level", "level") as progress:
        return model_levels(params, levels, stats=stats, paths="blocks/**", progress=progress)


def _statistic(levels: tuple) -> Any:
    """One statistic that serves all levels, or None when none reads data."""
    wanted = {statistic_for(cfg) for cfg in levels if cfg is not None} - {None}
    if any(isinstance(statistic, Fisher) for statistic in wanted):
        raise ValueError("a level that reads gradients of the loss cannot be chosen under a budget (take fisher=act)")
    return wanted.pop() if len(wanted) == 1 else HessianAndMoments(samples=64) if wanted else None


def _searched(
    args: Compress,
    search: Any,
    found: ModelLevels,
    budget: int,
    source: ModelSource,
    tokens: np.ndarray,
    screen: Screen,
) -> tuple[np.ndarray, int]:
    """The choice, and after how many generations; an evolution goes on where one with its settings was interrupted."""
    if not isinstance(search, EvoPress | BestOf):
        return allocate(found.db, budget, search).state, 0
    fitness = TextFitness(
        logits_fn=LinenLogits(Llama(source.config)),
        params=found.params,
        assemble=assemble_dense,
        data=(found.params, found.dense),
        tokens=tokens,
    )
    if isinstance(search, BestOf):
        judged = dataclasses.replace(search, tokens=min(search.tokens, tokens.size))
        return allocate(found.db, budget, judged, fitness).state, 0
    record = _Record(record_path(args.out), _settings(args, source, budget, tokens))
    start, done = record.read()
    state = start
    with screen.bar("Searching", "generation") as bar:

        def after(generation: Generation) -> None:
            nonlocal state, done
            state, done = generation.state, done + 1
            record.write(state, done)
            bar(done, search.generations)

        left = search.generations - done
        if left > 0:
            try:
                allocate(
                    found.db,
                    budget,
                    dataclasses.replace(search, generations=left, seed=search.seed + done),
                    fitness,
                    start=start,
                    progress=after,
                )
            except KeyboardInterrupt:
                if state is None:
                    raise
                screen.notice(f"Search ended after {done} generations; the best so far is written.")
    if state is None:
        raise ValueError(f"--search {args.search}: no choice but the first fits the budget; take --search dp")
    return state, done


def _settings(args: Compress, source: ModelSource, budget: int, tokens: np.ndarray) -> str:
    method = repr(getattr(args, "config"))  # noqa: B009, a field of the class that the method's flags were added to
    text = json.dumps([source.fingerprint(), budget, args.search, args.level, method])
    return hashlib.sha256(text.encode() + tokens.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Record:
    """Where a search stands, in a file beside the result."""

    path: Path
    settings: str

    def read(self) -> tuple[np.ndarray | None, int]:
        """The state and the generations of an earlier search with the same settings, or None and 0."""
        if not self.path.is_file():
            return None, 0
        found = json.loads(self.path.read_text())
        if found.get("settings") != self.settings:
            return None, 0
        return np.asarray(found["state"], np.int64), int(found["generations"])

    def write(self, state: np.ndarray, generations: int) -> None:
        fields = {"settings": self.settings, "state": state.tolist(), "generations": generations}
        write_whole(self.path, json.dumps(fields).encode())
