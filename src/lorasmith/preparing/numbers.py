"""Rows as numbers: hashes to compare them by, draws to split them by, lengths, labels and signatures."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from lorasmith.errors import DataError
from lorasmith.preparation import Preparation
from lorasmith.preparing.account import Account, Kept
from lorasmith.preparing.clean import normalised
from lorasmith.preparing.split import drawn
from lorasmith.preparing.words import Words, content_hash, signatures

Count = Callable[[list[str]], list[int]]

NUMBERS: dict[str, Any] = {
    "line": np.uint32,
    "exact": np.uint64,
    "normal": np.uint64,
    "content": np.uint64,
    "prompt": np.uint64,
    "group": np.uint64,
    "draw": np.float64,
    "characters": np.uint32,
    "tokens": np.uint32,
    "words": np.uint32,
    "offset": np.uint64,
    "label": np.int32,
    "language": np.int16,
}


def numbers(
    recipe: Preparation, words: Words, count_tokens: Count, rows: list[Kept], lines: list[bytes], account: Account
) -> dict[str, Any]:
    """What later steps need to know of each row: an array for each name of NUMBERS, and signatures.

    The names that `label` and `language` stand for are put into the account.
    """
    seed, split = recipe.seed, recipe.split
    joined = ["\n".join(row.texts) for row in rows]
    hashes, starts = words.of(joined)
    labels = [row.label for row in rows]
    account.labels = sorted(set(labels) - {""})
    values = [row.column for row in rows]
    groups = values if split.by == "group" else [""] * len(rows)
    account.times = values if split.by == "time" else []
    account.languages = sorted({row.language for row in rows})
    beside = [f"{label}\0{_tools(row.record)}" for row, label in zip(rows, labels, strict=True)]
    plain = [normalised(text) for text in joined]
    asked = [normalised(row.prompt) or text for row, text in zip(rows, plain, strict=True)]
    columns: dict[str, Any] = {
        "line": [row.line for row in rows],
        "exact": [content_hash(f"{one}\0{row.raw}") for row, one in zip(rows, beside, strict=True)],
        "normal": [content_hash(f"{one}\0{text}") for text, one in zip(plain, beside, strict=True)],
        "content": [content_hash(text) for text in plain],
        "prompt": [content_hash(text) for text in asked],
        "group": [content_hash(one) for one in groups],
        "draw": [drawn(seed, group or text) for group, text in zip(groups, asked, strict=True)],
        "characters": [len(text) for text in joined],
        "tokens": count_tokens(joined),
        "words": np.diff(starts),
        "offset": np.cumsum([0, *map(len, lines)])[:-1] if lines else [],
        "label": [account.labels.index(one) if one else -1 for one in labels],
        "language": [account.languages.index(row.language) for row in rows],
    }
    found: dict[str, Any] = {name: np.array(columns[name], dtype=kind) for name, kind in NUMBERS.items()}
    if recipe.duplicates.near:
        found["signature"] = signatures(hashes, starts)
    return found


def label_of(record: dict[str, Any], name: str | None) -> str:
    """A row's label as text, or nothing where it has none."""
    value = record.get(name) if name else None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else ""


def _tools(record: dict[str, Any]) -> str:
    """A row's tools as text: with others, the same conversation is another row."""
    tools = record.get("tools")
    return json.dumps(tools, sort_keys=True, default=str) if tools else ""


def column_of(record: dict[str, Any], name: str | None, place: str) -> str:
    """A row's value in the column that the split goes by.

    Raises:
        DataError: If the row has none.
    """
    value = record.get(name) if name else None
    if value is None or isinstance(value, dict | list):
        raise DataError(f"{place}: {name}: missing, the column that split.by needs. Give it to every row.")
    return str(value)
