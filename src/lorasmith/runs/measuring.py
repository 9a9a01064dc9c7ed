"""Figures of a task on the evaluation rows, while it is trained and behind it."""

from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.console import complain, say
from lorasmith.data.labelled import MULTI, REGRESSION, Problem
from lorasmith.evaluation import label_metrics
from lorasmith.evaluation.confusion import confusion_counts, confusion_picture
from lorasmith.evaluation.metric import Metric
from lorasmith.tasks.forward import probabilities

SHOWN_LABELS = 10  # whose own figures stand in a card


class LabelFigures:
    """transformers' compute_metrics of a classifier, which keeps what it saw last.

    Args:
        threshold: Probability from which each of several labels is given, or "calibrated".
    """

    def __init__(self, problem: Problem, threshold: float | str) -> None:
        self.problem, self.threshold = problem, threshold
        self.found: np.ndarray | None = None  # probabilities, (rows, labels)
        self.targets: np.ndarray | None = None

    def __call__(self, given: Any) -> dict[str, float]:
        logits = given.predictions[0] if isinstance(given.predictions, tuple) else given.predictions
        self.found, self.targets = probabilities(logits, self.problem.kind), np.asarray(given.label_ids)
        few = len(self.problem.labels) <= SHOWN_LABELS
        names = {one.name: one.value for one in self._metrics(self._fixed())}
        return {name: one for name, one in names.items() if "_of_" not in name or (few and name.startswith("f1_of_"))}

    def settled(self) -> dict[str, Any]:
        """Thresholds for use, calibrated on what was seen last where the recipe asks for it, and said."""
        if self.problem.kind != MULTI:
            return {}
        thresholds = self._fixed()
        if self.threshold == "calibrated" and self.found is not None and self.targets is not None:
            before = self._value("f1_macro", thresholds)
            thresholds = label_metrics.best_thresholds(self.found.tolist(), self.targets.astype(int).tolist())
            after, rows = self._value("f1_macro", thresholds), len(self.found)
            say(f"thresholds: calibrated on {rows} evaluation rows, f1_macro {before:.4f} to {after:.4f} on these")
        return {"thresholds": [round(one, 6) for one in thresholds]}

    def warn(self) -> None:
        """Tell if every row is given one label."""
        if self.found is not None and self.problem.kind not in (MULTI, REGRESSION):
            given = self.found.argmax(-1).tolist()
            warn_of_one([self.problem.labels[one] for one in given], np.asarray(self.targets).tolist(), "row")

    def draw(self, folder: Path) -> None:
        """confusion.png, where each row has one label."""
        if self.found is not None and self.problem.kind not in (MULTI, REGRESSION):
            folder.mkdir(parents=True, exist_ok=True)
            predicted = self.found.argmax(-1).tolist()
            counts = confusion_counts(np.asarray(self.targets).tolist(), predicted, len(self.problem.labels))
            confusion_picture(counts, self.problem.labels, folder / "confusion.png")

    def _fixed(self) -> list[float]:
        one = 0.5 if self.threshold == "calibrated" else float(self.threshold)
        return [one] * len(self.problem.labels)

    def _value(self, name: str, thresholds: list[float]) -> float:
        return next(one.value for one in self._metrics(thresholds) if one.name == name)

    def _metrics(self, thresholds: list[float]) -> list[Metric]:
        assert self.found is not None
        assert self.targets is not None
        return label_figures(self.problem, self.targets.tolist(), self.found, thresholds)


def warn_of_one(given: list[str], gold: list[Any], what: str) -> None:
    """Tell if all evaluation rows or words are given one label although they have several: nothing was learnt."""
    if len(set(given)) == 1 and len(set(gold)) > 1:
        complain(
            f"warning: every {what} of the evaluation rows is given `{given[0]}`: nothing else was learnt. Where the "
            "loss stood still, lower trainer.learning_rate; where it was still falling, train longer."
        )


def label_figures(problem: Problem, targets: Any, found: np.ndarray, thresholds: list[float] | None) -> list[Metric]:
    """Figures of a classifier.

    Args:
        targets: As `Problem.target` gives them, one a row.
        found: Probabilities, or numbers of a regression, shape (rows, labels).
    """
    if problem.kind == REGRESSION:
        return label_metrics.regression(targets, found[:, 0].tolist())
    if problem.kind == MULTI:
        given = (found >= np.asarray(thresholds)).astype(int).tolist()
        return label_metrics.multi_label([[int(one) for one in row] for row in targets], given, problem.labels)
    return label_metrics.single_label(targets, found.argmax(-1).tolist(), problem.labels)
