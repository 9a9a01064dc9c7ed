"""Rows that the test suite holds: each counts the tests that are marked with it."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scorecard.trial import ROOT

WHAT = {
    "R6": "Broken rows, preferences and recipes, and 10,000 lines changed at random: one line that names file and line, or read as it stands.",
    "R7": "Golden masks of templates and shapes of conversations, found a second way; changed templates refused.",
    "R8": "Losses of every script over twenty updates equal trl's own, by batch size and accumulation; packed rows do not see each other.",
    "R10": "Merges of every shape, method and precision against the live adapter, in a fresh process; tensors against peft's.",
    "R11": "Adapters for other weights, with missing or unknown tensors, or without effect: refused.",
    "R13": "Rows read, trained, truncated and dropped add up, each reason counted.",
    "R14": "Planted duplicates, shared prompts, contaminated rows and private data: found; rows that straddle a split: none.",
    "R15": "Hostile models, adapters, templates, recipes, rows and checkpoints: nothing runs, escapes, leaks or hangs.",
    "R16": "Offline: no connection is tried; what is missing is listed at once.",
    "R17 preferences": "A micro-batch of pairs that is out of memory: done in halves, with the losses of a run that had memory, to 1e-5.",
    "R19": "The resolved recipe run again: the same adapter, byte for byte.",
    "kill preferences": "kill -9, or TERM, in the middle of dpo, orpo, cpo, kto and reward, then the same command: the adapter is the same.",
}


def row(name: str) -> Callable[[Any, int, int], dict[str, Any]]:
    """The row that counts the tests marked `scorecard(row=name)`."""

    def count(script: Any, sample: int, seed: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            junit = Path(folder) / "junit.xml"
            words = ["-m", f"scorecard(row='{name}')", f"--junitxml={junit}", "-p", "no:cacheprovider", "tests"]
            done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
            suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        failures = [] if done.returncode == 0 and total else [done.stdout[-1500:]]
        return {"passed": total - skipped - failed, "of": total - skipped, "skipped": skipped, "failures": failures}

    count.__doc__ = WHAT[name]
    return count


CHECKED = {name: row(name) for name in WHAT}
