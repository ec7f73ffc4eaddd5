"""Zero-shot questions scored by log-likelihood: multiple choice, and the last word of a passage.

The answer is the choice with the largest log-likelihood after the question, or, length-normalised, with the largest
log-likelihood per character of the choice. Ties go to the first.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from compressjax.evaluation.loglik import Engine, Request
from compressjax.evaluation.paired import binomial_standard_error
from compressjax.evaluation.tasks import LastWord, MultipleChoice


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """One question's outcome.

    Attributes:
      gold: index of the right choice.
      choice, choice_norm: index of the model's choice, plain and length-normalised.
      logprobs: nats of each choice.
      gold_probability: softmax of the log-likelihoods at the right choice, a continuous measure beside right or wrong.
    """

    gold: int
    choice: int
    choice_norm: int
    logprobs: tuple[float, ...]
    gold_probability: float

    @property
    def correct(self) -> bool:
        """The plain choice is right."""
        return self.choice == self.gold

    @property
    def correct_norm(self) -> bool:
        """The length-normalised choice is right."""
        return self.choice_norm == self.gold


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceResult:
    """A multiple-choice task.

    Attributes:
      accuracy, accuracy_norm: shares of right answers, plain and length-normalised.
      standard_error, standard_error_norm: binomial.
      chance: expected share of right answers by guessing.
      gold_probability: mean over questions.
      rows: one per question, in order, to pair with another model's.
    """

    accuracy: float
    standard_error: float
    accuracy_norm: float
    standard_error_norm: float
    chance: float
    gold_probability: float
    rows: tuple[ChoiceRow, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastWordRow:
    """One passage's outcome: greedy decoding writes the word; its log-likelihood in nats."""

    correct: bool
    logprob: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastWordResult:
    """A last-word task.

    Attributes:
      accuracy: share of passages whose last word greedy decoding writes.
      standard_error: binomial.
      word_nll: mean negative log-likelihood of the word, nats.
      rows: one per passage, in order.
    """

    accuracy: float
    standard_error: float
    word_nll: float
    rows: tuple[LastWordRow, ...]


def multiple_choice(engine: Engine, items: Sequence[MultipleChoice]) -> ChoiceResult:
    """Answers every question.

    Args:
      engine: scores a space and the choice after the question.
      items: questions.

    Raises:
      ValueError: no questions, or the engine refuses one.
    """
    if not items:
        raise ValueError("items must hold at least one question")
    requests = [
        Request(context, " " + choice)
        for item in items
        for context, choice in zip(item.contexts, item.choices, strict=True)
    ]
    scores = iter(engine.loglik(requests))
    rows = []
    for item in items:
        logprobs = np.array([next(scores).logprob for _ in item.choices])
        lengths = np.array([len(choice) for choice in item.choices])
        rows.append(
            ChoiceRow(
                gold=item.gold,
                choice=int(np.argmax(logprobs)),
                choice_norm=int(np.argmax(logprobs / lengths)),
                logprobs=tuple(logprobs.tolist()),
                gold_probability=_softmax(logprobs)[item.gold],
            )
        )
    accuracy = float(np.mean([row.correct for row in rows]))
    accuracy_norm = float(np.mean([row.correct_norm for row in rows]))
    return ChoiceResult(
        accuracy=accuracy,
        standard_error=binomial_standard_error(accuracy, len(rows)),
        accuracy_norm=accuracy_norm,
        standard_error_norm=binomial_standard_error(accuracy_norm, len(rows)),
        chance=float(np.mean([1 / len(item.choices) for item in items])),
        gold_probability=float(np.mean([row.gold_probability for row in rows])),
        rows=tuple(rows),
    )


def last_word(engine: Engine, items: Sequence[LastWord]) -> LastWordResult:
    """Scores the last word of every passage; guessing scores zero.

    Args:
      engine: scores a space and the word after the passage.
      items: passages.

    Raises:
      ValueError: no passages, or the engine refuses one.
    """
    if not items:
        raise ValueError("items must hold at least one passage")
    scores = engine.loglik([Request(item.context, " " + item.word) for item in items])
    rows = tuple(LastWordRow(correct=score.greedy, logprob=score.logprob) for score in scores)
    accuracy = float(np.mean([row.correct for row in rows]))
    return LastWordResult(
        accuracy=accuracy,
        standard_error=binomial_standard_error(accuracy, len(rows)),
        word_nll=-math.fsum(row.logprob for row in rows) / len(rows),
        rows=rows,
    )


def _softmax(values: np.ndarray) -> list[float]:
    """Shares that add to 1; equal ones when every value is minus infinity."""
    top = values.max()
    weights = np.exp(values - top) if np.isfinite(top) else np.ones(len(values))
    return (weights / weights.sum()).tolist()
