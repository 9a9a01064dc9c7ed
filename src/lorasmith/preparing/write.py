"""The files of a preparation: its splits, what was left out, the manifest, the page and the card."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.data.manifest import MANIFEST
from lorasmith.preparing import split
from lorasmith.preparing.dataset_card import RECIPE, card
from lorasmith.preparing.decide import KEPT, REASONS, Decision, Rows
from lorasmith.preparing.pipeline import WORK, Plan, settings
from lorasmith.preparing.report import html_report
from lorasmith.preparing.summary import Part, Summary
from lorasmith.recipe_sections import recipe_text

BUFFER = 1 << 20  # bytes


def write_splits(rows: Rows, decision: Decision, folder: Path) -> dict[str, Part]:
    """Write train, eval and test beside their places, and tell what is in each."""
    parts: dict[str, Part] = {}
    for side, name in enumerate(split.NAMES):
        chosen = (decision.side == side) & (decision.copies > 0)
        if not chosen.any():
            continue
        digest, size, count = hashlib.sha256(), 0, 0
        with (folder / WORK / f"{name}.jsonl.new").open("wb", BUFFER) as file:
            for start, lines in rows.lines():
                for i in np.flatnonzero(chosen[start : start + len(lines)]).tolist():
                    for _ in range(int(decision.copies[start + i])):
                        file.write(lines[i])
                        digest.update(lines[i])
                        size += len(lines[i])
                        count += 1
        copies = decision.copies[chosen]
        tokens, characters = (int((rows.columns[one][chosen] * copies).sum()) for one in ("tokens", "characters"))
        parts[name] = Part(count, tokens, characters, size, digest.hexdigest())
    return parts


def write_all(chosen: Plan, summary: Summary, rows: Rows, decision: Decision, folder: Path) -> None:
    """Put everything in its place: first the old manifest away, last the new one there, so that it never tells lies."""
    (folder / MANIFEST).unlink(missing_ok=True)
    private = folder / "private"
    private.mkdir(exist_ok=True)
    _write_lines(private / "rejected.jsonl", _rejected(rows))
    _write_lines(private / "removed.jsonl", _removed(rows, decision))
    for name in split.NAMES:
        new, old = folder / WORK / f"{name}.jsonl.new", folder / f"{name}.jsonl"
        if new.exists():
            os.replace(new, old)
        else:
            old.unlink(missing_ok=True)
    _write(folder / "report.html", html_report(summary))
    _write(folder / "dataset_card.md", card(summary))
    header = "# The resolved recipe of this preparation; prepare.py repeats it.\n"
    _write(folder / RECIPE, header + recipe_text(chosen.recipe))
    _write(folder / MANIFEST, json.dumps(manifest(chosen, summary), indent=1, ensure_ascii=False) + "\n")
    shutil.rmtree(folder / WORK)


def manifest(chosen: Plan, summary: Summary) -> dict[str, Any]:
    """What was read and written, with the hash of each file, and all that the page tells."""
    told = asdict(summary)
    files = {f"{name}.jsonl": {"rows": part.rows, "sha256": part.sha256} for name, part in summary.splits.items()}
    read = [{"path": one.path, "bytes": one.bytes, "sha256": one.sha256} for one in chosen.files]
    return {
        "identity": chosen.identity,
        "fingerprint": summary.fingerprint,
        "files": files,
        "read": read,
        "settings": settings(chosen.recipe),
        "summary": {name: value for name, value in told.items() if name not in ("settings", "fingerprint")},
    }


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _write_lines(path: Path, lines: Iterator[dict[str, str]]) -> None:
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    os.replace(beside, path)


def _rejected(rows: Rows) -> Iterator[dict[str, str]]:
    for account in rows.accounts:
        for place, reason in account.rejected:
            yield {"place": place, "reason": reason}


def _removed(rows: Rows, decision: Decision) -> Iterator[dict[str, str]]:
    for account in rows.accounts:
        against = {line: (name, how) for line, name, how in account.met}
        for line, reason in account.removed:
            told = {"place": f"{account.path}:{line}", "reason": reason}
            if line in against:
                told |= {"of": against[line][0], "how": against[line][1]}
            yield told
    for row in np.flatnonzero(decision.why != KEPT).tolist():
        reason = f"{REASONS[decision.why[row]]} duplicate"
        yield {"place": rows.place(row), "reason": reason, "of": rows.place(int(decision.of[row]))}
