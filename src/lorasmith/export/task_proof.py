"""The proof of a task's export: the live adapter and the artefact tell of the same rows; what differs is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorasmith.export.proof import Drift, Floats, log_softmax

Told = list[Floats]  # of one row: logits of each thing that is told, shape (choices,)


@dataclass(frozen=True, slots=True)
class TaskReference:
    """What the live adapter says.

    Attributes:
        rows: As the run kept them.
        told: Of each row in the same order.
    """

    rows: list[Any]
    told: list[Told]

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.told)
        assert self.rows


def task_drift(kind: str, live: TaskReference, told: Sequence[Told]) -> Drift:
    """Compare what an artefact tells of the same rows with what the live adapter told.

    Loss is that of what the live adapter tells. A single number, of a regression, is taken as a normal distribution as
    wide as the live adapter's numbers are spread, so that its Kullback-Leibler divergence is d^2 / (2 sigma^2); two are
    the same where they differ by less than a tenth of that.
    """
    ours, theirs = ([one for row in found for one in row] for found in (live.told, told))
    if len(ours[0]) == 1:
        return _of_numbers(kind, live, np.array(ours)[:, 0], np.array(theirs)[:, 0])
    same, divergence, nats_live, nats = [], [], [], []
    for one, other in zip(ours, theirs, strict=True):
        before, after = log_softmax(one), log_softmax(other)
        best = int(before.argmax())
        same.append(best == int(after.argmax()))
        divergence.append(float((np.exp(before) * (before - after)).sum()))
        nats_live.append(-float(before[best]))
        nats.append(-float(after[best]))
    return _drift(kind, live, same, divergence, nats_live, nats)


def _of_numbers(kind: str, live: TaskReference, ours: Floats, theirs: Floats) -> Drift:
    spread = float(ours.std()) or 1.0
    apart = np.abs(ours - theirs) / spread
    divergence = apart**2 / 2
    return _drift(kind, live, (apart < 0.1).tolist(), divergence.tolist(), [0.0] * len(ours), divergence.tolist())


def _drift(
    kind: str,
    live: TaskReference,
    same: list[bool],
    divergence: list[float],
    nats_live: list[float],
    nats: list[float],
) -> Drift:
    count = len(same)
    means = (sum(same) / count, sum(divergence) / count, max(divergence), sum(nats_live) / count, sum(nats) / count)
    return Drift(kind, "transformers", len(live.rows), count, *means)
