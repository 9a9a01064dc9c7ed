"""When this process began, and a quicker way through the imports that its start consists of."""

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

_IMPORTED = time.monotonic()


def process_seconds() -> float:
    """Seconds since this process began; where the system does not tell (it does on Linux), since our first import."""
    try:
        # Field 22 of proc_pid_stat(5): ticks from the boot to the start; the second one may hold spaces and brackets.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage, and never look through what was imported later, the end included.

    torch, transformers and peft bring a million objects that live as long as the process. Python's collector goes
    through them again and again: a second while they are imported, and more than one at the exit.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once a process: a later freeze would keep garbage
            gc.freeze()
        gc.enable()
