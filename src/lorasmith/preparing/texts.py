"""The texts inside a record: walked, and rewritten in place of the old ones."""

import json
from collections.abc import Callable
from typing import Any

SAID = frozenset({"content", "value", "text", "reasoning_content", "reasoning", "thinking"})  # in messages and parts
TURNS = ("messages", "prompt", "completion", "chosen", "rejected")  # fields that may be messages
STRUCTURE = frozenset({"role", "from", "type", "weight", "loss_weight"})  # what is no text though it may be a string


Change = Callable[[str, str], str]


def rewritten(record: dict[str, Any], fields: frozenset[str] | None, change: Change) -> dict[str, Any]:
    """The record with what is said in it passed through `change`, which gets a text and its top-level field.

    Args:
        fields: Top-level fields that hold text; None: all.
    """
    return {
        name: _said(value, name, change) if fields is None or name in fields else value
        for name, value in record.items()
    }


def _said(value: Any, field: str, change: Change) -> Any:
    if isinstance(value, str):
        return change(value, field)
    if isinstance(value, list):
        return [_said(one, field, change) if not isinstance(one, str) else change(one, field) for one in value]
    if isinstance(value, dict):
        return {name: _said(one, field, change) if name in SAID else one for name, one in value.items()}
    return value


def said(record: dict[str, Any], fields: frozenset[str] | None) -> list[str]:
    """What is said in a record, in order."""
    found: list[str] = []

    def take(text: str, field: str) -> str:
        found.append(text)
        return text

    rewritten(record, fields, take)
    return found


def content(record: dict[str, Any], fields: frozenset[str] | None) -> list[str]:
    """What is said in a record, and its calls of tools: what rows are the same or differ by."""
    found = said(record, fields)
    for name in TURNS:
        for turn in record.get(name) or () if isinstance(record.get(name), list) else ():
            if isinstance(turn, dict) and turn.get("tool_calls"):
                found.append(json.dumps(turn["tool_calls"], ensure_ascii=False, sort_keys=True, default=str))
    return found


def everywhere(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string in it passed through `change`, but for roles and types."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [everywhere(one, change) for one in value]
    if isinstance(value, dict):
        return {name: one if name in STRUCTURE else everywhere(one, change) for name, one in value.items()}
    return value
