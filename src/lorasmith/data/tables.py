"""The rows of a table in text, csv or tsv, one after another, whatever the file's size."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorasmith.data.json_list import LONGEST
from lorasmith.errors import DataError


def table_records(path: Path, texts: Iterator[str], delimiter: str) -> Iterator[tuple[str, Any]]:
    """Each row as (`file:line`, cells by column name); a row with other than the header's columns as its DataError.

    Args:
        path: The file, for the errors.
        texts: Its text in pieces.
        delimiter: What separates the cells.

    Raises:
        DataError: If the header or what follows cannot be read.
    """
    csv.field_size_limit(LONGEST)
    reader = csv.reader(_lines(path, texts), strict=True, delimiter=delimiter)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not header:
                header = [cell.strip() for cell in cells]
                _check_header(header, delimiter, place)
            elif cells and len(cells) != len(header):
                wanted = f"{len(cells)} cells; the header has {len(header)} columns"
                yield place, DataError(f"{place}: {wanted}. Fix the line.")
            elif cells:
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        reason = str(error).replace("\t", "\\t")
        raise DataError(f"{path}:{line}: not valid CSV ({reason}). Fix the line.") from None


def _lines(path: Path, texts: Iterator[str]) -> Iterator[str]:
    """Lines with their ends, of whichever of the three kinds, out of a text in pieces."""
    number, rest = 1, ""
    for text in texts:
        if "\0" in text:
            number += text.count("\n", 0, text.index("\0"))
            all(True for _ in texts)  # what is wrong with the file as a whole, such as a bomb of NULs, is said first
            raise DataError(f"{path}:{number}: a NUL byte, as in UTF-16. Save the file as UTF-8.")
        number += text.count("\n")
        lines = list(io.StringIO(rest + text, newline=""))
        rest = "" if not lines or lines[-1].endswith("\n") else lines.pop()  # a \r may be half of a \r\n
        yield from lines
        if len(rest) > LONGEST:
            raise DataError(f"{path}:{number}: a line of more than {LONGEST >> 20} MiB; expected a row.")
    if rest:
        yield rest


def _check_header(header: list[str], delimiter: str, place: str) -> None:
    check_names(header, place)
    other = next((mark for mark in ";\t,|" if len(header) == 1 and mark in header[0] and mark != delimiter), None)
    if other:
        wanted = "tabs" if delimiter == "\t" else "commas, or for tabs a name that ends in .tsv"
        raise DataError(f"{place}: columns separated by {other!r}; expected {wanted}.")


def check_names(header: list[str], place: str) -> None:
    """Refuse a table in which a column stands twice."""
    if len(set(header)) < len(header):
        raise DataError(f"{place}: a column name is given twice. Rename one.")
