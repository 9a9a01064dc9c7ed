"""Is one model better than another on the same rows? A paired bootstrap over rows, and a plain verdict."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.metric import Metric, mean_of_rows, ratio_of_sums
from lorasmith.evaluation.scores import RowLoss

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95  # of the interval
POWER = 0.8  # of the rows needed
FEWEST = 6  # rows: with 5, swapping shows any difference in 2 of 32 ways, more than 5 %
_BLOCK = 2_000_000  # numbers drawn at a time; with their copies less than 100 MB
_Z = NormalDist()


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of the other model against that of the base, on the same rows.

    Attributes:
        name: Of the metric.
        base: Its value for the base.
        other: Its value for the model compared with it.
        low: Lower end of the 95 % interval of `delta`.
        high: Upper end.
        verdict: better, worse, or cannot tell: the last where the interval holds 0.
        rows_needed: Where it cannot tell: rows like these that would show a difference as large as the one seen, four
            times in five; None where none was seen.
    """

    name: str
    base: float
    other: float
    low: float
    high: float
    verdict: str
    rows_needed: int | None

    @property
    def delta(self) -> float:
        return self.other - self.base


def paired(base: Metric, other: Metric, resamples: int = RESAMPLES, seed: int = SEED) -> Difference:
    """Compare two models by one metric, rows resampled in pairs (Efron and Tibshirani 1993, chapter 8).

    The interval is the percentile interval with its levels moved out as far as Student's t for so many rows asks, since
    the plain one is too short for few rows (Hesterberg 2015, What Teachers Should Know About the Bootstrap: the
    expanded percentile interval). BCa alone would not do: it corrects skewness, not that shortness.

    Where the interval leaves 0 out, the test of exchanging the two models row by row has to agree (approximate
    randomization, Noreen 1989), which is exact for any number of rows and any metric if the models are alike. Where
    that sees such a difference in more than 5 % of exchanges, the interval is stretched to 0.

    Neither sees what is not among the rows: if the other model is a little better on most rows and much worse on one
    in a hundred, ten rows say better more often than they should.

    Raises:
        DataError: If the two are not the same metric of equally many rows.
    """
    if base.rows.shape != other.rows.shape or base.name != other.name:
        raise DataError(
            f"{base.name} of {base.rows.shape} rows and sums cannot be compared with {other.name} of "
            f"{other.rows.shape}. Compare one metric of the same rows, made with the same labels."
        )
    rows = len(base.rows)
    delta = other.value - base.value
    patterns, counts = _patterns(np.hstack([base.rows, other.rows]))
    drawn = _differences(base.of_sums, _resampled(patterns, counts, rows, resamples, seed))
    outside = _Z.cdf(-_t_quantile((1 + LEVEL) / 2, rows - 1) * math.sqrt(rows / (rows - 1))) if rows > 1 else 0.0
    low, high = (float(one) for one in np.quantile(drawn, (outside, 1 - outside)))
    if not low <= 0 <= high and _share_exchanged(base.of_sums, patterns, counts, delta, resamples, seed) > 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    if low <= 0 <= high:
        with np.errstate(over="ignore", invalid="ignore"):  # perplexities reach e^700, and their squares no float
            error = float(np.std(drawn))
        verdict, needed = "cannot tell", rows_needed(delta, error, rows)
    else:
        verdict, needed = "better" if (high < 0) == base.lower_is_better else "worse", None
    return Difference(base.name, base.value, other.value, low, high, verdict, needed)


def rows_needed(delta: float, error: float, rows: int) -> int | None:
    """How many rows would show a difference of `delta` at the 5 % level with a power of 0.8.

    (z(0.975) + z(0.8))^2 * variance of a row / delta^2 for a paired comparison (Cohen 1988, chapter 2), and half of
    z(0.975)^2 more, for the variance is not known beforehand (Guenther 1981, The American Statistician 35).

    Args:
        error: Standard error of the difference on `rows` rows.

    Returns:
        More than `rows`, since these did not show it; None for no difference.
    """
    if not delta or not math.isfinite(delta) or not math.isfinite(error):
        return None
    certain = _Z.inv_cdf((1 + LEVEL) / 2)
    needed = rows * ((certain + _Z.inv_cdf(POWER)) * error / delta) ** 2 + certain**2 / 2
    return max(rows + 1, FEWEST, math.ceil(needed))


def loss_difference(base: Sequence[RowLoss], other: Sequence[RowLoss]) -> Difference:
    """Mean loss per supervised token of both.

    Resampling rows, not tokens, since tokens of a row are not independent.
    """
    one, two = (
        ratio_of_sums("loss", [row.nats for row in side], [row.tokens for row in side], lower_is_better=True)
        for side in (base, other)
    )
    return paired(one, two)


def match_difference(base: Sequence[bool], other: Sequence[bool]) -> Difference:
    """Share of exact matches of both."""
    one, two = (mean_of_rows("exact_match", [float(match) for match in side]) for side in (base, other))
    return paired(one, two)


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def _patterns(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are alike put together, and how many there are of each: matches have four kinds of rows at most."""
    if rows.shape[1] > 64:  # hardly alike, and costly to sort
        return rows, np.ones(len(rows), dtype=np.int64)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    if len(kinds) * 10 > len(rows):  # drawing rows is cheaper than drawing how many of each kind
        return rows, np.ones(len(rows), dtype=np.int64)
    return kinds, counts


def _blocks(resamples: int, numbers: int) -> Iterator[int]:
    """Resamples at a time, of so many numbers each."""
    size = max(1, _BLOCK // numbers)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _resampled(patterns: np.ndarray, counts: np.ndarray, rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Sums over rows drawn with replacement, in blocks of shape (some resamples, sums of both)."""
    rng = np.random.default_rng(seed)
    kinds, sums = patterns.shape
    for size in _blocks(resamples, rows + sums if kinds == rows else kinds + sums):
        if kinds == rows:
            drawn = rng.integers(0, rows, (size, rows)) + rows * np.arange(size)[:, None]
            times = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        else:
            times = rng.multinomial(rows, counts / rows, size)
        yield times.astype(np.float64) @ patterns


def _differences(of_sums: Callable[[np.ndarray], np.ndarray], blocks: Iterator[np.ndarray]) -> np.ndarray:
    """The other's figure less the base's of each resample."""
    found = []
    for sums in blocks:
        half = sums.shape[1] // 2
        found.append(of_sums(sums[:, half:]) - of_sums(sums[:, :half]))
    return np.concatenate(found)


def _share_exchanged(
    of_sums: Callable[[np.ndarray], np.ndarray],
    patterns: np.ndarray,
    counts: np.ndarray,
    delta: float,
    resamples: int,
    seed: int,
) -> float:
    """In how many of the ways to exchange the two models row by row the difference is as large as `delta`."""
    rng = np.random.default_rng(seed + 1)
    kinds, width = patterns.shape
    total, half = counts @ patterns, width // 2
    gain = patterns[:, half:] - patterns[:, :half]
    as_large = 0
    for size in _blocks(resamples, kinds + width):
        if kinds == counts.sum():
            exchanged = rng.integers(0, 2, (size, kinds), dtype=np.int8).astype(np.float64)
        else:
            exchanged = rng.binomial(counts, 0.5, (size, kinds)).astype(np.float64)
        moved = exchanged @ gain
        found = of_sums(total[half:] - moved) - of_sums(total[:half] + moved)
        as_large += int((np.abs(found) >= abs(delta) * (1 - 1e-9)).sum())  # rounding parts no equals
    return (as_large + 1) / (resamples + 1)


def _t_quantile(level: float, freedom: int) -> float:
    """Student's t by its expansion around the normal (Abramowitz and Stegun 26.7.5); within 0.3 % from 5 degrees on."""
    z = _Z.inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
