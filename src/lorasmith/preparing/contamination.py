"""Rows that give away an evaluation set: a run of its words or a whole question (Brown et al. 2020, appendix C)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorasmith.preparing.clean import normalised
from lorasmith.preparing.words import Hashes, Words, content_hash, grams_of_words

COMMON = 0.01  # share of an evaluation set's rows from which on a run of words is its template, and tells nothing
FEW = 10  # rows that may always share a run
LEAST_WORDS = 4  # of a question that counts when it is met whole


@dataclass(slots=True)
class Evaluations:
    """What must not be met: runs of words, and whole questions.

    Attributes:
        runs: Hashes of runs of `length` words, sorted.
        run_set: Index into `names` for each run.
        whole: Hash of a normalised question -> index into `names`.
        common: Runs left out because too many rows of their set have them.
    """

    names: list[str]
    length: int
    runs: Hashes
    run_set: np.ndarray
    whole: dict[int, int] = field(default_factory=dict)
    common: int = 0


def evaluations(sets: Iterable[tuple[str, Iterable[Sequence[str]]]], length: int) -> Evaluations:
    """What the rows of evaluation sets are known by.

    Args:
        sets: For each set its name and its rows, each as its texts, the question first.
        length: Words of a run.
    """
    names: list[str] = []
    runs, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    whole: dict[int, int] = {}
    common = 0
    words = Words()
    for name, rows in sets:
        names.append(name)
        found, row_of = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        count = 0
        for texts in rows:
            if texts and len(texts[0].split()) >= LEAST_WORDS:
                whole.setdefault(content_hash(normalised(texts[0])), len(names) - 1)
            here = np.unique(grams_of_words(*words.of(texts), length)[0])
            found.append(here)
            row_of.append(np.full(len(here), count))
            count += 1
        values, rows_with = np.unique(np.concatenate(found), return_counts=True)
        rare = rows_with <= max(FEW, COMMON * count)
        common += int((~rare).sum())
        runs.append(values[rare])
        owners.append(np.full(int(rare.sum()), len(names) - 1))
    values, first = np.unique(np.concatenate(runs), return_index=True)
    return Evaluations(names, length, values, np.concatenate(owners)[first], whole, common)


def met(known: Evaluations, words: Words, rows: Sequence[Sequence[str]]) -> dict[int, tuple[str, str]]:
    """For each row that meets an evaluation set: its index, the set's name, and how.

    Args:
        rows: The texts of each row, the question first.
    """
    if not known.names:
        return {}
    found: dict[int, tuple[str, str]] = {}
    for i, texts in enumerate(rows):
        for text in texts:
            owner = known.whole.get(content_hash(normalised(text)))
            if owner is not None:
                found.setdefault(i, (known.names[owner], "the whole question"))
    flat = [text for texts in rows for text in texts]
    row_of = np.repeat(np.arange(len(rows)), [len(texts) for texts in rows])
    runs, text_of = grams_of_words(*words.of(flat), known.length)
    if len(runs) and len(known.runs):
        at = np.minimum(np.searchsorted(known.runs, runs), len(known.runs) - 1)
        hits = np.flatnonzero(known.runs[at] == runs)
        for hit in hits.tolist():
            name = known.names[int(known.run_set[at[hit]])]
            found.setdefault(int(row_of[text_of[hit]]), (name, f"{known.length} words in a row"))
    return dict(sorted(found.items()))
