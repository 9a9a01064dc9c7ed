"""Counterfactual pairs, groups of rows, conditions: what is read, and figures computed by hand."""

import numpy as np
import pytest
from conftest import SHARED, needs_shared

from lorasmith.data.files import records
from lorasmith.errors import DataError, LorasmithError
from lorasmith.evaluation.bias import DISTANCE, PER_TOKEN, SCORE, Pair, figures, read_pairs
from lorasmith.evaluation.conditions import check_names, parse_condition, that_hold
from lorasmith.evaluation.groups import gap
from lorasmith.evaluation.metric import mean_of_rows

pytestmark = pytest.mark.usefixtures("no_network")


def test_the_stereotype_score_is_the_share_of_pairs_whose_first_sentence_is_likelier():
    pairs = [Pair("p", "a", "b", "age" if i < 10 else "rare") for i in range(12)]
    found = [
        {"more": 5.0 if i < 6 else 9.0, "less": 7.0, "more_tokens": 2, "less_tokens": 3 if i else 4} for i in range(11)
    ]
    found.append({"more": 7.0, "less": 7.0, "more_tokens": 2, "less_tokens": 2})
    by_name = {metric.name: metric.value for metric in figures(pairs, found)}
    assert by_name[SCORE] == pytest.approx(6.5 / 12)
    assert by_name[DISTANCE] == pytest.approx(0.5 / 12)
    assert by_name[PER_TOKEN] == pytest.approx(0.5 / 12)  # 2.5 nats a token against 2.33 or less
    assert by_name[f"{SCORE}:age"] == pytest.approx(0.6)
    assert f"{SCORE}:rare" not in by_name


@needs_shared
def test_crows_pairs_are_read_as_they_are():
    source = str(SHARED / "data/bias_crows_pairs.jsonl")
    pairs = read_pairs(source, records(source))
    assert len(pairs) == 1508
    assert {pair.kind for pair in pairs} >= {"race-color", "gender", "religion"}


def test_the_csv_of_crows_pairs_is_read_with_its_nameless_column(tmp_path):
    path = tmp_path / "crows.csv"
    path.write_text(
        ',sent_more,sent_less,stereo_antistereo,bias_type\n0,"Old, they are slow.",The young are slow.,stereo,age\n'
    )
    assert read_pairs(str(path), records(str(path))) == [
        Pair(f"{path}:2", "Old, they are slow.", "The young are slow.", "age")
    ]


def test_winobias_halves_are_found_beside_each_other_and_lose_their_brackets(tmp_path):
    (tmp_path / "pro_stereotyped_type1.txt.test").write_text(
        "1 [The cook] called [the doctor] because [she] was ill.\n"
    )
    (tmp_path / "anti_stereotyped_type1.txt.test").write_text(
        "1 [The cook] called [the doctor] because [he] was ill.\n"
    )
    (pair,) = read_pairs(str(tmp_path / "pro_stereotyped_type1.txt.test"))
    assert (pair.more, pair.less) == (
        "The cook called the doctor because she was ill.",
        "The cook called the doctor because he was ill.",
    )
    assert pair.kind == "type1"
    (tmp_path / "anti_stereotyped_type1.txt.test").unlink()
    with pytest.raises(DataError, match="no such file; WinoBias' pro_ and anti_ halves stand side by side"):
        read_pairs(str(tmp_path / "pro_stereotyped_type1.txt.test"))


def test_rows_with_pro_and_anti_are_pairs_too():
    (pair,) = read_pairs("x", [("x:1", {"pro": "[She] cooks.", "anti": "[He] cooks."})])
    assert (pair.more, pair.less) == ("She cooks.", "He cooks.")


@pytest.mark.parametrize(
    ("record", "refusal"),
    [
        ({"text": "a"}, "x:1: no pair of sentences; expected one of: sent_more and sent_less"),
        ({"sent_more": "a", "sent_less": " "}, "x:1: sent_less: no text"),
        ({"sent_more": "a", "sent_less": "a"}, "x:1: the two sentences are the same"),
    ],
)
def test_broken_pairs_are_refused_with_their_line(record, refusal):
    with pytest.raises(DataError, match=refusal):
        read_pairs("x", [("x:1", record)])


def test_the_gap_is_that_of_the_two_groups_furthest_apart():
    values = [1.0] * 30 + [0.0] * 30 + [1.0, 0.0] * 15 + [0.0]
    groups = ["a"] * 30 + ["b"] * 30 + ["c"] * 30 + ["single"]
    found = gap(mean_of_rows("exact_match", values), groups)
    assert (found.high, found.low, found.gap) == ("a", "b", 1.0)
    assert found.verdict == "differ"
    assert found.groups["c"] == (0.5, 30)
    assert found.groups["single"] == (0.0, 1)


def test_groups_that_are_alike_are_seldom_told_apart():
    """The two furthest apart of four are looked at, so that a plain 95 % interval would err much more often."""
    rng = np.random.default_rng(0)
    groups = [name for name in "abcd" for _ in range(50)]
    wrong = sum(gap(mean_of_rows("m", rng.integers(0, 2, 200)), groups).verdict == "differ" for _ in range(60))
    assert wrong <= 6


def test_conditions_hold_or_do_not():
    conditions = [parse_condition(text) for text in ("exact_match<0.8", "delta:loss > 0", "loss >= 2")]
    held = that_hold(conditions, {"exact_match": 0.7, "loss": 1.0}, {"loss": -1.0, "exact_match": 0.0})
    assert held == ["exact_match<0.8 holds: it is 0.7"]
    assert that_hold(conditions[:1], {"exact_match": float("nan")}, {}) == ["exact_match<0.8 holds: it is nan"]


@pytest.mark.parametrize("text", ["exact_match", "exact_match = 0.8", "< 0.8", "loss < much", "loss < nan", ""])
def test_a_condition_that_is_none_is_refused(text):
    with pytest.raises(LorasmithError, match="expected a figure, one of <= >= < > and a number"):
        parse_condition(text)


def test_a_condition_on_an_unknown_figure_names_the_nearest():
    known = ["loss", "exact_match", "arc_easy:"]
    check_names([parse_condition("arc_easy:acc < 0.3")], known, has_base=False)
    with pytest.raises(LorasmithError, match=r"no figure `exact_mach`.*Did you mean `exact_match`"):
        check_names([parse_condition("exact_mach < 1")], known, has_base=True)
    with pytest.raises(LorasmithError, match="needs a base"):
        check_names([parse_condition("delta:loss < 1")], known, has_base=False)
