"""Paragraphs and headings of text, Markdown and reStructuredText, line by line."""

import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

LONGEST_BLOCK = 1 << 16  # characters; a longer paragraph is given in parts
LONGEST_FRONT = 200  # lines of front matter
_HASHES = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"([=\-~^\"'`*+#:._])\1{2,}[ \t]*$")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t\r]*$", re.MULTILINE)


class Block(NamedTuple):
    """A paragraph or heading with the empty lines behind it.

    Attributes:
        path: The headings that it stands under, the outermost first; a heading stands under itself.
    """

    text: str
    line: int
    path: tuple[str, ...]
    heading: bool


def blocks_of(lines: Iterator[tuple[int, str]], ending: str, front: list[str]) -> Iterator[Block]:
    """The blocks of a document, which put together are its text.

    Args:
        lines: Line numbers, from 1, and lines with their ends.
        ending: .md or .markdown, .rst, or another for text without headings.
        front: Markdown's front matter is put here, and left out of the text.
    """
    reader = _Reader(ending)
    if ending in (".md", ".markdown"):
        lines = _behind_front(lines, front)
        title = _TITLE.search(front[0]) if front else None
        if title:
            reader.enter(0, title[1])
    for number, line in lines:
        yield from reader.read(number, line)
    yield from reader.close()


def _behind_front(lines: Iterator[tuple[int, str]], front: list[str]) -> Iterator[tuple[int, str]]:
    """The lines behind the front matter between two `---`; all lines where there is none."""
    first = list(islice(lines, 1))
    if not first or first[0][1].rstrip() != "---":
        return chain(first, lines)
    for number, line in islice(lines, LONGEST_FRONT):
        first.append((number, line))
        if line.rstrip() in ("---", "..."):
            front.append("".join(line for _, line in first))
            return lines
    return chain(first, lines)


class _Reader:
    """What is read of the block that is not yet whole, and the headings that it stands under."""

    def __init__(self, ending: str) -> None:
        self._markdown = ending in (".md", ".markdown")
        self._underlines = "=-" if self._markdown else "=-~^\"'`*+#:._" if ending == ".rst" else ""
        self._levels: dict[str, int] = {"=": 1, "-": 2} if self._markdown else {}  # of rst, in the order of the file
        self._above: list[tuple[int, str]] = []
        self._held: list[str] = []
        self._line, self._size = 1, 0
        self._heading = self._fenced = self._ended = False

    def enter(self, level: int, title: str) -> None:
        """Stand under a heading."""
        self._above = [*(one for one in self._above if one[0] < level), (level, title)]

    def close(self) -> Iterator[Block]:
        """Give what is held."""
        if self._held:
            yield Block("".join(self._held), self._line, tuple(title for _, title in self._above), self._heading)
        self._held, self._size, self._heading, self._ended = [], 0, False, False

    def read(self, number: int, line: str) -> Iterator[Block]:
        """Take in a line; gives the block before it where this line begins another."""
        empty = not line.strip()
        hashes = _HASHES.match(line.rstrip("\r\n")) if self._markdown and not self._fenced else None
        under = None if empty or hashes or self._fenced else self._underlined(line)
        if under:
            self.enter(*under)
            self._heading = True
        elif (
            hashes
            or (not empty and (self._heading or (self._ended and not self._fenced)))
            or self._size > LONGEST_BLOCK
        ):
            yield from self.close()
        if hashes:
            self.enter(len(hashes[1]), hashes[2])
            self._heading = True
        if not self._held:
            self._line = number
        self._held.append(line)
        self._size += len(line)
        self._ended = empty
        if self._markdown and _FENCE.match(line):
            self._fenced = not self._fenced

    def _underlined(self, line: str) -> tuple[int, str] | None:
        """Level and title, if this line makes the one before it a heading."""
        mark = _UNDERLINE.match(line.rstrip("\r\n"))
        if not mark or mark[1] not in self._underlines or self._heading or self._ended or not self._held:
            return None
        over = len(self._held) == 2 and self._held[0].strip() == line.strip() and not self._markdown
        title = self._held[-1].strip()
        if len(self._held) != 1 + over or _UNDERLINE.match(title):
            return None
        if not self._markdown and len(line.strip()) < len(title):
            return None
        style = mark[1] * (1 + over)
        return self._levels.setdefault(style, len(self._levels) + 1), title
