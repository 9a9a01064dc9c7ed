"""Which rows are trained on, evaluate and test: by hash, so that rows added later move none out of the test."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from lorasmith.errors import DataError
from lorasmith.preparation import Splitting
from lorasmith.preparing.similar import Groups

TRAIN, EVAL, TEST = 0, 1, 2
NAMES = ("train", "eval", "test")
WHOLE = 2.0**64


def drawn(seed: int, key: str) -> float:
    """A number from 0 to 1 that depends on a seed and a key alone."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / WHOLE


def by_hash(section: Splitting, draws: NDArray[np.float64], groups: Groups) -> NDArray[np.int8]:
    """The side of each row: test below `section.test`, then eval, the rest train.

    Rows of one group stay together. They go to the test if one of them is drawn for it, else to the evaluation if one
    is: so a group that grows never leaves the test, and a row of yesterday's test is in no later training set.

    Args:
        draws: A number from 0 to 1 for each row, the same for rows with one prompt.
        groups: Rows that are near-duplicates or share a prompt.
    """
    side = np.zeros(len(draws), np.int8)
    side[draws < section.test + section.eval] = EVAL
    side[draws < section.test] = TEST
    return _together(side, groups)


def by_time(section: Splitting, times: list[str], groups: Groups) -> NDArray[np.int8]:
    """The newest rows test, those before evaluate, the rest is trained on; a group stands where its newest row does.

    Args:
        times: Dates as ISO 8601 text, or numbers, one for each row.

    Raises:
        DataError: If some are numbers and others not.
    """
    numbers = [one for one in map(_number, times) if one is not None]
    if numbers and len(numbers) < len(times):
        raise DataError(
            f"split.column: {len(numbers)} of {len(times)} times are numbers, the others text. Use one form."
        )
    _, ranks = np.unique(np.array(numbers or times), return_inverse=True)
    ordered, count = np.sort(ranks), len(ranks)
    side = np.zeros(count, np.int8)
    for share, name in ((section.test + section.eval, EVAL), (section.test, TEST)):
        if share and count:
            side[ranks >= ordered[min(count - 1, round(count * (1 - share)))]] = name
    return _together(side, groups)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _together(side: NDArray[np.int8], groups: Groups) -> NDArray[np.int8]:
    """The sides with every row where the one of its group stands that is furthest from training."""
    roots = groups.all()
    best = np.zeros(len(side), np.int8)
    np.maximum.at(best, roots, side)
    return best[roots]


def notes(section: Splitting, side: NDArray[np.int8], groups: Groups) -> list[str]:
    """What a reader of the split should know: a side without rows, or one group that fills it.

    Raises:
        DataError: If there is nothing to train on.
    """
    wanted = [TRAIN, *([EVAL] if section.eval else []), *([TEST] if section.test else [])]
    empty = [NAMES[one] for one in wanted if not (side == one).any()]
    largest = int(np.bincount(groups.all()).max()) if len(side) else 0
    together = f"{largest} of {len(side)} rows share a prompt or are nearly the same, and stay on one side"
    if "train" in empty:
        raise DataError(f"split: no row is left to train on ({together}). Give more rows, or set another seed.")
    found = [f"no row fell to {' and '.join(empty)}: {len(side)} rows are few"] if empty else []
    return found + ([together] if len(side) and largest > len(side) / 3 else [])
