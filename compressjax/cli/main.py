"""Entry point: finds the command, reads its flags, runs it, and turns every end into an exit code."""

import dataclasses
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Union

import tyro

from compressjax._version import __version__
from compressjax.cli import arguments, exits
from compressjax.cli.screen import Screen


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
      arguments: its flags.
      module: what holds ``run(args, screen)``; imported only when the command runs.
    """

    arguments: type[arguments.Shared]
    module: str


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "quickstart": Command(arguments.Quickstart, "compressjax.cli.quickstart"),
        "compress": Command(arguments.Compress, "compressjax.cli.compress"),
        "evaluate": Command(arguments.Evaluate, "compressjax.cli.evaluate"),
        "generate": Command(arguments.Generate, "compressjax.cli.generate"),
        "report": Command(arguments.Report, "compressjax.cli.report"),
        "export": Command(arguments.Export, "compressjax.cli.export"),
        "fit": Command(arguments.Fit, "compressjax.cli.fit"),
        "methods": Command(arguments.Methods, "compressjax.cli.methods_table"),
        "claims": Command(arguments.Claims, "compressjax.cli.claims"),
    }
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      args: words after the program's name; None for those of the process.

    Returns:
      0, or 2 for a mistake in the command or its files, 1 for a failure, 130 for Ctrl-C. What went wrong is one
      message on stderr.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] == ["--version"]:
        print(f"compressjax {__version__}")
        return 0
    screen = Screen(json="--json" in words)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: screen.notice(f"warning: {message}")
            name, parsed = _parse(words)
            importlib.import_module(COMMANDS[name].module).run(parsed, Screen(json=parsed.json))
        sys.stdout.flush()
        return 0
    except SystemExit as ended:  # tyro has printed help, or what is wrong with the flags
        return ended.code if isinstance(ended.code, int) else exits.USER_MISTAKE
    except BrokenPipeError:
        # Whoever read us is gone; the interpreter would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILURE
    except BaseException as error:
        if "--debug" in words:
            traceback.print_exc()
        _tell(error, words)
        return exits.exit_code(error)


def _parse(words: Sequence[str]) -> tuple[str, Any]:
    if words and words[0] in COMMANDS:
        name, rest = words[0], words[1:]
        flags = arguments.compress_arguments(rest) if name == "compress" else COMMANDS[name].arguments
        return name, tyro.cli(flags, prog=f"compressjax {name}", args=rest)
    # No command, a wrong one, or --help: the union of all exists only to say so.
    every: Any = tuple(
        Annotated[command.arguments, tyro.conf.subcommand(name=name, prefix_name=False)]
        for name, command in COMMANDS.items()
    )
    description = "Compress neural networks: calibrate, quantise, evaluate, report."
    union: Any = Union[every]  # noqa: UP007, the operator takes no tuple
    tyro.cli(union, prog="compressjax", description=description, args=words)
    raise SystemExit(exits.USER_MISTAKE)


def _tell(error: BaseException, words: Sequence[str]) -> None:
    if isinstance(error, KeyboardInterrupt):
        resumes = words[:1] in (["compress"], ["quickstart"])
        after = "the same command goes on where it was" if resumes else "nothing half-written is left"
        print(f"\ncompressjax: interrupted; {after}", file=sys.stderr)
        return
    hint = "" if exits.exit_code(error) == exits.USER_MISTAKE or "--debug" in words else " (--debug shows where)"
    print(f"compressjax: error: {exits.message(error)}{hint}", file=sys.stderr)
