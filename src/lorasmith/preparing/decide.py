"""What becomes of each row once all are known: which are duplicates, and on which side of the split the rest stand."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorasmith.data import convert
from lorasmith.errors import DataError
from lorasmith.preparation import Preparation
from lorasmith.preparing import split
from lorasmith.preparing.account import Account
from lorasmith.preparing.numbers import NUMBERS
from lorasmith.preparing.similar import Groups, Numbers, near_pairs
from lorasmith.preparing.summary import Change
from lorasmith.preparing.texts import content
from lorasmith.preparing.words import PERMUTATIONS, Words, similarity

KEPT, EXACT, NORMALISED, NEAR = 0, 1, 2, 3
REASONS = ("", "exact", "normalised", "near")


class Rows:
    """The parts of a work folder as one table.

    Attributes:
        columns: The numbers of all rows that reached this step, by name (parts.NUMBERS).
        part: The part that each row is in, int32.
        signatures: Shape (rows, 128), or None.
    """

    def __init__(self, work: Path, fields: frozenset[str] | None) -> None:
        self.fields = fields
        self.paths = sorted(work.glob("*.json"))
        self.accounts = [_account(path) for path in self.paths]
        parts = [np.load(path.with_suffix(".npz")) for path in self.paths]
        sizes = [len(one["line"]) for one in parts]
        self.starts = np.cumsum([0, *sizes])
        self.columns = {name: _joined([one[name] for one in parts], kind) for name, kind in NUMBERS.items()}
        has = bool(parts) and all("signature" in one for one in parts)
        self.signatures = None
        if has:
            self.signatures = np.zeros((int(self.starts[-1]), PERMUTATIONS), np.uint16)
            for i, one in enumerate(parts):
                self.signatures[self.starts[i] : self.starts[i + 1]] = one["signature"]
        for one in parts:
            one.close()
        self.part = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
        self.labels = self._names("label", "labels")
        self.languages = self._names("language", "languages")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _names(self, column: str, listed: str) -> list[str]:
        """Make a column's numbers mean the same in all parts; the names that they stand for."""
        names = sorted({name for account in self.accounts for name in getattr(account, listed)})
        index = {name: i for i, name in enumerate(names)}
        for i, account in enumerate(self.accounts):
            here = self.columns[column][self.starts[i] : self.starts[i + 1]]
            known = np.array([index[name] for name in getattr(account, listed)] + [-1], here.dtype)
            here[:] = known[here]
        return names

    def place(self, row: int) -> str:
        """`file:line` of a row."""
        return f"{self.accounts[self.part[row]].path}:{self.columns['line'][row]}"

    def source(self) -> NDArray[np.int32]:
        """The source of each row."""
        return np.array([one.source for one in self.accounts] or [0], np.int32)[self.part]

    def text(self, row: int) -> str:
        """What is said in a row, masked as it is written."""
        with self.paths[self.part[row]].with_suffix(".jsonl").open("rb") as file:
            file.seek(int(self.columns["offset"][row]))
            return "\n".join(content(json.loads(file.readline()), self.fields))

    def lines(self) -> Iterator[tuple[int, list[bytes]]]:
        """The first row of each part, and its rows as lines."""
        for start, path in zip(self.starts.tolist(), self.paths, strict=False):
            yield start, path.with_suffix(".jsonl").read_bytes().splitlines(keepends=True)


def _account(path: Path) -> Account:
    account = Account(**json.loads(path.read_text(encoding="utf-8")))
    account.changes = {name: Change(**change) for name, change in account.changes.items()}  # type: ignore[arg-type]
    return account


def _joined(arrays: list[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


@dataclass(slots=True)
class Decision:
    """What becomes of each row.

    Attributes:
        why: For each row KEPT, or what it is a duplicate by, int8.
        of: The row that is kept of each row's cluster.
        side: For each row split.TRAIN, EVAL or TEST, int8.
        copies: How often a row is written: 0 if it is removed, else 1 or, in train, by its source's weight.
        contradicted: Pairs of kept rows with one text and different labels.
        notes: Sentences on the split.
    """

    why: NDArray[np.int8]
    of: Numbers
    side: NDArray[np.int8]
    copies: NDArray[np.int64]
    contradicted: list[tuple[int, int]]
    notes: list[str]


def decide(recipe: Preparation, rows: Rows) -> Decision:
    """Duplicates and split of all rows.

    Raises:
        DataError: If none is left.
    """
    columns, section = rows.columns, recipe.duplicates
    count = len(rows)
    if not count:
        raise _nothing_left(rows)
    rank = np.arange(count)
    if section.keep == "longest":
        rank = np.empty(count, np.int64)
        rank[np.lexsort((np.arange(count), -columns["characters"].astype(np.int64)))] = np.arange(count)
    why = np.zeros(count, np.int8)
    same, together = Groups(count), Groups(count)
    for wanted, name, level in ((section.exact, "exact", EXACT), (section.normalised, "normal", NORMALISED)):
        if wanted:
            same.join_equal(columns[name])
            why[(why == KEPT) & ~_firsts(columns[name], rank)] = level
    if rows.signatures is not None:
        asked = np.flatnonzero((why == KEPT) & (columns["words"] >= section.min_words))
        _join_near(recipe, rows, asked, same, together)
    of, kept = _kept(same, rank)
    why[(why == KEPT) & ~kept] = NEAR
    why[kept] = KEPT
    roots = same.all()
    moved = np.flatnonzero(roots != np.arange(count))
    for row, root in zip(moved.tolist(), roots[moved].tolist(), strict=True):
        together.join(row, root)
    for name in ("prompt", "content", *(("group",) if recipe.split.by == "group" else ())):
        together.join_equal(columns[name])
    if recipe.split.by == "time":
        side = split.by_time(recipe.split, [one for account in rows.accounts for one in account.times], together)
    else:
        side = split.by_hash(recipe.split, columns["draw"], together)
    notes = split.notes(recipe.split, side, together)
    copies = np.where(why == KEPT, _copies(recipe, rows, side), 0)
    return Decision(why, of, side, copies, _contradicted(rows, why), notes)


def _nothing_left(rows: Rows) -> DataError:
    rejected = [told for account in rows.accounts for told in account.rejected]
    read = sum(account.rows for account in rows.accounts)
    if rejected and len(rejected) == read:
        return DataError(f"all {read} rows are broken. The first: {rejected[0][0]}: {rejected[0][1]}")
    reasons = Counter(reason for account in rows.accounts for _, reason in account.removed)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return DataError(f"no row is left of {read}: {told or 'the sources are empty'}. Look at the steps under `clean:`.")


def _firsts(keys: NDArray[np.uint64], rank: Numbers) -> NDArray[np.bool_]:
    """Whether a row is the one of lowest rank with its key."""
    order = np.lexsort((rank, keys))
    first = np.ones(len(keys), bool)
    first[order[1:][keys[order][1:] == keys[order][:-1]]] = False
    return first


def _join_near(recipe: Preparation, rows: Rows, asked: Numbers, same: Groups, together: Groups) -> None:
    """Join near-duplicates; of rows with different labels both are kept, on one side of the split."""
    assert rows.signatures is not None
    words = Words()

    def exact(first: int, second: int) -> float:
        hashes, starts = words.of([rows.text(first), rows.text(second)])
        return similarity(hashes[: starts[1]], hashes[starts[1] :])

    labels = rows.columns["label"][asked]
    for value in np.unique(labels):
        for first, second in near_pairs(rows.signatures, asked[labels == value], recipe.duplicates.threshold, exact):
            same.join(first, second)
    if len(np.unique(labels)) > 1:
        for first, second in near_pairs(rows.signatures, asked, recipe.duplicates.threshold, exact):
            together.join(first, second)


def _contradicted(rows: Rows, why: NDArray[np.int8]) -> list[tuple[int, int]]:
    """Pairs of kept rows with one text and different labels."""
    contents = rows.columns["content"]
    kept = np.flatnonzero((why == KEPT) & (rows.columns["label"] >= 0))
    order = kept[np.argsort(contents[kept], kind="stable")]
    same = np.flatnonzero(contents[order][1:] == contents[order][:-1])
    return sorted(zip(order[same].tolist(), order[same + 1].tolist(), strict=True))


def _kept(same: Groups, rank: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
    """For each row the row of lowest rank in its group, and whether it is this one."""
    roots = same.all()
    order = np.lexsort((rank, roots))
    first = np.ones(len(roots), bool)
    first[1:] = roots[order][1:] != roots[order][:-1]
    best = np.zeros(len(roots), np.int64)
    best[roots[order[first]]] = order[first]
    of = best[roots]
    return of, of == np.arange(len(roots))


def _copies(recipe: Preparation, rows: Rows, side: NDArray[np.int8]) -> Numbers:
    """How often each row is written: in train as its source's weight says, the fraction by the row's hash."""
    weights = np.array([weight for _, weight in recipe.weighted_sources])[rows.source()]
    whole = np.floor(weights)
    lot = (rows.columns["exact"] >> np.uint64(11)).astype(np.float64) / 2.0**53
    drawn = whole + (lot < weights - whole)
    return np.where(side == split.TRAIN, drawn, 1).astype(np.int64)


def fields_of(recipe: Preparation, kinds: list[str]) -> frozenset[str] | None:
    """The top-level fields that hold text in what is written."""
    shapes = [recipe.read.to] if recipe.read.to else kinds
    found: frozenset[str] = frozenset()
    for shape in shapes:
        fields = convert.text_fields(shape)
        if fields is None:
            return None
        found |= fields
    return found
