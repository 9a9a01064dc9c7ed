"""Where the parts that find private data meet: what they hand back, placeholders, and the words around a place."""

import re
from collections.abc import Iterator

Span = tuple[int, int, int]  # start, end (characters), certainty
PROVEN = 3  # a checksum or a shape that nothing else has
LIKELY = 2  # a usual shape, or the words around it say so
POSSIBLE = 1  # a good guess

KINDS = ("email", "phone", "iban", "card", "ip", "url", "national_id", "secret", "address", "name", "link")
PLACEHOLDER = re.compile(r"\[(" + "|".join(kind.upper() for kind in KINDS) + r")_([0-9]{1,9})\]")
LONGEST = 16  # characters of a placeholder that could be cut by the edge of a window

# Around a number: not inside a word, a longer number, a path or a fraction; a line's end may be written as in JSON.
WRITTEN_OUT = r"(?<!\\[nrt])"
LEFT = rf"(?<![0-9])(?<![\w./\-]{WRITTEN_OUT})"
RIGHT = r"(?![\w\-]|[./][\w])"

# Digits of whatever is masked as a number: six of them near each other, two side by side, or some among letters.
NUMBER = re.compile(
    r"[0-9](?:[0-9](?:[ .\-()/\u00a0\u2010-\u2013]{0,2}+[0-9]){4}|[0-9]{3}[A-Za-z]|[0-9][A-Za-z][0-9]{2}"
    r"|(?<=[A-Za-z]{2}[0-9])[0-9] ?[A-Za-z]{4})"
)
AROUND = 64  # characters before and after such digits that can belong to one item, with the words that name it


def windows(text: str) -> Iterator[tuple[int, int]]:
    """The parts of a text that numbers stand in, in order and apart."""
    start = end = 0
    for match in NUMBER.finditer(text):
        if match.start() - AROUND > end:
            if end:
                yield start, end
            start = match.start() - AROUND
        end = min(len(text), match.end() + AROUND)
    if end:
        yield max(start, 0), end


def before(text: str, start: int, reach: int = 40) -> str:
    """The `reach` characters before a place, without placeholders, whose names would pass for words about it."""
    return PLACEHOLDER.sub(" ", text[max(0, start - reach - LONGEST) : start])[-reach:]


def after(text: str, end: int, reach: int = 14) -> str:
    """The `reach` characters after a place, without placeholders."""
    return PLACEHOLDER.sub(" ", text[end : end + reach + LONGEST])[:reach]
