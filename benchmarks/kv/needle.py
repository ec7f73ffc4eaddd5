"""Retrieval: a code of five digits hidden in real text, asked for at the end of the prompt.

The model is small, so the uncompressed cache's own score is always shown beside a codec's.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import language_model as lm
from benchmarks.kv.prompts import compressed, continued, read_prompt
from compressjax.checkpoint import open_model
from compressjax.kvcache import DenseKV, LlamaForm

_NEEDLE = " The secret code is {code}. Remember that the secret code is {code}. "
_QUESTION = "\n\nQuestion: What is the secret code?\nAnswer: The secret code is"


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """One prompt with its exact cache, and the tokens that answer it.

    Attributes:
      plain, queries: of the prompt but its last token.
      rest: int ``[1, T]``, that token and all of the answer but its last.
      answer: int ``[T]``.
    """

    plain: dict
    queries: np.ndarray
    rest: np.ndarray
    answer: np.ndarray


def questions(bed: lm.TestBed, count: int, length: int, seed: int = 0) -> list[Question]:
    """Prompts of ``length`` tokens of held-out text, the code at depths spread evenly."""
    tokenizer = open_model(lm.MODEL).tokenizer
    assert tokenizer is not None
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    rng, form, out = np.random.default_rng(seed), LlamaForm(bed.cfg), []
    filler = lm.held_out("wikipedia:test", count, length)
    for index, text in enumerate(filler):
        code = "".join(map(str, rng.integers(0, 10, 5)))
        needle, question, answer = encode(_NEEDLE.format(code=code)), encode(_QUESTION), encode(f" {code}")
        room = length - len(needle) - len(question)
        at = int((index + 0.5) / count * room)
        prompt = np.array([*text[:at], *needle, *text[at:room], *question], np.int32)
        plain, queries = read_prompt(form, bed.params, jnp.asarray(prompt[None, :-1]))
        out.append(
            Question(
                jax.tree.map(np.asarray, plain),
                np.asarray(queries),
                np.array([[prompt[-1], *answer[:-1]]], np.int32),
                np.array(answer),
            )
        )
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """How well codes were found.

    Attributes:
      nll: mean negative log-likelihood of a token of the answer, in nats.
      accuracy: share of its tokens that are the most likely ones.
    """

    nll: float
    accuracy: float


def retrieve(bed: lm.TestBed, codec: Any, asked: Sequence[Question], *, fixed: tuple = ()) -> Found:
    """Answers from compressed prompts; ``codec`` None keeps the plain cache."""
    form, nll, right = LlamaForm(bed.cfg), [], []
    for item in asked:
        cache = compressed(form, item.plain, item.queries, codec or DenseKV(residual=32), fixed)
        logits = continued(form, bed.params, jnp.asarray(item.rest), cache)[0]
        table = np.asarray(jax.nn.log_softmax(logits))
        nll.append(-table[np.arange(len(item.answer)), item.answer].mean())
        right.append((table.argmax(-1) == item.answer).mean())
    return Found(nll=float(np.mean(nll)), accuracy=float(np.mean(right)))
