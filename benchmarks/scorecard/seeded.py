"""The judge of the judges: bugs on purpose, one edit each on a copy of the tree, and whether a test turns red."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from scorecard.trial import ROOT, chosen, counted, each

BUGS = Path(__file__).with_name("seeded_bugs.yaml")
NOT_COPIED = (".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache")


def bugs() -> list[dict[str, Any]]:
    """The list, each with entry, bug, file, old, new and tests."""
    found: list[dict[str, Any]] = yaml.safe_load(BUGS.read_text(encoding="utf-8"))
    return found


def turns_red(bug: dict[str, Any]) -> bool:
    """Whether one of a bug's tests fails on a copy of the tree that has it."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        path = copy / bug["file"]
        text = path.read_text(encoding="utf-8")
        assert text.count(bug["old"]) == 1, f"{bug['bug']}: {bug['file']} has {text.count(bug['old'])} such places"
        path.write_text(text.replace(bug["old"], bug["new"]), encoding="utf-8")
        done = _tested(copy, bug["tests"])
        assert done.returncode in (0, 1), f"{bug['bug']}: {done.stdout[-500:]}"  # 1: tests failed; else none were found
        return done.returncode == 1


def _tested(tree: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def r21(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Seeded bugs, one edit each: how many turn at least one test red."""
    items = chosen(bugs(), sample, seed)
    green = _tested(ROOT, sorted({test for bug in items for test in bug["tests"]}))
    control = [] if green.returncode == 0 else [f"without any bug: {green.stdout[-800:]}"]
    survived = each(items, lambda bug: "" if turns_red(bug) else f"{bug['entry']}: {bug['bug']}")
    result = counted("killed", items, survived)
    result["survived"] = survived
    result["failures"] = control + (survived if len(survived) > 0.1 * len(items) else [])
    return result
