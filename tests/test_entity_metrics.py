"""Entities and their figures are those of seqeval, for tags of any kind and order."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.errors import DataError
from lorasmith.evaluation.entity_metrics import entities, entity_metrics

pytestmark = pytest.mark.usefixtures("no_network")

quick = settings(max_examples=150, deadline=None, database=None, derandomize=True)
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-a-b", "B", "I"]
ODD = [*TAGS, "E-PER", "S-LOC", "B-", "X-PER", ".", "I-é", "Otter"]
STRICT = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-a-b", "B", "I", "B-"]
TABLE = {
    "": [],
    "O O": [],
    "B-PER I-PER O B-LOC": [("PER", 0, 1), ("LOC", 3, 3)],
    "I-PER I-PER": [("PER", 0, 1)],
    "O I-PER I-LOC": [("PER", 1, 1), ("LOC", 2, 2)],
    "B-PER B-PER I-PER": [("PER", 0, 0), ("PER", 1, 2)],
    "B-PER I-LOC": [("PER", 0, 0), ("LOC", 1, 1)],
    "B I O I": [("_", 0, 1), ("_", 3, 3)],
    "B-a-b I-a-b": [("a-b", 0, 1)],
}
IN_STRICT = {"I-PER I-PER": [], "O I-PER I-LOC": [], "B-PER I-LOC": [("PER", 0, 0)], "B-PER I-LOC I-PER": [("PER", 0, 0)],
             "B I O I": [("_", 0, 1)], "B-PER I-PER": [("PER", 0, 1)]}  # fmt: skip


@pytest.mark.parametrize(("tags", "found"), TABLE.items())
def test_entities_begin_and_end_as_conlleval_has_it(tags, found):
    assert entities(tags.split()) == found


@pytest.mark.parametrize(("tags", "found"), IN_STRICT.items())
def test_in_strict_mode_only_b_begins_an_entity(tags, found):
    assert entities(tags.split(), strict=True) == found


@quick
@given(st.lists(st.sampled_from(ODD), max_size=12))
def test_entities_are_those_of_seqeval(tags):
    get_entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert entities(tags) == get_entities(tags)


@quick
@given(st.lists(st.sampled_from(STRICT), max_size=12))
def test_strict_entities_are_those_of_seqevals_iob2(tags):
    scheme = pytest.importorskip("seqeval.scheme")
    theirs = scheme.Tokens(tags, scheme.IOB2).entities
    assert entities(tags, strict=True) == [(one.tag, one.start, one.end - 1) for one in theirs]


def rows(tags, rows_most=5):
    """Pairs of gold and predicted tags of the same length."""
    pair = st.integers(0, 6).flatmap(
        lambda size: st.tuples(*[st.lists(st.sampled_from(tags), min_size=size, max_size=size)] * 2)
    )
    return st.lists(pair, min_size=1, max_size=rows_most)


@settings(quick, max_examples=80)
@given(rows(["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B"]), st.booleans())
def test_figures_are_those_of_seqeval(pairs, strict):
    theirs = pytest.importorskip("seqeval.metrics").precision_score.__globals__
    score = theirs["precision_recall_fscore_support_v1" if strict else "precision_recall_fscore_support"]
    gold, predicted = [list(side) for side in zip(*pairs, strict=True)]
    found = {one.name: one.value for one in entity_metrics(gold, predicted, strict=strict)}
    words = {"zero_division": 0}
    if strict:
        words["scheme"] = pytest.importorskip("seqeval.scheme").IOB2
    kinds = sorted({entity[0] for side in (gold, predicted) for tags in side for entity in entities(tags, strict)})
    for kind in ("micro", "macro", "weighted"):
        # seqeval's mean of nothing is not a number.
        expected = score(gold, predicted, average=kind, **words) if kinds or kind != "macro" else (0, 0, 0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert found[f"{name}_{kind}"] == pytest.approx(value, abs=1e-12)
    each = score(gold, predicted, average=None, **words)
    for i, kind in enumerate(kinds):
        for at, name in enumerate(("precision", "recall", "f1")):
            assert found[f"{name}_of_{kind if kind != '_' else i}"] == pytest.approx(each[at][i], abs=1e-12)


def test_types_that_no_row_has_leave_macro_as_it_is_and_the_columns_alike():
    gold, predicted = [["B-PER", "O"], ["O", "B-LOC"]], [["B-PER", "O"], ["B-LOC", "O"]]
    alone, more = entity_metrics(gold, predicted), entity_metrics(gold, predicted, types=["ORG", "LOC", "PER"])
    both = [{one.name: one.value for one in found} for found in (alone, more)]
    assert both[0].items() <= both[1].items()
    assert both[1]["f1_of_ORG"] == 0
    assert both[1]["f1_macro"] == 0.5
    assert more[0].rows.shape == (2, 9)


def test_tags_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"^entities: row 2 has 1 gold tags and 2 predicted ones\.$"):
        entity_metrics([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(DataError, match=r"^entities: 1 gold and 0 predicted\. Give as many of each\.$"):
        entity_metrics([["O"]], [])
    with pytest.raises(DataError, match=r"^tag 2: ``; expected O, B-type or I-type\.$"):
        entities(["O", ""])
    with pytest.raises(DataError, match=r"^tag 1: `S-PER`; expected"):
        entities(["S-PER"], strict=True)
