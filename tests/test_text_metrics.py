"""Figures of written answers are those of sacrebleu and rouge-score, and the plain ones do what they say."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lorasmith.errors import DataError
from lorasmith.evaluation.scores import RowLoss
from lorasmith.evaluation.text_metrics import (
    ROUGE,
    bleu,
    chrf,
    exact_match,
    json_equal,
    json_valid,
    loss_and_perplexity,
    number_in,
    numeric_match,
    regular_expression,
    rouge,
)

pytestmark = pytest.mark.usefixtures("no_network")

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)
words = st.lists(
    st.sampled_from(["the", "cat", "Cats", "sat.", "on", "a", "mat", "日本", "über", "7", "\n", "»x«"]), max_size=9
)
sentences = words.map(" ".join)
pairs = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=6)


def streams(references):
    """As sacrebleu takes them."""
    most = max(map(len, references))
    return [[some[i] if i < len(some) else None for some in references] for i in range(most)]


@quick
@given(pairs, st.sampled_from(["13a", "intl", "char", "zh", "none"]))
def test_bleu_is_exactly_that_of_sacrebleu(rows, tokenizer):
    answers, references = [list(side) for side in zip(*rows, strict=True)]
    found = bleu(answers, references, tokenizer)[0]
    assert found.value == sacrebleu.corpus_bleu(answers, streams(references), tokenize=tokenizer, force=True).score


@quick
@given(pairs, st.sampled_from([0, 2]))
def test_chrf_is_exactly_that_of_sacrebleu(rows, order):
    answers, references = [list(side) for side in zip(*rows, strict=True)]
    found = chrf(answers, references, order)[0]
    assert found.value == sacrebleu.corpus_chrf(answers, streams(references), word_order=order).score


@quick
@given(pairs, st.booleans())
def test_rouge_is_the_mean_of_that_of_rouge_score(rows, stemmer):
    answers, references = [list(side) for side in zip(*rows, strict=True)]
    scorer = RougeScorer(list(ROUGE), use_stemmer=stemmer)
    found = {one.name: one.value for one in rouge(answers, references, stemmer=stemmer)}
    assert list(found) == list(ROUGE)
    for kind in ROUGE:
        scores = [
            max(scorer.score(one, a)[kind].fmeasure for one in some)
            for a, some in zip(answers, references, strict=True)
        ]
        assert found[kind] == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_figures_of_any_sums_are_those_of_the_rows_drawn():
    answers, references = (
        ["the cat sat on a mat", "a dog ran off", "no"],
        ["the cat sat on the mat", "the dog ran", "yes"],
    )
    for made, theirs in ((bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)):
        one = made(answers, references)[0]
        drawn = [0, 0, 1]
        expected = theirs([answers[i] for i in drawn], [[references[i] for i in drawn]]).score
        both = one.of_sums(np.stack([one.rows.sum(axis=0), one.rows[drawn].sum(axis=0)]))
        assert both.tolist() == [one.value, expected]


def test_a_tokenizer_that_would_be_downloaded_is_refused():
    with pytest.raises(DataError, match=r"^bleu: tokenizer `flores200`; expected one without a download: 13a, intl,"):
        bleu(["a"], ["a"], "flores200")


def test_exact_match_forgives_white_space_at_the_ends_and_takes_any_reference():
    found = exact_match([" a b\n", "a  b", "A b", ""], ["a b", "a b", ["a", "A b "], " "])
    assert found[0].rows[:, 0].tolist() == [1, 0, 1, 1]
    assert (found[0].name, found[0].value) == ("exact_match", 0.75)


NUMBERS = {
    "It costs $1,250.00.": "1250",
    "So 3 + 4 = 7": "7",
    "7.": "7",
    "about .5 of it": "0.5",
    "a loss of -12%": "-12",
    "minus \u22125": "-5",
    "-$3.50 in total": "-3.5",
    "from 10-5": "5",
    "(3)-2": "2",
    "1,2": "2",
    "12,345,678 people": "12345678",
    "1234,567": "567",
    "1.5e3 metres": "1500",
    "x2": "2",
    "#### 42\nNext question: 7": "42",
    "#### none, 5": "5",
    "5 apples ####": "5",
    "3.0": "3",
    "٣": "3",
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_the_number_of_an_answer_is_its_last_or_the_one_behind_the_mark(text, number):
    assert number_in(text) == number_in(number)
    assert str(number_in(number)) == number


def test_fractions_are_left_as_they_are():
    assert number_in("so 3/4 of it") == "3/4"
    assert number_in("-3/4") == "-3/4"
    found = numeric_match(["3/4", "0.75", "4", "6/8", "on 1/2/2024"], ["3/4", "3/4", "3/4", "3/4", "1/2/2024"])
    assert found[0].rows[:, 0].tolist() == [1, 0, 0, 0, 1]


def test_numbers_match_by_value_and_no_number_matches_nothing():
    answers = ["The answer is 1,000 dollars", "3.0", "none", "", "72", "it is 70, no, 72", "50%"]
    wanted = ["5 x 200 = 1000\n#### 1000", "3", "none", "3", "#### 72\nthen 5", ["70", "72.0"], "50"]
    assert numeric_match(answers, wanted)[0].rows[:, 0].tolist() == [1, 1, 0, 0, 1, 1, 1]


@quick
@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_a_number_is_read_however_it_is_written(number, zeros):
    decimals = "." + "0" * zeros if zeros else ""
    for text in (f"{number}", f"{number:,}", f"= {number}{decimals}", f"it is {number:,}{decimals}."):
        assert number_in(text) == number


def test_json_is_judged_by_the_letter_and_compared_by_value():
    valid = ['{"a": 1}', " [1, 2]\n", "1e3", '"x"', "null", "9" * 5000]
    broken = ["", "{'a': 1}", '{"a": 1,}', "NaN", "[Infinity]", "```json\n{}\n```", "{} {}", "[" * 100_000, '{"a"']
    assert json_valid(valid)[0].value == 1
    assert json_valid(broken)[0].value == 0
    same = [('{"a": 1, "b": [1.0, true]}', '{"b": [1, true], "a": 1.00}'), ("null", " null")]
    other = [("[1, 2]", "[2, 1]"), ("1", "true"), ("0", "false"), ("{}", "[]"), ("x", "x"), ('"1"', "1"), ("[1]", "[1, 1]"),
             ("9007199254740993", "9007199254740992")]  # fmt: skip
    assert json_equal(*zip(*same, strict=True))[0].value == 1
    assert json_equal(*zip(*other, strict=True))[0].value == 0


def test_a_regular_expression_is_searched_and_refused_where_it_is_broken_or_takes_forever():
    assert regular_expression(["order 12", "order", "12"], r"order \d+")[0].value == pytest.approx(1 / 3)
    with pytest.raises(
        DataError, match=r"^regular expression `\(`: missing \), unterminated subpattern at position 0. Mend"
    ):
        regular_expression(["x"], "(")
    with pytest.raises(DataError, match="takes more than 2 s on 1 answers"):
        regular_expression(["a" * 40 + "!"], "(a+)+$")


def test_the_loss_is_a_mean_over_tokens_and_perplexity_its_exponential():
    loss, perplexity = loss_and_perplexity([RowLoss(10.0, 5), RowLoss(2.0, 1)])
    assert (loss.value, loss.lower_is_better) == (2.0, True)
    assert (perplexity.value, perplexity.lower_is_better) == (pytest.approx(math.e**2), True)
    assert math.isfinite(loss_and_perplexity([RowLoss(1e9, 1)])[1].value)


@pytest.mark.parametrize("made", [exact_match, numeric_match, json_equal, rouge, bleu, chrf])
def test_lists_that_do_not_fit_are_refused(made):
    with pytest.raises(DataError, match=r"2 answers and 1 references\. Give as many of each\."):
        made(["a", "b"], ["a"])
    with pytest.raises(DataError, match=r"no rows\. Give at least one\."):
        made([], [])
    with pytest.raises(DataError, match=r"row 2 has no reference\. Give it one or more\."):
        made(["a", "b"], ["a", []])
