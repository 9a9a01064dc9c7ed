"""Of the processes on one machine the first reads and tokenizes the rows; the others map what it wrote.

They meet in a folder, since no process group is up when rows are read. The first holds a lock in it for as long as it
lives, so that the others know when it is gone.
"""

import atexit
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lorasmith.console import complain
from lorasmith.errors import RankError, StoppedNow
from lorasmith.listening import listener
from lorasmith.user_cache import user_cache

T = TypeVar("T")
BEGINS = 60.0  # seconds that processes wait for one another to begin; whoever waited in vain works for itself
COMES = 10.0  # seconds that the first process, when it failed, waits for the others to know
LOOKS = 0.05  # seconds between two looks
PREFIX = "lorasmith-ranks-"
LOCK, MADE, APART, HERE, SEEN = "lock", "made", "apart", "here", "seen"


def first_reads(read: Callable[[], T]) -> Callable[[], T]:
    """What gives the rows that were read: at once in the first process of a machine, when asked for in the others."""
    reading = functools.cache(read)
    if _local_processes() > 1:
        if _is_first():
            _begin()
        else:
            _join()
    if _is_first():
        reading()
    return reading


def shared(
    make: Callable[[], T], build: Callable[[Any], Any] | None = None, lists: Sequence[str] = ("train", "eval")
) -> T:
    """What `make` gives, made by the first process of a machine and mapped by the others.

    Args:
        make: Gives what was prepared, or a tuple that begins with it.
        build: Makes what the trainer takes of the rows in `lists`, where that is more than their columns.

    Raises:
        RankError: If the first process was killed before the rows were ready.
    """
    others = _local_processes() - 1
    if not others:
        return make()
    if not _is_first():
        folder = _awaited(_meeting())
        return _taken(folder) if folder is not None else make()
    made = make()
    if _leading is None:
        return made
    try:
        _map_lists(made, _leading.folder, build, lists)
        _leading.publish(made)
    except OSError as error:
        _leading.leave_apart()
        complain(f"warning: rows are not shared among processes ({error.strerror or error}); each reads them itself")
    _leading.wait_for(others)
    return made


def dataset_of(rows: Any, build: Callable[[Any], Any], fingerprint: str) -> Any:
    """The data set of rows: mapped where they are, else built."""
    mapped = getattr(rows, "dataset", None)
    return mapped(fingerprint) if mapped is not None else build(rows)


def abandon(code: int) -> None:
    """Called when a process ends: if the rows of others hang on it, they end with the same code and tell nothing."""
    if _leading is not None:
        _leading.end(code)


class _Leading:
    """The first process's hold on the folder."""

    def __init__(self, folder: Path) -> None:
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".part"))
        try:
            self.lock = os.open(beside / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            beside.rename(folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self.folder = folder
        self.process = os.getpid()

    def publish(self, made: Any) -> None:
        """Let the others have what was made."""
        from lorasmith.data.mapped import write_made

        write_made(made, self.folder / f"{MADE}.part")
        (self.folder / f"{MADE}.part").rename(self.folder / MADE)

    def leave_apart(self) -> None:
        """Let the others work for themselves."""
        for path in self.folder.glob("*.arrow"):
            path.unlink()
        (self.folder / f"{MADE}.part").unlink(missing_ok=True)
        (self.folder / APART).touch()

    def wait_for(self, others: int) -> None:
        """Remove the files' names once all have seen them: what is mapped stays until the last process ends."""
        if self._all_are(SEEN, others, BEGINS):
            self.end(0)  # else the files stay until this process ends

    def _all_are(self, what: str, others: int, seconds: float) -> bool:
        start = time.monotonic()
        while len(list(self.folder.glob(f"{what}.*"))) < others:
            if time.monotonic() - start > seconds:
                return False
            _look_out()
        return True

    def end(self, code: int) -> None:
        """Tell whoever waits how this process ended, and leave nothing.

        After a failure of its own it waits for those that come late, which would find nothing and wait in vain.
        """
        if os.getpid() != self.process or not self.folder.exists():
            return
        if code and not listener.asked:
            self._all_are(HERE, _local_processes() - 1, COMES)
        with contextlib.suppress(OSError):
            os.pwrite(self.lock, str(code).encode(), 0)
        shutil.rmtree(self.folder, ignore_errors=True)


_leading: _Leading | None = None
_joined: int | None = None  # the open lock of the first process


def _begin() -> None:
    """Open the folder in which the others wait; without one, each process works for itself."""
    global _leading
    folder = _meeting()
    try:
        _sweep(folder.parent)
        _leading = _Leading(folder)
        atexit.register(abandon, 0)
    except OSError as error:
        complain(f"warning: rows are not shared among processes ({error.strerror or error}); each reads them itself")


def _sweep(parent: Path) -> None:
    """Remove what runs left that were killed: folders whose lock nobody holds."""
    for path in (one for one in parent.glob(f"{PREFIX}*") if one.suffix != ".part"):
        try:
            lock = os.open(path / LOCK, os.O_RDWR)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)


def _join() -> None:
    """Take hold of the folder that the first process opens, so as to see how it ends; for a while, if there is none."""
    global _joined
    folder, start = _meeting(), time.monotonic()
    while time.monotonic() - start < BEGINS:
        with contextlib.suppress(OSError):
            _joined = os.open(folder / LOCK, os.O_RDONLY)
            _mark(folder, HERE)
            return
        _look_out()


def _awaited(folder: Path) -> Path | None:
    """The folder once all is in it, or None if this process must work for itself."""
    if _joined is None:
        return None
    while not (folder / MADE).exists():
        if (folder / APART).exists():
            _mark(folder, SEEN)
            return None
        if _is_free(_joined) and not (folder / MADE).exists():
            _follow(os.pread(_joined, 16, 0))
        _look_out()
    return folder


def _follow(code: bytes) -> None:
    """End as the first process did, which has said why.

    Raises:
        RankError: If it could not.
    """
    if code:
        raise SystemExit(int(code))
    raise RankError("the first process of this machine died before the rows were ready. Start the run again.")


def _taken(folder: Path) -> Any:
    """What the first process made; the folder must be this user's own, since objects are made of it."""
    from lorasmith.data.mapped import read_made

    if folder.stat().st_uid != os.getuid():
        raise RankError(f"{folder} belongs to another user. Set LORASMITH_CACHE to a folder of your own.")
    made = read_made(folder / MADE)
    _mark(folder, SEEN)
    return made


def _mark(folder: Path, what: str) -> None:
    with contextlib.suppress(OSError):  # the folder then stays until the first process ends
        (folder / f"{what}.{os.environ['LOCAL_RANK']}").touch()


def _map_lists(made: Any, folder: Path, build: Callable[[Any], Any] | None, lists: Sequence[str]) -> None:
    """Put mapped rows in the place of every list of token rows in what was prepared."""
    from lorasmith.data.mapped import map_rows

    prepared = made[0] if isinstance(made, tuple) else made
    for one in dataclasses.fields(prepared):
        rows = getattr(prepared, one.name)
        if rows and one.name.startswith(("train", "eval")) and one.name != "eval_rows":
            builder = build if one.name in lists else None
            setattr(prepared, one.name, map_rows(rows, folder, one.name, builder))


def _meeting() -> Path:
    """The folder in which the processes of this launch meet, the same for all and never met again."""
    parent = user_cache() / "ranks"
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        parent = Path(tempfile.gettempdir())
    parent = parent if os.access(parent, os.W_OK) else Path(tempfile.gettempdir())
    launcher = os.getppid()
    names = ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    known = [socket.gethostname(), launcher, _started(launcher), *map(os.environ.get, names)]
    return parent / f"{PREFIX}{hashlib.sha256(repr(known).encode()).hexdigest()[:24]}"


def _started(process: int) -> str:
    """When a process began, in ticks since the boot (field 22 of proc_pid_stat(5)); empty where there is no /proc."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _is_free(lock: int) -> bool:
    """Whether nobody holds a lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(lock, fcntl.LOCK_UN)
    return True


def _look_out() -> None:
    """Between two looks.

    Raises:
        StoppedNow: If this process should not wait on.
    """
    if listener.reason():
        raise StoppedNow(listener.too_early())
    time.sleep(LOOKS)


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def _is_first() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
