"""What reward functions need of a completion and of a column."""

import re
from collections.abc import Sequence
from typing import Any

_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def text_of(completion: Any) -> str:
    """A completion's text: itself, or what its assistant turns say, one below the other.

    Args:
        completion: As trl hands it over: a text, or messages, whose content may be a list of parts.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(content_of(turn) for turn in completion if turn.get("role", "assistant") == "assistant")


def content_of(turn: dict[str, Any]) -> str:
    """The text of one message."""
    content = turn.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def per_row(value: Any, count: int) -> Sequence[Any]:
    """A parameter of the recipe, which is one for all, or a column of the rows, which is a list with one each."""
    return value if isinstance(value, list) and len(value) == count else [value] * count


def fenced(text: str) -> str:
    """The last block between ``` fences, or the whole text where there is none."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def tagged(text: str, tag: str) -> list[str]:
    """What stands in each <tag>...</tag>."""
    return re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
