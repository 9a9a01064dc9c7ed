"""The rows of a JSON list `[...]`, one after another, whatever the file's size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorasmith.data.strict_json import LONGEST_ATOM, NotJson, parse_json_at, skip_space
from lorasmith.errors import DataError

LONGEST = 64 << 20  # bytes or characters of one row


def listed_records(path: Path, texts: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Each row of a list as (`file:line`, value).

    Args:
        path: The file, for the errors.
        texts: Its text in pieces; its first character beside white space is `[`.

    Raises:
        DataError: At the first place where it is no JSON, naming its line.
    """
    part = _Part(path, texts)
    part.skip()
    part.at += 1
    part.skip()
    more = not part.follows("]")
    while more:
        place = f"{path}:{part.line()}"
        yield place, part.value()
        part.skip()
        more = part.follows(",")
        if more:
            part.kept = part.at  # the error about a comma too many looks back at it
            part.at += 1
            part.skip()
        elif not part.follows("]"):
            raise DataError(f"{path}:{part.line()}: not valid JSON (expected `,` or `]` after a row). Fix the file.")
    part.at += 1
    part.skip()
    if part.at < len(part.text):
        raise DataError(f"{path}:{part.line()}: text after the closing `]`. Fix the file.")


class _Part:
    """The part of a file's text that is in memory, and how far it is read.

    Attributes:
        text: The part.
        at: What is next in it.
        kept: What lies before this index is forgotten when more is read.
    """

    def __init__(self, path: Path, texts: Iterator[str]) -> None:
        self._path = path
        self._texts = texts
        self.text, self.at, self.kept = "", 0, 0
        self._line, self._counted = 1, 0  # the line on which the character at `_counted` stands
        self._ended = False
        self._before = (0, 0)  # line ends before the part, and characters before it on its first line

    def line(self) -> int:
        """The line of what is next."""
        self._line, self._counted = self._line + self.text.count("\n", self._counted, self.at), self.at
        return self._line

    def follows(self, mark: str) -> bool:
        return self.text.startswith(mark, self.at)

    def skip(self) -> None:
        """Go on to what is no white space, or to the end of the file."""
        self.at = skip_space(self.text, self.at)
        while self.at == len(self.text) and self._read():
            self.at = skip_space(self.text, self.at)

    def value(self) -> Any:
        """The value that is next, read to its end.

        Raises:
            DataError: If it is no JSON, or longer than a row may be.
        """
        while True:
            wrong = None
            try:
                value, end = parse_json_at(self.text, self.at, self._before)
                cut = isinstance(value, int | float) and end > len(self.text) - LONGEST_ATOM  # 12 of 123
            except NotJson as error:
                wrong, cut = error, error.cut
            if cut and len(self.text) - self.at > LONGEST:
                where = f"{self._path}:{self.line()}"
                raise DataError(
                    f"{where}: a row of more than {LONGEST >> 20} MiB, or one without an end. Fix the file."
                )
            if cut and not self._ended:
                self._read()
                continue
            if wrong:
                where = f"{self._path}:{wrong.line or self.line()}"
                raise DataError(f"{where}: not valid JSON ({wrong}). Fix the file.")
            self.at = end
            return value

    def _read(self) -> bool:
        """Take in as much again as is kept, so that a long row is parsed few times; False at the end of the file."""
        self.line()
        dropped = min(self.kept, self.at)
        ends = self.text.count("\n", 0, dropped)
        start = self.text.rfind("\n", 0, dropped) + 1
        self._before = (self._before[0] + ends, dropped - start + (0 if ends else self._before[1]))
        pieces = [self.text[dropped:]]
        wanted, more = len(pieces[0]), 0
        while more <= wanted and (text := next(self._texts, None)) is not None:
            pieces.append(text)
            more += len(text)
        self.text = "".join(pieces)
        self.at, self.kept, self._counted = self.at - dropped, 0, self._counted - dropped
        self._ended = more <= wanted
        return more > 0
