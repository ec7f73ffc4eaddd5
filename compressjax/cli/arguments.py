"""The commands' flags, one dataclass each; tyro turns fields into flags and these docstrings into help."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from compressjax.cli.methods import METHODS, config_class

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
DEFAULT_METHOD = "gptq"
PROMPT = "Explain in two sentences why the sky is blue."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """What every command takes.

    Attributes:
      json: print one JSON object on stdout; progress goes to stderr.
      debug: show the traceback of an error.
    """

    json: Switch = False
    debug: Switch = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated(Shared):
    """On what text a model is evaluated.

    Attributes:
      text: wikipedia:test, topics, tfds:NAME/SPLIT, or a text or .jsonl file.
      windows: number of windows, from the start of the text.
      length: tokens in a window.
    """

    text: str = "wikipedia:test"
    windows: int = 8
    length: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quickstart(Shared):
    """Compress a real language model to 3 bits, compare it with the original and with plain rounding, write a report.

    Attributes:
      model: a name ("smollm2"), a Hugging Face folder or a GGUF file.
      out: folder for the compressed model and report.html.
      bits: bits per code.
      group: weights that share a scale.
      calibration: text to calibrate on.
      text: text to evaluate on.
      calibration_windows: calibration windows, spread over the text.
      windows: evaluation windows.
      length: tokens in a window.
      prompt: what the models are asked.
      max_new_tokens: length of their answers.
    """

    model: str = "smollm2"
    out: Path = Path("quickstart-output")
    bits: int = 3
    group: int = 64
    calibration: str = "wikipedia:train"
    text: str = "wikipedia:test"
    calibration_windows: int = 32
    windows: int = 8
    length: int = 512
    prompt: str = PROMPT
    max_new_tokens: int = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress(Shared):
    """Compress a checkpoint, block by block from disk to disk; an interrupted run resumes with the same command.

    Attributes:
      model: a name ("smollm2"), a Hugging Face folder or a GGUF file.
      out: folder to write.
      method: which method; its own flags are below (see `compress --method NAME --help`).
      calibration: wikipedia:train (the default), topics, tfds:NAME/SPLIT, or a text or .jsonl file.
      windows: calibration windows, spread evenly over the text.
      length: tokens in a window.
      batch: windows run at once.
      rules: pattern=method:field=value,... for some weights, pattern=none to leave them; may be repeated, first wins.
      tune: block:field=value,... trains scales, zeros and norms of every block once its weights are compressed
        (fields of BlockTuning: epochs, lr, target, ...); "none" for none.
      embedding_bits: bits of embedding and head: 2 to 8, 16 or 32.
      budget: bytes for the whole model, "45MB" or "45MiB": every matrix gets the level that the search gives it.
      level: method:field=value,... that a matrix may get under a budget, from the smallest; may be repeated; by default
        the method at 2, 3, 4 and 8 bits.
      search: best (of the next four, on the calibration text), neighbours, dp, greedy, uniform, or
        evopress:field=value,... such as evopress:generations=20; Ctrl-C ends a search and goes on with the best so far.
      overwrite: replace a finished OUT.
      restart: throw away what an interrupted run left.
    """

    model: tyro.conf.Positional[str]
    out: Path
    method: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(METHODS) + "}")] = DEFAULT_METHOD
    calibration: str | None = None
    windows: int = 32
    length: int = 512
    batch: int = 2
    rules: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    tune: str = "none"
    embedding_bits: int = 16
    budget: str | None = None
    level: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    search: str = "best"
    overwrite: Switch = False
    restart: Switch = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Evaluated):
    """Perplexity, divergence from the original, true bits per weight, size; zero-shot questions.

    Attributes:
      model: a compressed folder, or any model `compress` takes.
      against: the original; by default the one a compressed folder was made from; "none" for none.
      tasks: a .jsonl file of multiple-choice or last-word questions; may be repeated.
      limit: read this many questions of each file.
    """

    model: tyro.conf.Positional[str]
    against: str | None = None
    tasks: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Shared):
    """Continue a prompt, token by token as they come.

    Attributes:
      model: a compressed folder, or any model `compress` takes.
      prompt: the text to continue.
      chat: put the prompt into the model's chat template.
      kv: how the cache of past tokens is held: NAME or NAME:field=value,..., such as gear:bits=2, kivi, ems:budget=128,
        matryoshka-kv:rank=32; transmla:kv_lora_rank=192 converts attention, and transmla:...+round:bits=4 also rounds
        its latents; "none" for a plain cache.
      kv_text: text that matryoshka-kv and transmla take their bases from.
      max_new_tokens: stop after this many.
      temperature: 0 takes the most likely token.
      top_k: draw among the k most likely.
      top_p: draw among the most likely that make up this probability.
      seed: of the random draws.
    """

    model: tyro.conf.Positional[str]
    prompt: tyro.conf.Positional[str]
    chat: Switch = False
    kv: str = "none"
    kv_text: str = "wikipedia:train"
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Evaluated):
    """Write one self-contained HTML page about a compressed model.

    Attributes:
      model: a folder that `compress` wrote.
      out: the page.
      against: the original; by default the one the folder was made from; "none" for none.
      prompt: what the models are asked for the samples.
      max_new_tokens: length of the samples; 0 for none.
    """

    model: tyro.conf.Positional[Path]
    out: Path = Path("report.html")
    against: str | None = None
    prompt: str = PROMPT
    max_new_tokens: int = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Shared):
    """Write a compressed folder in a layout that transformers, vLLM or llama.cpp read.

    Attributes:
      model: a folder that `compress` wrote.
      out: folder to write; with gguf, a file.
      format: gptq, compressed-tensors or gguf.
      overwrite: replace an existing Hugging Face folder or GGUF file.
    """

    model: tyro.conf.Positional[Path]
    out: Path
    format: str = "gptq"
    overwrite: Switch = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(Shared):
    """Load a model at any size: decomposed once into blocks sorted by importance, then as many as fit.

    Attributes:
      model: a name ("smollm2"), a Hugging Face folder or a GGUF file.
      memory: bytes for the whole model, "60MB" or "60MiB"; with several it grows and shrinks from one to the next.
      store: folder of the decomposed model; made when it is not there yet.
      levels: blocks per matrix.
      rank: of a block's magnitudes; by default a 128th of the matrix's smaller side.
      embedding_bits: bits of embedding and head, which are there at any size: 2 to 8, 16 or 32.
      calibration: text that says how much each input matters and in which order blocks help.
      windows: calibration windows, spread evenly over the text.
      length: tokens in a window.
      sort: curvature (of the loss around the original) or levelwise (one evaluation per block, as published).
      sort_windows: windows to sort on.
      sort_length: tokens in each of them.
      text: also measure perplexity on this text.
      eval_windows: number of its windows, from the start.
      prompt: also let the model answer this at each size.
      max_new_tokens: length of the answer.
    """

    model: tyro.conf.Positional[str]
    memory: tuple[str, ...]
    store: Path = Path("bitstack-store")
    levels: int = 8
    rank: int | None = None
    embedding_bits: int = 8
    calibration: str = "wikipedia:train"
    windows: int = 16
    length: int = 512
    sort: Literal["curvature", "levelwise"] = "curvature"
    sort_windows: int = 4
    sort_length: int = 256
    text: str | None = None
    eval_windows: int = 8
    prompt: str | None = None
    max_new_tokens: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods(Shared):
    """List the methods of the catalogue."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims(Shared):
    """Run the benchmarks that check the library's claims; needs a source checkout.

    Attributes:
      names: which claims; all by default.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()


def compress_arguments(args: Sequence[str]) -> type[Compress]:
    """``Compress`` with the flags of the method that ``args`` name, as the field ``config``.

    Raises:
      ValueError: an unknown method.
    """
    config = config_class(_method_in(args))
    field = ("config", tyro.conf.OmitArgPrefixes[config], dataclasses.field(default_factory=config))
    made = dataclasses.make_dataclass("Compress", [field], bases=(Compress,), frozen=True, kw_only=True)
    made.__doc__ = Compress.__doc__
    return made


def _method_in(args: Sequence[str]) -> str:
    for place, word in enumerate(args):
        if word.startswith("--method="):
            return word.removeprefix("--method=")
        if word == "--method" and place + 1 < len(args):
            return args[place + 1]
    return DEFAULT_METHOD
