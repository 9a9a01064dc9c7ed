"""Text and Markdown files cut into chunks of text: at headings where possible, then paragraphs, sentences and words."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lorasmith.data.files import BROKEN, Record, check_beginning, texts_of, unreadable
from lorasmith.data.headings import blocks_of
from lorasmith.errors import DataError

ENDINGS = (".txt", ".md", ".markdown", ".rst")
LONGEST_LINE = 1 << 20  # characters; a longer one is read in parts
CHARACTERS_PER_TOKEN = 16  # more than tokenizers reach in running text
_SENTENCE = re.compile(
    r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]|\n+"
)  # of Latin and of Chinese script
_WORD = re.compile(r"\s*\S+\s*")

Count = Callable[[str], int]


class _Unit(NamedTuple):
    """What is never cut: text with the white space behind it, its line, its headings, and its tokens."""

    text: str
    line: int
    path: tuple[str, ...]
    heading: bool
    tokens: int


def documents(path: Path, chunk_tokens: int, count: Count) -> Iterator[Record]:
    """Each chunk of a file, or of the files of a folder one after another, as (`file:line`, record).

    A record has the text, `source` (the file's path from the folder), `chunk` (its number in the file, from 0), under
    headings their path as `title`, and the first of a file its front matter. Put together the chunks are the file but
    for white space between them. A file that cannot be read comes as a DataError, and the others go on.

    Args:
        path: A file, or a folder in which all files of ENDINGS are taken.
        chunk_tokens: The most tokens of a chunk.
        count: Gives the tokens of a text.

    Raises:
        DataError: If there is no such file, or none in the folder.
    """
    if chunk_tokens < 1:
        raise DataError(f"{path}: chunks of {chunk_tokens} tokens; expected at least 1.")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(f"{path}: no documents in this folder; expected files of {', '.join(ENDINGS)}.")
    elif path.is_file() and path.suffix.lower() in ENDINGS:
        files = [path]
    else:
        found = f"a `{path.suffix}` file" if path.is_file() else "no such file"
        raise DataError(f"{path}: {found}; expected a folder, or one of {', '.join(ENDINGS)}.")
    for file in files:
        source = file.relative_to(path).as_posix() if path.is_dir() else file.name
        yield from _file(file, source, chunk_tokens, count)


def _file(path: Path, source: str, limit: int, count: Count) -> Iterator[Record]:
    front: list[str] = []
    number = 0
    try:
        check_beginning(path)
        for line, title, text in _chunks(path, front, limit, count):
            record: dict[str, Any] = {"text": text, "source": source, "chunk": number}
            if title:
                record["title"] = " > ".join(title)
            if front and not number:
                record["front_matter"] = front[0]
            yield f"{path}:{line}", record
            number += 1
    except DataError as error:
        yield str(path), error
    except BROKEN as error:
        yield str(path), DataError(f"{path}: {unreadable(error)}")


def _chunks(path: Path, front: list[str], limit: int, count: Count) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """Line, headings and text of each chunk: as many units as fit, cut before the last heading among them if any."""
    held: list[_Unit] = []
    tokens = 0
    for unit in _units(path, front, limit, count):
        while held and tokens + unit.tokens > limit:
            heading = next((i for i in range(len(held) - 1, 0, -1) if held[i].heading), 0)
            at = 0 if unit.heading else heading  # with a heading next, all that is held is whole
            yield from _made(held[: at or len(held)], limit, count)
            held = held[at:] if at else []
            tokens = sum(one.tokens for one in held)
        held.append(unit)
        tokens += unit.tokens
    yield from _made(held, limit, count)


def _made(units: list[_Unit], limit: int, count: Count) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """The chunk of some units; in halves if together they have more tokens than one by one."""
    text = "".join(unit.text for unit in units)
    bare = text.lstrip("\r\n").rstrip()
    if not bare.strip():
        return
    if len(units) > 1 and count(bare) > limit:
        half = len(units) // 2
        yield from _made(units[:half], limit, count)
        yield from _made(units[half:], limit, count)
    else:
        yield units[0].line + text[: len(text) - len(text.lstrip())].count("\n"), units[0].path, bare


def _units(path: Path, front: list[str], limit: int, count: Count) -> Iterator[_Unit]:
    for block in blocks_of(_lines(path), path.suffix.lower(), front):
        tokens = count(block.text)
        if tokens <= limit:
            yield _Unit(block.text, block.line, block.path, block.heading, tokens)
            continue
        line = block.line
        for i, (text, size) in enumerate(_cut(block.text, limit, count, f"{path}:{line}")):
            yield _Unit(text, line, block.path, block.heading and not i, size)
            line += text.count("\n")


def _cut(text: str, limit: int, count: Count, place: str) -> Iterator[tuple[str, int]]:
    """Sentences with their tokens, those that are too long in runs of words, a word that is too long in pieces."""
    for sentence in _split(text, _SENTENCE):
        tokens = count(sentence)
        if tokens <= limit:
            yield sentence, tokens
            continue
        at = 0
        while at < len(sentence):
            part = _longest(sentence[at : at + CHARACTERS_PER_TOKEN * limit], limit, count, place)
            yield part, count(part)
            at += len(part)


def _split(text: str, end: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for match in end.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


def _longest(text: str, limit: int, count: Count, place: str) -> str:
    """The longest beginning that fits: whole words, or else characters.

    Raises:
        DataError: If not even one character fits.
    """
    ends = [match.end() for match in _WORD.finditer(text)][:-1]  # the last may go on behind the window
    for cuts in (ends, range(1, len(text) + 1)):
        low, high = 0, len(cuts)  # the first `low` cuts are known to fit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(text[: cuts[middle - 1]]) <= limit else (low, middle - 1)
        if low:
            return text[: cuts[low - 1]]
    raise DataError(f"{place}: one character has more than {limit} tokens. Allow longer chunks.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and ends; one that is very long in parts, cut behind a space where there is one."""
    number, rest = 1, ""
    for text in texts_of(path):
        if "\0" in text:
            line = number + text.count("\n", 0, text.index("\0"))
            raise DataError(f"{path}:{line}: a NUL byte, as in UTF-16. Save the file as UTF-8.")
        *lines, rest = (rest + text).split("\n")
        for line_text in lines:
            yield number, line_text + "\n"
            number += 1
        if len(rest) > LONGEST_LINE:
            at = rest.rfind(" ") + 1 or len(rest)
            yield number, rest[:at]
            rest = rest[at:]
    if rest:
        yield number, rest
