"""Where a command writes: tables or one JSON object on stdout, progress and notices on stderr."""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

# Tables in a file or a pipe: wide enough for a path and its figures.
_PLAIN_WIDTH = 110


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step when that is the larger number."""

    def render(self, task: Task) -> Text:
        # At the end the whole run counts; rich's own estimate leaves out the first step, which compiles.
        speed = task.completed / task.elapsed if task.finished and task.elapsed else task.speed
        unit = task.fields.get("unit", "step")
        if not speed:
            return Text(f"- {unit}s/s", style="progress.data.speed")
        text = f"{speed:.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
        return Text(text, style="progress.data.speed")


@dataclasses.dataclass(frozen=True)
class Screen:
    """Output of one command.

    Attributes:
      json: stdout carries one JSON object and nothing else.
    """

    json: bool = False

    def show(self, *renderables: RenderableType) -> None:
        """Prints for people; silent under ``--json``."""
        if not self.json:
            console = _console(sys.stdout)
            for renderable in renderables:
                console.print(renderable)

    def write(self, text: str) -> None:
        """Prints a piece of a line at once, without markup; silent under ``--json``."""
        if not self.json:
            print(text, end="", flush=True)

    def notice(self, text: str) -> None:
        """One line on stderr that is no error."""
        _console(sys.stderr).print(Text(text, style="dim"), soft_wrap=True)

    def finish(self, result: dict[str, Any]) -> None:
        """The JSON object, under ``--json`` only."""
        if self.json:
            print(json.dumps(finite(result), allow_nan=False), flush=True)

    @contextlib.contextmanager
    def bar(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar on stderr with rate and time left; yields its callback ``(done, total)``."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        with Progress(*columns, console=_console(sys.stderr)) as progress:
            task = progress.add_task(title, total=None, unit=unit)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """A spinner on stderr for work that cannot say how far it is."""
        with _console(sys.stderr).status(title):
            yield


def finite(value: Any) -> Any:
    """``value`` with null for the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _console(file: Any) -> Console:
    return Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False, markup=False)
