"""Questions from files, for ``evaluate --tasks``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from compressjax.cli.screen import Screen
from compressjax.data.text_files import read_jsonl
from compressjax.evaluation.logits import LinenLogits
from compressjax.evaluation.loglik import LikelihoodEngine
from compressjax.evaluation.tasks import LastWord, MultipleChoice, read_last_words, read_multiple_choice
from compressjax.evaluation.zero_shot import last_word, multiple_choice
from compressjax.models import Llama
from compressjax.reporting.quality import Candidate


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One model on one file of questions.

    Attributes:
      task: the file's name.
      questions: how many.
      accuracy, standard_error: share of right answers.
      accuracy_norm: length-normalised; None for last-word files, which have no choices.
    """

    task: str
    questions: int
    accuracy: float
    standard_error: float
    accuracy_norm: float | None


@dataclasses.dataclass(frozen=True)
class Task:
    """A file's questions, all of one kind."""

    name: str
    items: tuple[MultipleChoice, ...] | tuple[LastWord, ...]


def load_tasks(paths: Sequence[str], limit: int | None) -> tuple[Task, ...]:
    """Reads files of questions; the first line says which kind a file holds.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a malformed line.
    """
    tasks = []
    for path in paths:
        _, row = next(iter(read_jsonl(path)))
        choices = "gold" in row
        items = read_multiple_choice(path, limit=limit) if choices else read_last_words(path, limit=limit)
        tasks.append(Task(Path(path).stem, items))
    return tuple(tasks)


def score_tasks(
    model: Candidate, tokenizer: Tokenizer, eos_ids: Sequence[int], tasks: Sequence[Task], screen: Screen
) -> tuple[TaskScore, ...]:
    """Answers every file with one model."""
    engine = LikelihoodEngine(
        logits_fn=LinenLogits(Llama(model.config)),
        params=model.params,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        context=model.config.max_positions,
        prefix_id=eos_ids[0] if eos_ids else None,
    )
    scores = []
    for task in tasks:
        with screen.waiting(f"{task.name}, {len(task.items)} questions: {model.name}"):
            scores.append(_score(engine, task))
    return tuple(scores)


def _score(engine: LikelihoodEngine, task: Task) -> TaskScore:
    if isinstance(task.items[0], MultipleChoice):
        choice = multiple_choice(engine, [item for item in task.items if isinstance(item, MultipleChoice)])
        accuracy, error, normalised = choice.accuracy, choice.standard_error, choice.accuracy_norm
    else:
        word = last_word(engine, [item for item in task.items if isinstance(item, LastWord)])
        accuracy, error, normalised = word.accuracy, word.standard_error, None
    return TaskScore(
        task=task.name,
        questions=len(task.items),
        accuracy=accuracy,
        standard_error=error,
        accuracy_norm=normalised,
    )
