"""Rows that `scripts/prepare.py` wrote, known again by the manifest beside them."""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def preparation_of(source: str) -> dict[str, Any] | None:
    """Which preparation wrote a file of rows, or None.

    Returns:
        `fingerprint` of the whole preparation, `sha256` of the file as it is now, and `as_written`: whether that is
        the hash in the manifest.
    """
    path = Path(source)
    try:
        known = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
        written = known["files"][path.name]["sha256"]
        with path.open("rb") as file:
            now = hashlib.file_digest(file, "sha256").hexdigest()
        return {"fingerprint": str(known["fingerprint"]), "sha256": now, "as_written": now == written}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def preparation_line(source: str) -> str:
    """What a reader should know of a file that a preparation wrote, or nothing for other files."""
    found = preparation_of(source)
    if found is None:
        return ""
    if not found["as_written"]:
        return f"rows: {source} was changed after it was prepared; its page and card tell of other rows"
    return f"rows: {source} is as it was prepared ({found['fingerprint'][:12]})"
