"""A figure by group of rows, and how far apart the groups are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorasmith.evaluation.metric import Metric

RESAMPLES = 10_000
SEED = 0
FEWEST = 5  # rows of a group that is compared


@dataclass(frozen=True, slots=True)
class Gap:
    """A figure of each group and the gap between the two that are furthest apart.

    Attributes:
        groups: Name -> (figure, rows), the largest figure first.
        high, low: The names of the two; nothing where there are not two groups of FEWEST rows.
        gap, least, most: Their difference with its interval, which is wide enough for all pairs of groups together,
            since the two were chosen for being far apart (Bonferroni).
    """

    name: str
    groups: dict[str, tuple[float, int]]
    high: str
    low: str
    gap: float
    least: float
    most: float

    @property
    def verdict(self) -> str:
        """Whether the groups are shown to differ."""
        return "differ" if self.least > 0 else "cannot tell"


def gap(metric: Metric, groups: Sequence[str], level: float = 0.95) -> Gap:
    """A metric by group, rows resampled within each group.

    Args:
        groups: The group of each row.
    """
    names = np.array(groups)
    parts = {name: metric.rows[names == name] for name in dict.fromkeys(groups)}
    figures = {name: (float(metric.of_sums(rows.sum(0))), len(rows)) for name, rows in parts.items()}
    figures = dict(sorted(figures.items(), key=lambda one: -one[1][0]))
    compared = [name for name, (_, rows) in figures.items() if rows >= FEWEST]
    if len(compared) < 2:
        return Gap(metric.name, figures, "", "", 0.0, 0.0, 0.0)
    high, low = compared[0], compared[-1]
    rng = np.random.default_rng(SEED)
    drawn = _drawn(metric, parts[high], rng) - _drawn(metric, parts[low], rng)
    pairs = len(list(itertools.combinations(compared, 2)))
    outside = (1 - level) / 2 / pairs
    least, most = np.quantile(drawn, (outside, 1 - outside))
    return Gap(metric.name, figures, high, low, figures[high][0] - figures[low][0], float(least), float(most))


def _drawn(metric: Metric, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The figure of rows drawn with replacement, of each resample."""
    found = []
    for _ in range(0, RESAMPLES, 500):
        times = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), 500)
        found.append(metric.of_sums(times.astype(np.float64) @ rows))
    return np.concatenate(found)
