"""Figures of a classifier: one label a row, several, or a number."""

from collections.abc import Callable, Sequence

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.metric import Metric, check_lengths, divide, mean_of_rows, metric_names

Figure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of hits, predicted and true


def single_label(gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> list[Metric]:
    """Accuracy, mcc, precision, recall and F1 in macro and weighted, then those of each label, as f1_of_positive.

    A label of the model that never occurs counts as 0 in macro, as with scikit-learn's labels= and zero_division=0.

    Args:
        gold: Index of each row's label in `labels`.
        predicted: The same.

    Raises:
        DataError: If rows are not as many, or an index is out of range.
    """
    right, said = _indices(gold, predicted, labels)
    each = np.eye(len(labels))
    rows = np.concatenate([each[right] * (right == said)[:, None], each[said], each[right]], axis=1)
    return [
        mean_of_rows("accuracy", right == said),
        Metric("mcc", rows, _mcc),
        *averages(rows, ("macro", "weighted")),
        *per_label(rows, labels),
    ]


def multi_label(
    gold: Sequence[Sequence[int]], predicted: Sequence[Sequence[int]], labels: Sequence[str]
) -> list[Metric]:
    """Share of rows with all labels right, precision, recall and F1 in micro, macro and weighted, and of each label.

    Args:
        gold: 0 or 1 for each label, shape (rows, labels).
        predicted: The same.

    Raises:
        DataError: If the shapes do not fit, or something else than 0 and 1 is found.
    """
    right, said = _zeros_and_ones("gold", gold, labels), _zeros_and_ones("predicted", predicted, labels)
    check_lengths("labels", gold=right, predicted=said)
    rows = np.concatenate([right * said, said, right], axis=1)
    return [
        mean_of_rows("subset_accuracy", (right == said).all(axis=1)),
        *averages(rows, ("micro", "macro", "weighted")),
        *per_label(rows, labels),
    ]


def best_thresholds(probabilities: Sequence[Sequence[float]], gold: Sequence[Sequence[int]]) -> list[float]:
    """For each label the threshold from which on (>=) it is predicted with the best F1 on these rows.

    Tried are 0.5 and the middles between neighbouring probabilities; among equals the one closest to 0.5 is taken.
    A label without positive rows keeps 0.5. To be found on rows that are not those the figures are made of.

    Args:
        probabilities: Shape (rows, labels).
        gold: 0 or 1 for each.

    Raises:
        DataError: If the shapes do not fit.
    """
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2:
        raise DataError(f"thresholds: probabilities of shape {given.shape}; expected rows and labels.")
    right = _zeros_and_ones("gold", gold, [""] * given.shape[1])
    check_lengths("thresholds", probabilities=given, gold=right)
    return [_best_threshold(given[:, i], right[:, i]) for i in range(given.shape[1])]


def _best_threshold(probabilities: np.ndarray, gold: np.ndarray) -> float:
    if not gold.any():
        return 0.5
    order = np.argsort(probabilities, kind="stable")
    ascending, hits = probabilities[order], np.append(np.cumsum(gold[order][::-1])[::-1], 0)
    distinct = np.unique(np.append(ascending, 0.0))
    tried = np.append((distinct[1:] + distinct[:-1]) / 2, 0.5)
    first = np.searchsorted(ascending, tried)  # the row from which on the label is predicted
    f1 = 2 * hits[first] / (len(gold) - first + gold.sum())
    best = tried[f1 >= f1.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def regression(gold: Sequence[float], predicted: Sequence[float]) -> list[Metric]:
    """mse, mae, r2, pearson and spearman; a correlation with a constant is 0.

    Ranks for spearman are taken once on all rows; a resample keeps them, since ranks are no sums over rows.

    Raises:
        DataError: If rows are not as many, or a number is not finite.
    """
    right, said = (np.asarray(side, dtype=np.float64) for side in (gold, predicted))
    check_lengths("numbers", gold=right, predicted=said)
    for name, side in (("gold", right), ("predicted", said)):
        bad = np.flatnonzero(~np.isfinite(side))
        if len(bad):
            raise DataError(f"{name} number of row {bad[0] + 1} is {side[bad[0]]}; expected a finite number.")
    off = said - right
    centred = _standardized(right)
    scale = right.std() or 1.0
    of_r2 = np.stack([np.ones(len(right)), centred, centred**2, (off / scale) ** 2], axis=1)
    return [
        mean_of_rows("mse", off**2, lower_is_better=True),
        mean_of_rows("mae", np.abs(off), lower_is_better=True),
        Metric("r2", of_r2, _r2),
        _correlation("pearson", right, said),
        _correlation("spearman", _ranks(right), _ranks(said)),
    ]


def averages(rows: np.ndarray, kinds: Sequence[str], only_present: bool = False) -> list[Metric]:
    """Precision, recall and F1 over all labels.

    Args:
        rows: Hits of each label, then predicted, then true, shape (rows, 3 x labels).
        kinds: micro, macro, weighted.
        only_present: Whether macro leaves out labels that are neither true nor predicted, as seqeval does.
    """

    def averaged(figure: Figure, kind: str) -> Callable[[np.ndarray], np.ndarray]:
        def of_sums(sums: np.ndarray) -> np.ndarray:
            hits, said, right = _thirds(sums)
            if kind == "micro":
                return figure(hits.sum(-1), said.sum(-1), right.sum(-1))
            weights = right if kind == "weighted" else (said + right > 0) | (not only_present)
            return divide((figure(hits, said, right) * weights).sum(-1), weights.sum(-1))

        return of_sums

    return [
        Metric(f"{name}_{kind}", rows, averaged(figure, kind)) for kind in kinds for name, figure in _FIGURES.items()
    ]


def per_label(rows: np.ndarray, labels: Sequence[str]) -> list[Metric]:
    """Precision, recall and F1 of each label, as f1_of_positive; `rows` as of `averages`."""
    count = len(labels)
    found = []
    for i, label in enumerate(metric_names(labels)):
        own = rows[:, [i, count + i, 2 * count + i]]
        found += [Metric(f"{name}_of_{label}", own, _of_one(figure)) for name, figure in _FIGURES.items()]
    return found


def _precision(hits: np.ndarray, said: np.ndarray, right: np.ndarray) -> np.ndarray:
    return divide(hits, said)


def _recall(hits: np.ndarray, said: np.ndarray, right: np.ndarray) -> np.ndarray:
    return divide(hits, right)


def _f1(hits: np.ndarray, said: np.ndarray, right: np.ndarray) -> np.ndarray:
    return divide(2 * hits, said + right)


_FIGURES: dict[str, Figure] = {"precision": _precision, "recall": _recall, "f1": _f1}


def _of_one(figure: Figure) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: figure(sums[..., 0], sums[..., 1], sums[..., 2])


def _thirds(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = sums.shape[-1] // 3
    return sums[..., :count], sums[..., count : 2 * count], sums[..., 2 * count :]


def _mcc(sums: np.ndarray) -> np.ndarray:
    """Matthews' correlation for any number of labels (Gorodkin 2004); 0 where one side knows one label only."""
    hits, said, right = _thirds(sums)
    rows = right.sum(-1)
    together = hits.sum(-1) * rows - (said * right).sum(-1)
    alone = (rows**2 - (said**2).sum(-1)) * (rows**2 - (right**2).sum(-1))
    return divide(together, np.sqrt(alone))


def _r2(sums: np.ndarray) -> np.ndarray:
    """As scikit-learn: where the truth is constant, 1 for no error and 0 for any."""
    rows, one, squares, errors = (sums[..., i] for i in range(4))
    spread = squares - divide(one**2, rows)
    constant = spread <= 1e-12 * squares
    return np.where(constant, errors == 0, 1 - divide(errors, np.where(constant, 0, spread)))


def _correlation(name: str, first: np.ndarray, second: np.ndarray) -> Metric:
    one, other = _standardized(first), _standardized(second)
    rows = np.stack([np.ones(len(one)), one, other, one**2, other**2, one * other], axis=1)

    def of_sums(sums: np.ndarray) -> np.ndarray:
        count, x, y, xx, yy, xy = (sums[..., i] for i in range(6))
        spread_x, spread_y = xx - divide(x**2, count), yy - divide(y**2, count)
        constant = (spread_x <= 1e-12 * xx) | (spread_y <= 1e-12 * yy)
        both = np.sqrt(np.where(constant, 0, spread_x * spread_y))
        return np.clip(divide(xy - divide(x * y, count), both), -1, 1)

    return Metric(name, rows, of_sums)


def _standardized(values: np.ndarray) -> np.ndarray:
    """Less their mean and by their spread, so that sums of squares keep their digits; exact zeros for a constant."""
    if values.max() == values.min():
        return np.zeros(len(values))
    return (values - values.mean()) / values.std()


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 on, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _indices(gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, checked against the labels."""
    right, said = np.asarray(gold), np.asarray(predicted)
    check_lengths("labels", gold=right, predicted=said)
    for name, side in (("gold", right), ("predicted", said)):
        if not np.issubdtype(side.dtype, np.integer):
            raise DataError(f"{name} labels are of type {side.dtype}; expected whole numbers.")
        bad = np.flatnonzero((side < 0) | (side >= len(labels)))
        if len(bad):
            raise DataError(
                f"{name} label of row {bad[0] + 1} is {side[bad[0]]}; expected 0 to {len(labels) - 1}, for "
                f"{len(labels)} labels."
            )
    return right, said


def _zeros_and_ones(name: str, given: Sequence[Sequence[int]], labels: Sequence[str]) -> np.ndarray:
    """As float64 of shape (rows, labels)."""
    try:
        found = np.asarray(given, dtype=np.float64)
    except ValueError:
        found = np.empty(0)  # rows of different lengths
    if found.ndim != 2 or found.shape[1] != len(labels):
        raise DataError(f"{name} labels: expected a 0 or 1 in each row for each of {len(labels)} labels.")
    if not np.isin(found, (0, 1)).all():
        raise DataError(f"{name} labels: something else than 0 and 1 is among them.")
    return found
