"""Figures of a tagger on the evaluation rows, while it is trained and behind it."""

from typing import Any

import torch

from lorasmith.data.prepare_tagged import PreparedTags
from lorasmith.data.tagged import OUTSIDE
from lorasmith.evaluation.tag_metrics import tag_metrics
from lorasmith.runs.measuring import warn_of_one

SHOWN_LABELS = 20  # whose own figures stand in a card


def best_labels(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """transformers' preprocess_logits_for_metrics: the likeliest tag of each token, which is all that is kept.

    Args:
        logits: Shape (windows, tokens, tags), or a tuple that begins with it.

    Returns:
        int64, shape (windows, tokens).
    """
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


class TagFigures:
    """transformers' compute_metrics of a tagger, whose evaluation rows are read as predictions read them."""

    def __init__(self, rows: PreparedTags, labels: list[str]) -> None:
        held_out: Any = rows.eval_rows
        self.gold: list[tuple[str, ...]] = [row.tags for row in held_out]
        self.windows, self.labels = rows.windows, labels
        self.given: list[str] = []  # tags of all words when they were seen last

    def __call__(self, given: Any) -> dict[str, float]:
        said = [[OUTSIDE] * len(tags) for tags in self.gold]
        for window, best in zip(self.windows, given.predictions, strict=True):
            for at, word in enumerate(window.words):
                if word >= 0:
                    said[window.row][word] = self.labels[best[at]]
        self.given = [tag for tags in said for tag in tags]
        found = {one.name: one.value for one in tag_metrics(self.gold, said, self.labels)}
        each = [name for name in found if name.startswith("f1_of_")]
        shown = each if len(each) <= SHOWN_LABELS else []
        return {name: value for name, value in found.items() if "_of_" not in name or name in shown}

    def warn(self) -> None:
        """Tell if every word is given one tag."""
        warn_of_one(self.given, [tag for tags in self.gold for tag in tags], "word")
