"""Rows packed into sequences of a fixed length, best fit over the whole data set."""

import bisect
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows into as few sequences as best-fit decreasing finds, each row whole.

    The longest row first, each into the sequence with the least room that still holds it (Johnson 1974: at most 11/9 of
    the fewest possible). trl packs each thousand rows for themselves.

    Args:
        lengths: Tokens of each row, none above `size`.
        size: Tokens of a sequence.

    Returns:
        Indices of the rows in each sequence, sequences in the order of their first row.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for row in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        at = bisect.bisect_left(rooms, (lengths[row], -1))
        if at < len(rooms):
            left, pack = rooms.pop(at)
        else:
            left, pack = size, len(packs)
            packs.append([])
        packs[pack].append(row)
        if left > lengths[row]:
            bisect.insort(rooms, (left - lengths[row], pack))
    for rows in packs:
        rows.sort()
    return sorted(packs)
