"""Run a model's programs against their unit tests, each in a locked process of its own that leaves nothing behind."""

import contextlib
import functools
import marshal
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorasmith.errors import RecipeError

MIB = 2**20
FILES = 100  # in a program's folder at one time
PULSE = 0.05  # seconds between two looks at a program's folder
LOCKED = Path(__file__).with_name("locked.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: By the clock, its start included.
        memory_mib: Of address space; Python itself takes about 30.
        output_mib: Written to standard output and error together.
        files_mib: In its folder, and in one file.
        unprotected: Run it even where the system offers no protection.
    """

    seconds: float = 5.0
    memory_mib: int = 512
    output_mib: float = 1.0
    files_mib: int = 16
    unprotected: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a program passed its tests, and the first thing that went wrong, in one line."""

    passed: bool
    reason: str = ""


@functools.cache
def protection() -> str:
    """What this machine keeps programs in: `landlock`, `seccomp` or `none`; tried out with a program at the first call.

    landlock: One process of one thread without network; it writes in its folder and reads Python's library.
    seccomp: The same, but it writes nowhere and reads what its user may read.
    none: Limits on time and memory, and Python's own audit hook, which a program that means harm gets around.
    """
    if sys.platform == "linux":
        for kind in ("landlock", "seccomp"):
            if run_as(kind, "", "", Limits(seconds=30.0)).passed:
                return kind
    return "none"


def accepted(kind: str, limits: Limits) -> str:
    """The kind of protection.

    Raises:
        RecipeError: If it is none, and the limits do not ask to do without.
    """
    if kind == "none" and (not limits.unprotected or os.name != "posix"):
        raise RecipeError(
            "this machine can lock no program up (that takes Linux on x86_64 or aarch64 with seccomp), and a model's "
            "programs are not run without it. Train where it can, or set `unprotected: true` on the reward in a "
            "machine that you can throw away."
        )
    return kind


def run(code: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Run a program, then its tests in the same module: statements, `test_` functions and unittest's cases.

    The standard library is there, other packages are not. The tests may import the program as `solution`.

    Raises:
        RecipeError: If nothing here protects the machine.
    """
    limits = limits or Limits()
    return run_as(accepted(protection(), limits), code, tests, limits)


def run_all(programs: Sequence[tuple[str, str]], limits: Limits | None = None, workers: int = 0) -> list[Outcome]:
    """The outcome of each (code, tests), as many at a time as this process has cores, or `workers`.

    Raises:
        RecipeError: As `run`.
    """
    limits = limits or Limits()
    kind = accepted(protection(), limits)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers or cores) as pool:
        return list(pool.map(lambda program: run_as(kind, program[0], program[1], limits), programs))


def run_as(kind: str, code: str, tests: str, limits: Limits) -> Outcome:
    """`run` under a given kind of protection."""
    proof = secrets.token_hex(16)
    task = {
        "code": code,
        "tests": tests,
        "proof": proof,
        "protection": kind,
        "cpu_seconds": math.ceil(limits.seconds) + 1,
        "memory": limits.memory_mib * MIB,
        "file": limits.files_mib * MIB,
    }
    with tempfile.TemporaryDirectory(prefix="lorasmith-program-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(LOCKED)],
            cwd=folder,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, passed_limit = watch(process, marshal.dumps(task), Path(folder), limits)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    last = output[-300:].decode("utf-8", "replace").rpartition("\n")[2]
    if passed_limit:
        return Outcome(False, passed_limit)
    if process.returncode == 0 and last == proof:
        return Outcome(True)
    if process.returncode < 0:
        return Outcome(False, f"ended by {signal.Signals(-process.returncode).name}")
    return Outcome(False, last or f"ended itself with code {process.returncode}")


def watch(process: subprocess.Popen[bytes], task: bytes, folder: Path, limits: Limits) -> tuple[bytes, str]:
    """Hand the task over and wait; (its output up to the limit, the limit that it passed, if any)."""
    end = time.monotonic() + limits.seconds
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # ended before it had read all: the code says why
        process.stdin.write(task)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    output, descriptor = bytearray(), process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if selector.get_map():
                if selector.select(min(left, PULSE)):
                    read = os.read(descriptor, 65536)
                    output += read
                    if not read:
                        selector.unregister(descriptor)
                    if len(output) > limits.output_mib * MIB:
                        return bytes(output), f"wrote more than {limits.output_mib:g} MiB to its output"
            else:  # it has closed its output, and may well go on
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, PULSE))
                    return bytes(output), ""
            if too_full(folder, limits):
                return bytes(output), f"made more than {FILES} files or {limits.files_mib} MiB of them"
    return bytes(output), f"took more than {limits.seconds:g} s"


def too_full(folder: Path, limits: Limits) -> bool:
    """Whether a program's folder, which is flat, holds more than it may."""
    size = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, 1):
            with contextlib.suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_size
            if count > FILES or size > limits.files_mib * MIB:
                return True
    return False
