"""The one type that every figure of a set of rows is made of."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorasmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a set of rows that is a function of sums over them, so that resampling rows is resampling sums.

    Attributes:
        name: Such as exact_match or f1_macro, as `--fail-if "exact_match < 0.8"` names it.
        rows: What each row adds to the sums, float64, shape (rows, sums).
        of_sums: The figure of sums, (..., sums) -> (...), for any number of leading dimensions.
        lower_is_better: As of a loss.
    """

    name: str
    rows: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]
    lower_is_better: bool = False

    @property
    def value(self) -> float:
        """The figure of all rows."""
        return float(self.of_sums(self.rows.sum(axis=0)))


def mean_of_rows(name: str, values: Sequence[float] | np.ndarray, lower_is_better: bool = False) -> Metric:
    """A plain mean: every row weighs the same.

    Raises:
        DataError: Without rows.
    """
    column = np.asarray(values, dtype=np.float64)
    return ratio_of_sums(name, column, np.ones(len(column)), lower_is_better)


def ratio_of_sums(
    name: str,
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    lower_is_better: bool = False,
) -> Metric:
    """The sum of one thing by the sum of another, as nats by tokens; 0 where nothing is divided by.

    Raises:
        DataError: Without rows, or if the two differ in length.
    """
    above, below = (np.asarray(side, dtype=np.float64) for side in (numerators, denominators))
    check_lengths(name, numerators=above, denominators=below)
    return Metric(name, np.stack([above, below], axis=1), _ratio, lower_is_better)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element by element, 0 where the denominator is 0, as scikit-learn's zero_division=0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.zeros(shape), where=np.asarray(denominator) != 0)


def check_lengths(where: str, **lists: Sequence[object] | np.ndarray) -> None:
    """Refuse lists of rows that differ in length, and empty ones.

    Raises:
        DataError: Naming both and their lengths.
    """
    (first, rows), *others = lists.items()
    for name, other in others:
        if len(other) != len(rows):
            raise DataError(f"{where}: {len(rows)} {first} and {len(other)} {name}. Give as many of each.")
    if not len(rows):
        raise DataError(f"{where}: no rows. Give at least one.")


def metric_names(labels: Sequence[str]) -> list[str]:
    """Labels as ends of metrics' names: letters of any script, digits and underscores, no two alike."""
    found: list[str] = []
    for i, label in enumerate(labels):
        name = re.sub(r"\W+", "_", str(label)).strip("_") or str(i)
        found.append(f"{name}_{i}" if name in found else name)
    return found


def _ratio(sums: np.ndarray) -> np.ndarray:
    return divide(sums[..., 0], sums[..., 1])
