"""The run folder: claimed once, never overwritten by accident, with its records in run.json and status.json."""

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from lorasmith.errors import RunError
from lorasmith.recipe import Recipe

RECORDS = ("run.json", "status.json")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "lorasmith")


def read_json(path: Path, strict: bool = True) -> dict[str, Any]:
    """A record of a run, or nothing when there is none.

    Args:
        strict: Whether a broken file is an error; else it counts as none.

    Raises:
        RunError: If the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        if not strict:
            return {}
        raise RunError(f"{path}: not valid JSON. Remove it, or choose another output_dir.") from None
    return found if isinstance(found, dict) else {}


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replace a record in one step, so that a reader never sees half of it."""
    beside = path.with_suffix(".part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def finished(folder: Path) -> bool:
    """Whether a run was completed in this folder."""
    return (
        read_json(folder / "status.json", strict=False).get("exit_code") == 0
        and (folder / "adapter_config.json").is_file()
    )


def earlier(folder: Path, requested: Recipe) -> dict[str, Any]:
    """run.json of this very recipe in its output folder, or nothing."""
    run = read_json(folder / "run.json", strict=False)
    return run if run.get("requested_recipe") == requested.model_dump(by_alias=True) else {}


def holds_this_run(folder: Path, requested: Recipe, rows_fingerprint: str, overwrite: bool) -> bool:
    """Whether a folder already holds this very run, finished: same recipe, same rows.

    Raises:
        RunError: If it holds files that no run has written, or, not to be overwritten, another finished run.
    """
    if not folder.exists():
        return False
    if folder.is_file():
        raise RunError(f"{folder} is a file; output_dir must be a folder.")
    _check_is_ours(folder)
    if overwrite:
        return False
    run = read_json(folder / "run.json", strict=finished(folder))
    if finished(folder):
        asked = requested.model_dump(by_alias=True)
        same = asked in (run.get("requested_recipe"), run.get("recipe"))
        if same and run.get("data", {}).get("fingerprint") == rows_fingerprint:
            return True
        raise RunError(
            f"{folder} holds another finished run ({_difference(run, asked)}). "
            "Choose another output_dir, or --overwrite."
        )
    return False


def _check_is_ours(folder: Path) -> None:
    """Never write into, or empty, a folder of something else.

    Raises:
        RunError: If it holds files and no run.
    """
    if any((folder / name).is_file() for name in RECORDS):
        return
    # A run that was killed as it began has left nothing, or a record that was cut off.
    if any(path.suffix != ".part" for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        raise RunError(f"{folder} is not empty and holds no run. Choose another output_dir.")


def clear(folder: Path) -> None:
    """Make an empty run folder, removing what an earlier run left there."""
    if folder.exists():
        for path in sorted(folder.iterdir(), key=lambda path: path.name in RECORDS):  # so that it is ours to the end
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (folder / "private").mkdir(parents=True, exist_ok=True)


def drop_checkpoints(folder: Path) -> None:
    """Remove the resumable checkpoints of a finished run; its adapter stands beside them."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def write_status(folder: Path, exit_code: int | None, reason: str, step: int | None, next_command: str) -> None:
    """How the run stands, for those who only see `accelerate launch`'s exit code. None: still running."""
    record = {"exit_code": exit_code, "reason": reason, "last_step": step, "next_command": next_command}
    write_json(folder / "status.json", record | {"time": now()})


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Installed versions of what a run depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _difference(run: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first setting in which a run differs from a recipe, with both values."""
    for old in (run.get("requested_recipe"), run.get("recipe")):
        if old == asked:
            return "its rows were others"
    old = run.get("requested_recipe") or {}
    for key, value in asked.items():
        before = old.get(key)
        if before != value:
            if isinstance(value, dict) and isinstance(before, dict):
                inner = next(k for k in {**value, **before} if value.get(k) != before.get(k))
                return f"its {key}.{inner} is {before.get(inner)}, here {value.get(inner)}"
            return f"its {key} is {before}, here {value}"
    return "its recipe was another"
