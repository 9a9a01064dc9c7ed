"""Rows that are the same, or nearly: found over all sources by hashes and by MinHash with locality-sensitive hashing.

Each signature is cut into bands of four minima, which are one 64-bit number: two rows with a band in common are
candidates. Rows of Jaccard similarity J become candidates with probability 1 - (1 - J^4)^32: 0.9998 at 0.7, 0.988 at
0.6, 0.23 at 0.3 (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). Bands are compared by
sorting them, which takes a few bytes a row; hash tables, as datasketch's and rensa's, take some hundreds.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lorasmith.preparing.words import EMPTY, PERMUTATIONS

UNSURE = 0.15  # four standard errors of the estimate: nearer to the threshold than this, the texts themselves are asked
AT_ONCE = 1 << 18  # pairs compared in one go

Numbers = NDArray[np.int64]


class Groups:
    """Sets of rows that grow together (union-find, with path halving). The first row of each stands for it."""

    def __init__(self, count: int) -> None:
        self.parent: Numbers = np.arange(count)

    def join(self, first: int, second: int) -> None:
        """Make one set of two rows' sets."""
        a, b = self.find(first), self.find(second)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def find(self, row: int) -> int:
        """The first row of a row's set."""
        parent = self.parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def all(self) -> Numbers:
        """The first row of each row's set."""
        roots = self.parent
        while True:
            above = roots[roots]
            if np.array_equal(above, roots):
                self.parent = roots
                return roots
            roots = above

    def join_equal(self, keys: NDArray[np.uint64]) -> None:
        """Make one set of all rows with the same key."""
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        for first, second in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            self.join(first, second)


def near_pairs(
    signatures: NDArray[np.uint16],
    rows: Numbers,
    threshold: float,
    exact: Callable[[int, int], float],
) -> list[tuple[int, int]]:
    """Pairs of near-duplicates, enough of them to connect each cluster.

    Args:
        signatures: Shape (all rows, 128).
        rows: The rows to compare, each of another text.
        threshold: Least Jaccard similarity.
        exact: The similarity of two rows' texts; asked only where the estimate is too near to the threshold.
    """
    told = rows[~(signatures[rows] == EMPTY).all(axis=1)]
    bands = np.ascontiguousarray(signatures[told]).view(np.uint64)
    groups = Groups(len(told))
    found: list[tuple[int, int]] = []
    judged: set[tuple[int, int]] = set()
    for band in range(PERMUTATIONS // 4):
        pairs = _candidates(np.ascontiguousarray(bands[:, band]), groups)
        for start in range(0, len(pairs), AT_ONCE):
            part = pairs[start : start + AT_ONCE]
            alike = (signatures[told[part[:, 0]]] == signatures[told[part[:, 1]]]).mean(axis=1)
            sure = alike >= min(1.0, threshold + UNSURE)
            maybe = ~sure & (alike >= threshold - UNSURE)
            chosen = [tuple(pair) for pair in part[sure].tolist()]
            for a, b in part[maybe].tolist():
                if groups.find(a) != groups.find(b) and (a, b) not in judged:
                    judged.add((a, b))
                    if exact(int(told[a]), int(told[b])) >= threshold:
                        chosen.append((a, b))
            for a, b in chosen:
                groups.join(a, b)
                found.append((int(told[a]), int(told[b])))
    return found


def _candidates(keys: NDArray[np.uint64], groups: Groups) -> Numbers:
    """Pairs of rows with the same key and not yet in one group: each with the first of its key, and with the next."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    if not same.any():
        return np.zeros((0, 2), np.int64)
    first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    at = np.flatnonzero(same)
    pairs = np.concatenate([np.stack([first[at], order[at]], 1), np.stack([order[at - 1], order[at]], 1)])
    roots = groups.all()
    pairs = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
    return np.unique(pairs, axis=0)
