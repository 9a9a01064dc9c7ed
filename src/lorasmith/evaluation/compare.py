"""Is the adapter better than its base? A paired bootstrap over rows, and a plain verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorasmith.evaluation.scores import RowLoss

RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of the adapter minus that of the base, with its 95 % interval."""

    base: float
    adapter: float
    low: float
    high: float

    @property
    def delta(self) -> float:
        return self.adapter - self.base

    def verdict(self, lower_is_better: bool) -> str:
        """better, worse, or no difference shown: the interval decides."""
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if (self.delta < 0) == lower_is_better else "worse"


def loss_difference(base: Sequence[RowLoss], adapter: Sequence[RowLoss]) -> Difference:
    """Mean loss per supervised token of both, rows resampled in pairs.

    Resampling rows, not tokens, since tokens of a row are not independent (Efron and Tibshirani 1993, chapter 8).
    """
    tokens = np.array([row.tokens for row in base], dtype=float)
    return _bootstrap(np.array([row.nats for row in base]), np.array([row.nats for row in adapter]), weights=tokens)


def match_difference(base: Sequence[bool], adapter: Sequence[bool]) -> Difference:
    """Share of exact matches of both, rows resampled in pairs."""
    ones = np.ones(len(base))
    return _bootstrap(np.array(base, dtype=float), np.array(adapter, dtype=float), weights=ones)


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def _bootstrap(base: np.ndarray, adapter: np.ndarray, weights: np.ndarray) -> Difference:
    """Ratio estimates sum(x) / sum(w) on rows drawn with replacement, percentile interval."""
    rng = np.random.default_rng(SEED)
    gain = adapter - base
    drawn = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = rng.integers(0, len(base), len(base))
        drawn[i] = gain[rows].sum() / weights[rows].sum()
    low, high = np.quantile(drawn, (0.025, 0.975))
    total = weights.sum()
    return Difference(float(base.sum() / total), float(adapter.sum() / total), float(low), float(high))
