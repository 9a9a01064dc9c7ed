"""Checkpoints that are whole or do not count: a manifest with every file's size and SHA-256 is written last."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from lorasmith.console import is_first_process

MANIFEST = "manifest.json"
CONTRACT = "contract.json"  # what must be the same for the run to go on
INTERRUPTED = "interrupted"  # an empty file in the checkpoint of a safe stop
REQUIRED = {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json"}
NAME = re.compile(r"checkpoint-(\d+)")


def commit(folder: Path) -> None:
    """Make a written checkpoint count: all of it on the disk, then its manifest, in one step.

    Raises:
        FileNotFoundError: If a file that resuming needs is missing.
    """
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    missing = REQUIRED - files.keys()
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(sorted(missing))} was not written")
    record = {}
    for name, path in files.items():
        _sync(path)
        record[name] = [path.stat().st_size, _digest(path)]
    beside = folder / f".{MANIFEST}"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, folder / MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as it was committed."""
    try:
        record: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (int(size), str(digest)) for name, (size, digest) in record.items()}
    except FileNotFoundError:
        return "it was not finished"
    except (ValueError, TypeError, AttributeError, OSError):
        return f"{MANIFEST} is broken"
    if not files.keys() >= REQUIRED:
        return f"{MANIFEST} is broken"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or _digest(path) != digest:
            return f"{name} is broken"
    return None


def step_of(folder: Path) -> int:
    """The update after which a checkpoint was written."""
    found = NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def checkpoints(output: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, newest first."""
    found = [path for path in output.glob("checkpoint-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def newest_good(output: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each that was passed over, which is set aside."""
    notes: list[str] = []
    for folder in checkpoints(output):
        why = problem(folder)
        if why is None:
            return folder, notes
        if is_first_process():  # the other ranks pass over the same ones
            aside = _set_aside(folder)
            notes.append(f"{folder.name}: {why}; set aside as {aside.name}")
    return None, notes


def rotate(output: Path, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` committed checkpoints and the best one. Called after a commit."""
    committed = [folder for folder in checkpoints(output) if (folder / MANIFEST).is_file()]
    for folder in committed[keep:]:
        if best is None or folder.name != Path(best).name:
            (folder / MANIFEST).unlink()  # from here on it does not count, however far the removal comes
            shutil.rmtree(folder, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _set_aside(folder: Path) -> Path:
    number = 0
    while (aside := folder.with_name(f"broken-{folder.name}" + (f"-{number}" if number else ""))).exists():
        number += 1
    folder.rename(aside)
    return aside


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
