"""A batch on its way through the steps: its rows, and what became of those that went no further."""

from dataclasses import dataclass, field
from typing import Any

from lorasmith.preparing.summary import Change


@dataclass(slots=True)
class Account:
    """What became of a batch.

    Attributes:
        rows: Rows that were read, broken ones included.
        rejected: (place, reason) of broken ones.
        removed: (line, reason) of rows that cleaning, masking or decontamination left out.
        examples: Reason -> excerpts of removed rows.
        changes: Cleaning step -> altered rows and excerpts.
        met: (line, evaluation set, how) of rows that give it away.
        masked: (row, kind, items) of masked rows.
        labels, languages, times: Texts that the numbers of `label` and `language`, or the rows themselves, stand for.
    """

    path: str
    source: int
    rows: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[int, str]] = field(default_factory=list)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    changed: int = 0
    met: list[tuple[int, str, str]] = field(default_factory=list)
    masked: list[tuple[int, str, int]] = field(default_factory=list)
    masks_shown: list[dict[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Kept:
    """A row on its way through the steps: the record as it is written later, and its texts before they were masked."""

    line: int
    record: dict[str, Any]
    raw: str
    texts: list[str]
    prompt: str = ""
    place: str = ""
    label: str = ""
    column: str = ""
    language: str = ""
