"""Exact match and F1 of answers as the official SQuAD scripts have them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.errors import DataError
from lorasmith.evaluation.squad_metrics import (
    best_null_thresholds,
    normalize_answer,
    squad_metrics,
    with_null_threshold,
)

pytestmark = pytest.mark.usefixtures("no_network")

quick = settings(max_examples=100, deadline=None, database=None, derandomize=True)
NORMAL = {
    "The  Cat, sat!": "cat sat",
    "a": "",
    "The": "",
    "an": "",
    "anthem": "anthem",
    "": "",
    " \t\n": "",
    "...": "",
    "A.B.C.": "abc",
    "a-b": "ab",
    "the-end": "theend",
    "l'année": "lannée",
    "«Été»": "«été»",
    "don't": "dont",
    "3.0%": "30",
    "\uff34\uff28\uff25 cat": "\uff54\uff48\uff45 cat",  # full width letters are no article
    "theé": "theé",
    "The_End": "theend",
    "İstanbul": "i̇stanbul",
    "日本の the 首都。": "日本の 首都。",
    "a\u00a0the\u2003b": "b",
}
# (answer, right answers) -> exact match and F1 by the rules of 1.1 and of 2.0
ROWS = [
    ("the cat", ["Cat!"], (1, 1), (1, 1)),
    ("a black cat", ["the cat", "dog"], (0, 2 / 3), (0, 2 / 3)),
    ("dog", ["cat", "the dog"], (1, 1), (1, 1)),
    ("cat cat", ["cat"], (0, 2 / 3), (0, 2 / 3)),
    ("cat cat dog", ["cat cat"], (0, 0.8), (0, 0.8)),
    ("", ["cat"], (0, 0), (0, 0)),
    ("", ["the"], (1, 0), (1, 1)),
    ("the", ["a"], (1, 0), (1, 1)),
    ("cat", ["the"], (0, 0), (0, 0)),
    ("", ["the", "cat"], (1, 0), (0, 0)),
    ("...", ["cat", "!"], (1, 0), (0, 0)),
]


@pytest.mark.parametrize(("text", "normal"), NORMAL.items())
def test_answers_are_normalized_as_the_official_scripts_do(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(("answer", "some", "first", "second"), ROWS)
def test_rows_score_by_the_rules_of_either_version(answer, some, first, second):
    for version, expected in (("1.1", first), ("2.0", second)):
        found = {one.name: one.value for one in squad_metrics([answer], [some], version)}
        assert (found["exact_match"], found["f1"]) == pytest.approx(expected)


def test_questions_without_an_answer_are_right_when_left_empty():
    answers = ["", "the", "cat", "cat"]
    found = {one.name: one.value for one in squad_metrics(answers, [[], [], [], ["cat"]])}
    assert found == {
        "exact_match": 0.75,
        "f1": 0.75,
        "has_answer_exact_match": 1,
        "has_answer_f1": 1,
        "no_answer_exact_match": pytest.approx(2 / 3),
        "no_answer_f1": pytest.approx(2 / 3),
    }
    assert [one.name for one in squad_metrics(["x"], [[]])][2:] == ["no_answer_exact_match", "no_answer_f1"]
    assert [one.name for one in squad_metrics(["x"], [["x"]])] == ["exact_match", "f1"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"^row 2 has no right answer\. Score it by version 2\.0\.$"):
        squad_metrics(["x", "x"], [["x"], []], "1.1")
    with pytest.raises(DataError, match=r"^answers: 1 answers and 2 references\. Give as many of each\.$"):
        squad_metrics(["x"], [["x"], []])
    with pytest.raises(DataError, match=r"^row 1: its references are one text; expected a list of right answers\.$"):
        squad_metrics(["x"], ["x"])


TEXTS = st.lists(st.sampled_from(["the", "a", "cat", "Dog", "dog.", "é", "!", ""]), max_size=4).map(" ".join)
QUESTIONS = st.lists(
    st.tuples(TEXTS, st.lists(TEXTS, max_size=2), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])), min_size=1, max_size=8
)


PLAIN = st.sampled_from(["", "cat", "dog", "owl dog"])


@quick
@given(st.lists(st.tuples(PLAIN, st.lists(PLAIN.filter(bool), max_size=2)), min_size=1, max_size=8))
def test_no_threshold_is_better_than_the_best(rows):
    answers, references = [list(side) for side in zip(*rows, strict=True)]
    scores = [0.1 + i / 10 for i in range(len(rows))]
    for name, (best, threshold) in best_null_thresholds(answers, references, scores).items():

        def figure(at, name=name):
            kept = with_null_threshold(answers, scores, at)
            return next(one.value for one in squad_metrics(kept, references, "2.0") if one.name == name)

        assert best == pytest.approx(figure(threshold))
        assert best == pytest.approx(max(figure(at) for at in [0.0, *scores]))


def test_the_search_begins_with_no_answer_at_all_and_takes_the_first_best():
    answers, references = ["cat", "dog", "owl"], [["cat"], [], ["hen"]]
    assert best_null_thresholds(answers, references, [0.2, 0.5, 0.9]) == {
        "exact_match": (pytest.approx(2 / 3), 0.2),
        "f1": (pytest.approx(2 / 3), 0.2),
    }
    assert best_null_thresholds(["x", "y"], [[], []], [0.2, 0.5])["f1"] == (1.0, 0.0)
    assert with_null_threshold(answers, [0.2, 0.5, 0.9], 0.5) == ["cat", "dog", ""]


@quick
@given(QUESTIONS)
def test_figures_of_a_resample_are_those_of_the_rows_drawn(rows):
    answers, references, _ = [list(side) for side in zip(*rows, strict=True)]
    drawn = np.arange(len(rows)) // 2
    alone = {
        one.name: one.value for one in squad_metrics([answers[i] for i in drawn], [references[i] for i in drawn], "2.0")
    }
    for one in squad_metrics(answers, references, "2.0"):
        if one.name in alone:
            assert float(one.of_sums(one.rows[drawn].sum(axis=0))) == pytest.approx(alone[one.name])
