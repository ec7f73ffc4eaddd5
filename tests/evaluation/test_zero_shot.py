"""Zero-shot scoring with oracle engines: perfect, wrong, uniform, impossible, and one that loves short answers."""

import math

import pytest

from compressjax.evaluation.loglik import Likelihood
from compressjax.evaluation.paired import mcnemar
from compressjax.evaluation.tasks import LastWord, MultipleChoice
from compressjax.evaluation.zero_shot import last_word, multiple_choice

ITEMS = tuple(
    MultipleChoice((f"question {i}\nAnswer:",) * n, tuple(f"choice {j}" for j in range(n)), (7 * i) % n)
    for i, n in enumerate([2, 3, 4, 2, 5, 4, 2, 3])
)
RIGHT = {(item.contexts[0], " " + item.choices[item.gold]) for item in ITEMS}


class Oracle:
    """Scores a request with a function of it, and remembers what it was asked."""

    def __init__(self, score, greedy=lambda request: False):
        self.score, self.greedy, self.asked = score, greedy, []

    def loglik(self, requests):
        self.asked += requests
        return [
            Likelihood(self.score(request), 1, len(request.continuation.encode()), self.greedy(request))
            for request in requests
        ]


def test_perfect():
    result = multiple_choice(Oracle(lambda request: 0.0 if tuple(request) in RIGHT else -50.0), ITEMS)
    assert (result.accuracy, result.accuracy_norm, result.standard_error) == (1.0, 1.0, 0.0)
    assert result.gold_probability == pytest.approx(1)
    assert all(row.correct and row.correct_norm for row in result.rows)


def test_always_wrong():
    result = multiple_choice(Oracle(lambda request: -50.0 if tuple(request) in RIGHT else 0.0), ITEMS)
    assert (result.accuracy, result.accuracy_norm) == (0.0, 0.0)
    assert result.gold_probability == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("value", [-3.0, -math.inf])
def test_uniform_takes_the_first_and_gives_chance(value):
    result = multiple_choice(Oracle(lambda request: value), ITEMS)
    assert all(row.choice == row.choice_norm == 0 for row in result.rows)
    assert result.accuracy == sum(item.gold == 0 for item in ITEMS) / len(ITEMS)
    chance = sum(1 / len(item.choices) for item in ITEMS) / len(ITEMS)
    assert result.chance == pytest.approx(chance)
    assert result.gold_probability == pytest.approx(chance)


def test_length_is_divided_out():
    """Each character costs one nat, so the plain score takes the short answer and the normalised one the cheap."""
    item = MultipleChoice(("q",) * 2, ("ab", "cheap letters"), 1)
    cost = {" ab": -2.0, " cheap letters": -6.5}
    row = multiple_choice(Oracle(lambda request: cost[request.continuation]), [item]).rows[0]
    assert (row.choice, row.choice_norm) == (0, 1)
    assert row.logprobs == (-2.0, -6.5)
    assert row.gold_probability == pytest.approx(1 / (1 + math.exp(4.5)))


def test_length_is_counted_in_characters_not_bytes():
    item = MultipleChoice(("q",) * 2, ("ééé", "abcd"), 0)
    cost = {" ééé": -3.1, " abcd": -4.0}
    # Per character 1.03 against 1.00; per byte it would be 0.52.
    assert multiple_choice(Oracle(lambda request: cost[request.continuation]), [item]).rows[0].choice_norm == 1


def test_half_right_has_the_binomial_error():
    items = [MultipleChoice(("q",) * 2, ("a", "b"), i % 2) for i in range(60)]
    result = multiple_choice(Oracle(lambda request: -1.0), items)
    assert (result.accuracy, result.standard_error) == (0.5, pytest.approx(math.sqrt(0.25 / 60)))


def test_a_schema_puts_each_option_before_the_ending():
    oracle = Oracle(lambda request: -float(len(request.context)))
    item = MultipleChoice(("long option", "short"), ("won.", "won."), 1)
    assert multiple_choice(oracle, [item]).accuracy == 1
    assert oracle.asked == [("long option", " won."), ("short", " won.")]


def test_rows_pair_with_another_models():
    perfect = multiple_choice(Oracle(lambda request: 0.0 if tuple(request) in RIGHT else -50.0), ITEMS)
    first = multiple_choice(Oracle(lambda request: 0.0), ITEMS)
    compared = mcnemar([row.correct for row in perfect.rows], [row.correct for row in first.rows])
    assert (compared.only_base, compared.only_other) == (sum(item.gold != 0 for item in ITEMS), 0)


def test_last_word():
    items = [LastWord("to be or not to", "be"), LastWord("the cat sat on the", "mat")]
    oracle = Oracle(
        lambda request: -1.0 if request.continuation == " be" else -4.0, lambda request: request.continuation == " be"
    )
    result = last_word(oracle, items)
    assert oracle.asked[0] == ("to be or not to", " be")
    assert (result.accuracy, result.word_nll) == (0.5, 2.5)
    assert result.standard_error == pytest.approx(math.sqrt(0.125))
    assert [row.correct for row in result.rows] == [True, False]


def test_nothing_to_answer_is_refused():
    with pytest.raises(ValueError, match="at least one question"):
        multiple_choice(Oracle(lambda request: 0.0), [])
    with pytest.raises(ValueError, match="at least one passage"):
        last_word(Oracle(lambda request: 0.0), [])
