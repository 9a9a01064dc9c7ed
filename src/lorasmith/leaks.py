"""Secrets that must not leave this machine: access tokens in what is shared, or in what a script says."""

import os
import re
from pathlib import Path

NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
SHORTEST = 12  # characters; a shorter value of such a variable is a switch or a count, such as TOKENIZERS_PARALLELISM
SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|AKIA[0-9A-Z]{16}|"
    r"xox[abprs]-[A-Za-z0-9-]{20,}|AIza[A-Za-z0-9_-]{35}|glpat-[A-Za-z0-9_-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
WRITTEN = {".json", ".jsonl", ".md", ".yaml", ".txt", ".html", ".svg", ".csv"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "vocab.json"}  # weights as text: changed, they are broken
LARGEST = 64 << 20  # bytes of a file that is looked into
REMOVED = "[secret removed]"


def values() -> list[str]:
    """The secrets that this process was started with, longest first."""
    found = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def cleaned(text: str) -> str:
    """A text without this process's secrets, and without anything that is shaped like one."""
    for value in values():
        text = text.replace(value, REMOVED)
    return SHAPES.sub(REMOVED, text)


def clean_folder(folder: Path) -> list[str]:
    """Remove secrets from the records in a run's folder, before anybody shares it.

    Rows that the user trains on may hold secrets too; those in private/, which is never shared, are left as they are,
    but for the process's own.

    Returns:
        A line for each file that held one, or that names a path in the user's home.
    """
    lines: list[str] = []
    home = str(Path.home())
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink() or path.stat().st_size > LARGEST:
            continue
        data, name = path.read_bytes(), path.relative_to(folder)
        held = [value for value in values() if value.encode() in data]
        is_private, is_text = name.parts[0] == "private", path.suffix in WRITTEN and path.name not in TOKENIZER
        if held and not is_text:
            lines.append(f"{name} holds an access token; do not share it")
        if not is_text:
            continue
        text = data.decode("utf-8", errors="surrogateescape")
        new = cleaned(text) if not is_private else text
        for value in held:
            new = new.replace(value, REMOVED)
        if new != text:
            path.write_bytes(new.encode("utf-8", errors="surrogateescape"))
            lines.append(f"{name}: an access token was removed from it")
        if not is_private and len(home) > 1 and f"{home}/" in new:
            lines.append(f"{name} names a path below {home}; look at it before you share it")
    return lines
