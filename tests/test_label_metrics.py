"""Figures of classifiers are those of scikit-learn and scipy, for sets with missing labels and single rows too."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as theirs

from lorasmith.errors import DataError
from lorasmith.evaluation.confusion import confusion_counts, confusion_picture, gathered
from lorasmith.evaluation.label_metrics import best_thresholds, multi_label, regression, single_label

pytestmark = pytest.mark.usefixtures("no_network")

quick = settings(max_examples=80, deadline=None, database=None, derandomize=True)
LABELS = ["no", "yes", "not sure", "never seen"]
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=25)
MANY = st.lists(st.tuples(*[st.tuples(st.integers(0, 1), st.integers(0, 1), st.just(0))] * 2), min_size=1, max_size=20)
PLAIN = st.floats(-1000, 1000).map(lambda x: round(x, 3))


def values(found):
    assert len({one.name for one in found}) == len(found)
    return {one.name: one.value for one in found}


def expected_scores(gold, predicted, labels, kinds):
    """precision, recall and F1 of scikit-learn under our names."""
    found = {}
    for kind in kinds:
        scores = theirs.precision_recall_fscore_support(
            gold, predicted, labels=range(len(labels)), average=kind, zero_division=0
        )
        found |= {f"{name}_{kind}": score for name, score in zip(("precision", "recall", "f1"), scores, strict=False)}
    each = theirs.precision_recall_fscore_support(
        gold, predicted, labels=range(len(labels)), average=None, zero_division=0
    )
    for i, label in enumerate(labels):
        found |= {f"{name}_of_{label}": each[at][i] for at, name in enumerate(("precision", "recall", "f1"))}
    return found


@quick
@given(ROWS)
def test_single_label_figures_are_those_of_scikit_learn(rows):
    gold, predicted = [list(side) for side in zip(*rows, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = expected_scores(gold, predicted, ["no", "yes", "not_sure", "never_seen"], ("macro", "weighted"))
        expected["accuracy"] = theirs.accuracy_score(gold, predicted)
        expected["mcc"] = theirs.matthews_corrcoef(gold, predicted)
    assert values(single_label(gold, predicted, LABELS)) == pytest.approx(expected, abs=1e-12)


@quick
@given(MANY)
def test_multi_label_figures_are_those_of_scikit_learn(rows):
    gold, predicted = [np.array(side) for side in zip(*rows, strict=True)]
    expected = expected_scores(gold, predicted, "abc", ("micro", "macro", "weighted"))
    expected["subset_accuracy"] = theirs.accuracy_score(gold, predicted)
    assert values(multi_label(gold.tolist(), predicted.tolist(), "abc")) == pytest.approx(expected, abs=1e-12)


@quick
@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=2, max_size=25))
def test_regression_figures_are_those_of_scikit_learn_and_scipy(rows):
    gold, predicted = (np.array(side) for side in zip(*rows, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "mse": theirs.mean_squared_error(gold, predicted),
            "mae": theirs.mean_absolute_error(gold, predicted),
            "r2": theirs.r2_score(gold, predicted),
            "pearson": np.nan_to_num(stats.pearsonr(gold, predicted)[0]),
            "spearman": np.nan_to_num(stats.spearmanr(gold, predicted)[0]),
        }
    assert values(regression(gold.tolist(), predicted.tolist())) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_resample_has_the_figures_of_the_rows_drawn():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    drawn = rng.integers(0, 40, 40)
    alone = values(single_label(gold[drawn], predicted[drawn], LABELS))
    for one in single_label(gold, predicted, LABELS):
        sums = np.stack([one.rows[drawn].sum(axis=0)] * 6).reshape(2, 3, -1)
        assert one.of_sums(sums) == pytest.approx(np.full((2, 3), alone[one.name]))
    numbers, guesses = rng.normal(5000, 1, 40), rng.normal(5000, 1, 40)
    alone = values(regression(numbers[drawn], guesses[drawn]))
    for one in regression(numbers, guesses):
        if one.name != "spearman":  # ranks are of all rows
            assert float(one.of_sums(one.rows[drawn].sum(axis=0))) == pytest.approx(alone[one.name], rel=1e-9)


def test_one_row_and_constants_have_figures():
    found = values(single_label([1], [1], LABELS))
    assert (found["accuracy"], found["f1_macro"], found["f1_weighted"], found["mcc"]) == (1, 0.25, 1, 0)
    assert values(regression([0.1], [0.1])) == {"mse": 0, "mae": 0, "r2": 1, "pearson": 0, "spearman": 0}
    assert values(regression([0.1, 0.1, 0.1], [0.1, 0.2, 0.3]))["r2"] == 0
    assert values(regression([1e9, 1e9 + 1, 1e9 + 3], [1e9, 1e9 + 2, 1e9 + 3]))["r2"] == pytest.approx(1 - 1 / (14 / 3))


def test_labels_that_read_alike_keep_names_of_their_own():
    names = [one.name for one in single_label([0], [0], ["a b", "a-b", "日本", "!", "macro"])]
    assert [name for name in names if name.startswith("f1_")] == [
        "f1_macro", "f1_weighted", "f1_of_a_b", "f1_of_a_b_1", "f1_of_日本", "f1_of_3", "f1_of_macro",
    ]  # fmt: skip


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.52, 0.9, 1.0]), st.integers(0, 1)), min_size=1, max_size=15
    )
)
def test_a_threshold_has_the_best_f1_of_all(rows):
    probabilities, gold = (np.array(side) for side in zip(*rows, strict=True))
    found = best_thresholds(probabilities[:, None], gold[:, None])[0]

    def f1(threshold):
        return theirs.f1_score(gold, probabilities >= threshold, zero_division=0)

    tried = [0.001, 0.05, 0.2, 0.4, 0.5, 0.51, 0.7, 0.95, 1.0]  # one between any two probabilities
    scores = np.array([f1(one) for one in tried])
    if not gold.any():
        assert found == 0.5
        return
    assert f1(found) == pytest.approx(scores.max())
    if f1(0.5) == pytest.approx(scores.max()):
        assert found == 0.5


def test_thresholds_are_found_for_each_label_alone():
    probabilities = [[0.2, 0.6, 0.9], [0.3, 0.7, 0.9], [0.1, 0.95, 0.1], [0.05, 0.85, 0.2]]
    gold = [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert best_thresholds(probabilities, gold) == pytest.approx([0.15, 0.775, 0.5])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: single_label([0, 1], [0], LABELS), "labels: 2 gold and 1 predicted. Give as many of each."),
        (lambda: single_label([0], [4], LABELS), "predicted label of row 1 is 4; expected 0 to 3, for 4 labels."),
        (lambda: single_label([0.5], [0.0], LABELS), "gold labels are of type float64; expected whole numbers."),
        (lambda: multi_label([[0, 1]], [[0]], "ab"), "predicted labels: expected a 0 or 1 in each row for each of 2 labels."),
        (lambda: multi_label([[0, 1], [1]], [[0, 1], [1, 1]], "ab"), "gold labels: expected a 0 or 1 in each row for each of 2 labels."),
        (lambda: multi_label([[0, 2]], [[0, 1]], "ab"), "gold labels: something else than 0 and 1 is among them."),
        (lambda: regression([1.0, 2.0], [1.0, float("nan")]), "predicted number of row 2 is nan; expected a finite number."),
        (lambda: regression([], []), "numbers: no rows. Give at least one."),
        (lambda: best_thresholds([0.5], [[1]]), "thresholds: probabilities of shape (1,); expected rows and labels."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(call, told):
    with pytest.raises(DataError) as raised:
        call()
    assert str(raised.value) == told


def test_confusion_counts_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 4, 100), rng.integers(0, 5, 100)
    assert (confusion_counts(gold, predicted, 6) == theirs.confusion_matrix(gold, predicted, labels=range(6))).all()


def test_many_labels_are_gathered_with_every_row_counted():
    rng = np.random.default_rng(0)
    gold = np.minimum(rng.geometric(0.05, 2000) - 1, 76)
    counts = confusion_counts(gold, rng.permutation(gold), 77)
    found, names = gathered(counts, [f"label {i}" for i in range(77)])
    assert found.shape == (30, 30)
    assert found.sum() == 2000
    assert names[-1] == "48 others"
    assert found[0, 0] == counts[int(names[0].split()[1])][int(names[0].split()[1])]


@pytest.mark.parametrize("number", [1, 2, 40])
def test_the_picture_is_a_readable_png_and_leaves_nothing_beside_it(number, tmp_path):
    from matplotlib.image import imread

    counts = confusion_counts(np.arange(number), np.arange(number), number)
    confusion_picture(
        counts, ["a very long label that goes on and on", "$x$", *map(str, range(38))][:number], tmp_path / "c.png"
    )
    height, width, _ = imread(tmp_path / "c.png").shape
    assert min(height, width) >= 400
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]
    with pytest.raises(DataError, match=r"labels\.$"):
        confusion_picture(counts, [], tmp_path / "c.png")
