"""Which label is taken for which, as counts and as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorasmith.errors import DataError

MOST_LABELS = 30  # that a picture can name
_LONGEST = 24  # letters of a label


def confusion_counts(gold: Sequence[int], predicted: Sequence[int], labels: int) -> np.ndarray:
    """Rows by true label (down) and predicted label (across), int64, shape (labels, labels)."""
    place = np.asarray(gold) * labels + np.asarray(predicted)
    return np.bincount(place, minlength=labels * labels).reshape(labels, labels)


def confusion_picture(counts: np.ndarray, labels: Sequence[str], path: Path | str) -> None:
    """Draw counts with the share of their true label, as PNG; with many labels the rarest are drawn as one.

    Raises:
        DataError: If counts and labels do not fit.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(counts)
    if counts.shape != (len(labels), len(labels)):
        raise DataError(f"confusion: counts of shape {counts.shape} for {len(labels)} labels.")
    counts, names = gathered(counts, labels)
    number = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = 0.9 if number <= 12 else 0.55  # inches
    side = max(3.5, cell * number) + 2.0
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(number), names, rotation=0 if number <= 4 else 90)
    axes.set_yticks(range(number), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.argwhere(counts > 0) if number > 12 else np.ndindex(number, number):
        share = shares[row, column]
        said = f"{counts[row, column]:,}\n{share:.0%}"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, said, ha="center", va="center", fontsize=9 if number <= 12 else 6, color=colour)
    figure.colorbar(image, ax=axes, label="share of the true label's rows", shrink=0.7)
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, format="png", dpi=110 if number <= 12 else 130)
    os.replace(beside, path)


def gathered(counts: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """At most MOST_LABELS labels, in their order: those with the most rows, the others' counts put together."""
    short = [_short(str(label)) for label in labels]
    if len(labels) <= MOST_LABELS:
        return counts, short
    rows = counts.sum(axis=0) + counts.sum(axis=1)
    kept = np.sort(np.argsort(-rows, kind="stable")[: MOST_LABELS - 1])
    place = np.full(len(labels), MOST_LABELS - 1)
    place[kept] = np.arange(MOST_LABELS - 1)
    found = np.zeros((MOST_LABELS, MOST_LABELS), dtype=np.int64)
    np.add.at(found, (place[:, None], place[None, :]), counts)
    return found, [*(short[i] for i in kept), f"{len(labels) - MOST_LABELS + 1} others"]


def _short(label: str) -> str:
    """A label in one line, and no formula: matplotlib reads what stands between two dollar signs as one."""
    line = " ".join(label.split())
    return (line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…").replace("$", r"\$")
