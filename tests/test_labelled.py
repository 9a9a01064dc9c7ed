"""Rows of texts with labels: read strictly, recognised, named, balanced."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BASE, needs_shared, write_rows

from lorasmith.data.labelled import (
    MULTI,
    REGRESSION,
    SINGLE,
    Labelled,
    Problem,
    balance,
    class_weights,
    labelled_of,
    problem_of,
    read_labelled,
)
from lorasmith.data.prepare_labelled import prepare_labelled, read_train_and_eval_labelled, tokenize_labelled
from lorasmith.errors import DataError, RecipeError
from lorasmith.recipe import Data, Model, load_recipe
from lorasmith.recipe_task import Task

GOOD = {"text": "fine", "label": "good"}


def rows(*labels: Any) -> list[Labelled]:
    return [Labelled(f"f:{n}", f"text {n}", label=label) for n, label in enumerate(labels, 1)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([], "expected an object"),
        ({"label": 1}, "field `text` is missing; found [label]"),
        ({"sentence": "a", "label": 1}, "data.columns={text: ..., label: ...}"),
        ({"text": 3, "label": 1}, "text: a number; expected text"),
        ({"text": None, "label": 1}, "text: null; expected text"),
        ({"text": " \n", "label": 1}, "text: empty"),
        ({"text": "\ud800", "label": 1}, "half of a surrogate pair"),
        ({"text": "a", "text_pair": 3, "label": 1}, "text_pair: a number; expected text"),
        ({"text": "a"}, "field `label` is missing"),
        ({"text": "a", "label": None}, "field `label` is missing"),
        ({"text": "a", "label": ""}, "label: empty"),
        ({"text": "a", "label": {"x": 1}}, "label: an object; expected a word, a number, or a list of them"),
        ({"text": "a", "labels": ["x", None]}, "labels: null; expected a word"),
        ({"text": "a", "labels": ["x", "x"]}, "labels: a label stands in it twice"),
        ({"text": "a", "label": float("nan")}, "label: a number; expected a word"),
    ],
)
def test_a_broken_row_is_told_in_one_line(row, told):
    with pytest.raises(DataError) as error:
        labelled_of(row, "rows.jsonl:7")
    assert str(error.value).startswith("rows.jsonl:7: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_row_to_be_predicted_needs_no_label_and_columns_may_have_other_names(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {"sentence": "fine", "kind": 1, "country": "de"}, {"sentence": "bad"})
    found = read_labelled(str(path), columns={"text": "sentence", "label": "kind"}, labels=False).rows
    assert [(row.text, row.label, row.group) for row in found] == [("fine", 1, {"country": "de"}), ("bad", None, {})]


@pytest.mark.parametrize(
    ("labels", "kind", "names", "targets"),
    [
        (["b", "a", "b"], SINGLE, ("a", "b"), [1, 0, 1]),
        ([10, 2, 10], SINGLE, ("2", "10"), [1, 0, 1]),
        ([True, False], SINGLE, ("false", "true"), [1, 0]),
        ([0.5, 1, 2], REGRESSION, ("value",), [0.5, 1.0, 2.0]),
        ([["b"], [], ["a", "b"]], MULTI, ("a", "b"), [[0, 1], [0, 0], [1, 1]]),
    ],
)
def test_the_labels_say_what_the_problem_is(labels, kind, names, targets):
    found = problem_of(rows(*labels), Task())
    assert (found.kind, found.labels) == (kind, names)
    assert [found.target(row.label, row.place) for row in rows(*labels)] == targets


def test_numbers_are_places_among_the_labels_that_the_recipe_names():
    found = problem_of(rows(0, 1, 1), Task(labels=["negative", "positive"]))
    assert found.labels == ("negative", "positive")
    assert [found.target(row.label, row.place) for row in rows(0, 1, 1)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "task", "told"),
    [
        (["a", "a"], {}, "all 2 rows have the label `a`, so that there is nothing to tell apart"),
        (["a", 0.5], {}, "f:1: label: `a` among numbers"),
        (["a", ["b"]], {}, "f:2: label: a list, and others are none"),
        (["a", "b"], {"labels": ["a", "c"]}, "the rows have the label `b`; task.labels are a, c"),
        ([[], []], {}, "no row has any label"),
        ([["a"], ["b"]], {"problem": SINGLE}, "f:1: label: a list; expected one label"),
    ],
)
def test_labels_that_fit_no_problem_are_told(labels, task, told):
    with pytest.raises(DataError, match=told.replace("[", r"\[")):
        problem_of(rows(*labels), Task(**task))


def test_a_label_that_was_never_trained_on_is_told_with_its_line():
    with pytest.raises(DataError, match="f:1: label `c` is none of a, b"):
        Problem(SINGLE, ("a", "b")).target("c", "f:1")
    with pytest.raises(DataError, match="f:1: label: `x`; expected a number"):
        Problem(REGRESSION, ("value",)).target("x", "f:1")


def test_class_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["a"] * 7 + ["b"] * 2 + ["c"]
    problem = problem_of(rows(*labels), Task())
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert class_weights(rows(*labels), problem, "balanced") == pytest.approx(expected)
    assert class_weights(rows(*labels), problem, {"c": 3.0}) == [1.0, 1.0, 3.0]
    assert class_weights(rows(*labels), problem, "none") is None
    with pytest.raises(DataError, match=r"task\.class_weights has `d`"):
        class_weights(rows(*labels), problem, {"d": 3.0})
    with pytest.raises(DataError, match="no row has the label `z`"):
        class_weights(rows(*labels), Problem(SINGLE, ("a", "b", "c", "z")), "balanced")


def test_balance_says_how_often_labels_stand_and_which_texts_have_several():
    twice = [Labelled("f:1", "same", label="a"), Labelled("f:2", "same", label="b"), Labelled("f:3", "x", label="b")]
    assert balance(twice, Problem(SINGLE, ("a", "b", "c"))) == [
        "labels: b 2 (66.7%), a 1 (33.3%), c 0 (0.0%)",
        "note: 1 texts stand in the rows with more than one label",
    ]


@pytest.fixture
def tokenizer():
    from lorasmith import models

    return models.load_tokenizer(Model(name=BASE))[0]


def test_a_text_is_cut_only_where_that_is_asked_for(tokenizer):
    problem = Problem(SINGLE, ("a", "b"))
    long = [Labelled("f:1", "word " * 50, label="a"), Labelled("f:2", "short", label="b")]
    cut, number = tokenize_labelled(tokenizer, long, problem, 8, True)
    assert len(cut[0].input_ids) == 8
    assert number == 1
    whole, number = tokenize_labelled(tokenizer, long, problem, 8, False)
    assert len(whole[0].input_ids) > 8
    assert number == 0
    with pytest.raises(DataError, match=r"f:1: 1 of 2 rows are over trainer.max_length \(8 tokens"):
        prepare_labelled(Data(train="f"), tokenizer, long, [], [], problem, 8)


def test_second_texts_are_all_or_none(tokenizer):
    mixed = [Labelled("f:1", "a", "b", "x"), Labelled("f:2", "a", "", "y")]
    with pytest.raises(DataError, match="f:2: text_pair: missing, and other rows have one"):
        tokenize_labelled(tokenizer, mixed, Problem(SINGLE, ("x", "y")), 8, True)


def test_two_texts_carry_their_token_types(small_encoder):
    from lorasmith import models

    tokenizer, _ = models.load_tokenizer(Model(name=str(small_encoder("bert"))), stops=False)
    [one], _ = tokenize_labelled(
        tokenizer, [Labelled("f:1", "red box", "blue", 1)], Problem(SINGLE, ("0", "1")), 8, True
    )
    assert tokenizer.convert_ids_to_tokens(one.input_ids.tolist()) == ["[CLS]", "red", "box", "[SEP]", "blue", "[SEP]"]
    assert one.types.tolist() == [0, 0, 0, 0, 1, 1]
    assert (one.target, one.said) == (1, "1")


@needs_shared
def test_all_of_sst2_reads():
    section = Data(train="../shared/data/cls_sst2_train.jsonl", eval="../shared/data/cls_sst2_test.jsonl")
    train, test, refused = read_train_and_eval_labelled(section, 0)
    assert (len(train), len(test), refused) == (60614, 872, [])
    assert problem_of(train, Task()) == Problem(SINGLE, ("0", "1"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task.problem=multi"], "task.problem is `multi`; expected one of auto, single_label_classification"),
        (["task.labels=[a, a]"], "task.labels has a label twice"),
        (["task.labels=[a]", "task.problem=regression"], "task.labels with a regression"),
        (["task.labels=[a, b]", "task.class_weights={c: 2}"], "task.class_weights has `c`; task.labels are a, b"),
        (["task.class_weights={a: -1}"], "expected none, balanced, or labels with a weight above 0 each"),
        (["task.class_weights=even"], "expected one of none, balanced"),
        (["task.threshold=1.5"], "expected calibrated, or a number above 0 and below 1"),
        (["task.threshold=calibrated", "data.eval=null"], "needs rows. Set data.eval or data.eval_fraction"),
        (["task.stride=3"], "task.stride is for question_answering.py, not text_classification.py"),
        (["data.train_on=all"], "data.train_on is `all`; it is for sft.py"),
        (["data.format=text"], "data.format is `text`; it is for sft.py"),
        (["model.chat_template=chatml"], "model.chat_template is for language models"),
        (["trainer.packing=true"], "unknown key `packing`"),
        (["trainer.max_lenght=8"], "Did you mean `max_length`?"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_slow(overrides, told, monkeypatch):
    with pytest.raises(RecipeError) as error:
        load_recipe(Path("recipes/text_classification/minilm-lora-cpu.yaml"), overrides, "text_classification")
    assert told in str(error.value)


def test_a_language_models_recipe_takes_no_task():
    with pytest.raises(
        RecipeError, match=r"task\.labels is for text_classification.py and token_classification.py, not"
    ):
        load_recipe(Path("recipes/quickstart.yaml"), ["task.labels=[a]"], "sft")
