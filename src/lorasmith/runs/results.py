"""Results of rows on the disk, appended as they come, so that an evaluation that was left goes on where it was."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

ROW = "row"  # the key that names a row within its file


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits of anything that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class ResultFile:
    """The results of one contestant on one set of rows: lines of JSON, each about one row.

    What is known of a row may stand in several lines, which are put together. A line that was cut off as the process
    died is taken out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        self._file = path.open("a", encoding="utf-8")

    def _read(self) -> None:
        if not self.path.is_file():
            return
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    one = json.loads(line)
                    key = one[ROW]
                except (ValueError, TypeError, KeyError):
                    break
                if not line.endswith(b"\n"):
                    break
                self.known.setdefault(key, {}).update(one)
                whole += len(line)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def lacking(self, keys: Iterable[str], field: str) -> list[str]:
        """Keys of rows of which a field is not known, each once."""
        return [key for key in dict.fromkeys(keys) if field not in self.known.get(key, {})]

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Note what was found of a row, on the disk too."""
        self.known.setdefault(key, {ROW: key}).update(result)
        self._file.write(json.dumps({ROW: key} | result, ensure_ascii=False) + "\n")
        self._file.flush()

    def of(self, keys: Iterable[str]) -> list[dict[str, Any]]:
        """What is known of rows, in their order."""
        return [self.known[key] for key in keys]

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
