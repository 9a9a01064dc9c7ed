"""JSON by the strictest reading: what another reader rejects, or would read differently, is refused."""

import json
import math
import re
from typing import Any


class NotJson(ValueError):
    """Why a text is no JSON, or only by Python's parser and not by others.

    Attributes:
        line: The line of the text, where it is known.
        cut: Whether the text may be right and only end too early.
    """

    def __init__(self, reason: str, line: int | None = None, *, cut: bool = False) -> None:
        super().__init__(reason)
        self.line = line
        self.cut = cut


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise NotJson(f"field `{shown(next(n for n in names if names.count(n) > 1))}` is given twice")
    return found


def _constant(name: str) -> None:
    raise NotJson(f"`{name}` is not a JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise NotJson(f"`{shown(digits)}` is too large for a number", cut=True)
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
LONGEST_ATOM = 16  # characters; more than a literal, an escaped pair or the end of a number has
_SPACE = re.compile(r"[ \t\r\n]*")


def parse_json(text: str) -> Any:
    """The value of a text that is one JSON value.

    Raises:
        NotJson: If it is not, by the strictest reading: a field given twice, NaN, a number beyond all bounds.
    """
    value, end = parse_json_at(text, skip_space(text, 0))
    if skip_space(text, end) < len(text):
        raise _refusal(json.JSONDecodeError("Extra data", text, skip_space(text, end)))
    return value


def parse_json_at(text: str, at: int, before: tuple[int, int] = (0, 0)) -> tuple[Any, int]:
    """The value that begins at an index of a text, and the index behind it.

    Args:
        text: The text, or a part of it.
        at: Where the value begins.
        before: Line ends that stand before the text, and characters before it on its first line, for the error.

    Raises:
        NotJson: As `parse_json`.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _refusal(error, before) from None
    except RecursionError:
        raise NotJson("maximum recursion depth exceeded: nested too deep") from None
    except NotJson:
        raise
    except ValueError:  # Python's limit on the digits of an int, which its text asks to raise in code
        raise NotJson("a whole number of over 4300 digits", cut=True) from None


def skip_space(text: str, at: int) -> int:
    """The index of what follows JSON's white space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing as well


_HINTS = {"'": "JSON has no single quotes", "\ufeff": "a byte order mark inside the file"}
_HINTS |= dict.fromkeys("/#", "JSON has no comments") | dict.fromkeys("TFN", "JSON writes true, false and null")
_HINTS |= {"\0": "a NUL byte, as in UTF-16; save the file as UTF-8"}


def _refusal(error: json.JSONDecodeError, before: tuple[int, int] = (0, 0)) -> NotJson:
    """Where a text ceases to be JSON, with the usual cause where the character there gives it away."""
    cut = error.msg.startswith("Unterminated") or error.pos > len(error.doc) - LONGEST_ATOM
    left = error.doc[: error.pos].rstrip(" \t\r\n")
    found = error.doc[error.pos : error.pos + 1]
    if left.endswith(",") and found in ("}", "]"):  # Python 3.13 says this by itself
        error = json.JSONDecodeError("A comma too many", error.doc, len(left) - 1)
    elif error.msg.startswith("Illegal trailing comma"):
        error = json.JSONDecodeError("A comma too many", error.doc, error.pos)
    told = found in _HINTS and (error.msg == "Expecting value" or not found.isalpha()) and "escape" not in error.msg
    column = error.colno + (before[1] if error.lineno == 1 else 0)
    reason = f"{error.msg[0].lower()}{error.msg[1:]} at column {column}{f'; {_HINTS[found]}' if told else ''}"
    return NotJson(reason, error.lineno + before[0], cut=cut)


def shown(value: Any, limit: int = 60) -> str:
    """A value for an error's text: short, on one line, without characters that cannot be printed."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)[1:-1] if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else f"{text[:limit]}..."
