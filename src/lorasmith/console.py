"""The one voice of the scripts: plain lines, and progress with a rate and the time left."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
# Control characters as visible ones: somebody else's rows and file names must not steer the terminal.
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def is_first_process() -> bool:
    """Whether this is rank 0, as the launcher says, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def plain(text: str) -> str:
    """A text whose control characters do nothing on a terminal."""
    return text.translate(_CONTROLS)


def say(line: str = "") -> None:
    """Print one fact, on the first process only, at once."""
    if is_first_process():
        print(line, flush=True)


def complain(line: str) -> None:
    """Print one error or warning line to stderr, on the first process only."""
    if is_first_process():
        print(plain(line), file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, every: float = 5.0, total: int | None = None) -> Iterator[T]:
    """Yield the items, saying every few seconds how many are done, how fast, and how long the rest takes.

    Args:
        label: What an item is, in the plural.
        every: Seconds between lines; shorter work says nothing.
        total: How many there are, where they have no length.
    """
    start = said = time.perf_counter()
    count = len(items) if total is None and isinstance(items, Sized) else total or 0
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and now - said > every:
            rate = done / (now - start)
            left = max(0, count - done) / rate
            say(f"{done}/{count} {label}, {rate:.1f}/s, {int(left // 60)}:{int(left % 60):02d} left")
            said = now
        yield item
