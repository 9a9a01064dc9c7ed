"""The file events of a run, at any of which it can be killed or asked to stop."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from scorecard.trial import BASIC, digest, place, run


class Events:
    """The file events of a run in its folder; at a chosen one the process is killed, or asked to stop.

    Args:
        at: Index of the event, or -1 to count only.
        mode: before (killed), torn (the newest file is cut in half, then killed), or term (SIGTERM).
    """

    def __init__(self, folder: Path, at: int, mode: str, counter: Path | None = None) -> None:
        self.folder, self.at, self.mode, self.counter = str(folder), at, mode, counter
        self.count = 0

    def install(self) -> None:
        """Called in the run's own process."""
        import safetensors.torch
        import torch

        sys.addaudithook(self._heard)
        for module, name in ((torch, "save"), (safetensors.torch, "save_file")):
            setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function: Any) -> Any:
        """Writers in C++ and Rust open their files unheard: an event before and one behind them."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.event()
            result = function(*args, **kwargs)
            self.event()
            return result

        return wrapped

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if (
            event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
            and args
            and isinstance(args[0], str | bytes | Path)
        ):
            path = os.fsdecode(args[0])
            writes = event != "open" or (isinstance(args[1], str) and set(args[1]) & set("wax+"))
            if writes and path.startswith(self.folder):
                self.event()

    def event(self) -> None:
        """One more; the chosen one is the last."""
        here, self.count = self.count, self.count + 1
        if self.counter:
            self.counter.write_text(str(self.count)) if not self.folder.startswith(str(self.counter)) else None
        if here != self.at:
            return
        if self.mode == "term":
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.mode == "torn":
            files = [path for path in Path(self.folder).rglob("*") if path.is_file()]
            if files:
                newest = max(files, key=lambda path: path.stat().st_mtime_ns)
                os.truncate(newest, newest.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def count_events(script: Any) -> tuple[int, str]:
    """File events of an undisturbed run, and the digest of its adapter."""
    with place() as folder, tempfile.TemporaryDirectory() as other:
        counter = Path(other) / "count"
        ended = run(script, [*BASIC, f"output_dir={folder}"], Events(folder, -1, "before", counter).install)
        assert ended.code == 0, ended.text
        return int(counter.read_text()), digest(folder)
