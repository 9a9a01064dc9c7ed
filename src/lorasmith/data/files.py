"""Records out of files, folders or the hub, each with its line. Strict: what another reader rejects, this one does."""

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lorasmith.data.strict_json import NotJson, parse_json, parse_json_at, shown, skip_space
from lorasmith.errors import DataError, UnreachableError

FILE_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
BOM = b"\xef\xbb\xbf"
BROKEN = (OSError, EOFError, zlib.error)  # what gzip and pyarrow raise
LONGEST_LINE = 64 << 20  # bytes
BOMB, BOMB_RATIO = 64 << 20, 500  # bytes that any file may unpack to, and beyond, how many times its size
AGAIN = "Fetch or write the file again."

# How files begin that are not what their ending says, in lower case; the ending that would be right; what to do.
_HTML = ("", "a web page, not rows; often a login or an error. Fetch the file itself.")
_UTF_16 = ("", "UTF-16. Save the file as UTF-8.")
FOREIGN = {
    b"version https://git-lfs": ("", "a git-lfs pointer in place of the file. Run `git lfs pull`."),
    b"<!doctype": _HTML,
    b"<html": _HTML,
    b"<?xml": _HTML,
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"\x1f\x8b": (".gz", "compressed by gzip. End its name in .gz, or unpack it."),
    b"(\xb5/\xfd": (".zst", "compressed by zstd. End its name in .zst, or unpack it."),
    b"par1": (".parquet", "a parquet file. End its name in .parquet."),
    b"pk\x03\x04": ("", "a zip archive or a spreadsheet. Unpack it, or export it as CSV."),
}

# A place and what stands there: a value, or the error that keeps it from being one.
Record = tuple[str, Any]


def records(source: str, subset: str | None = None, split: str = "train") -> Iterator[Record]:
    """Each record of a file, a folder's files or a hub data set, as (`file:line`, value).

    A record that is broken while those behind it can still be read comes as a DataError in place of its value.

    Raises:
        DataError: If the rest cannot be read.
        UnreachableError: If it is on the hub and the hub is out of reach.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if not file.is_dir() and _kind(file) in FILE_KINDS)
        if not files:
            raise DataError(f"{source}: no rows in this folder; expected files of {', '.join(FILE_KINDS)}.")
        for file in files:
            yield from _file(file)
    elif path.is_file():
        yield from _file(path)
    elif path.exists():
        raise DataError(f"{source}: a pipe or device; rows are read more than once. Write them into a file.")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and _kind(path) not in FILE_KINDS:
        yield from _hub(source, subset, split)
    else:
        raise DataError(f"{source}: no such file. Expected a path to rows, or a hub id such as org/name.")


def _kind(path: Path) -> str:
    """The ending that tells how to read a file, compression aside."""
    name = Path(path.name.lower())
    return name.with_suffix("").suffix if name.suffix in COMPRESSED else name.suffix


def _file(path: Path) -> Iterator[Record]:
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    if _kind(path) not in readers:
        ending = _kind(path) or path.suffix
        wanted = f"{', '.join(FILE_KINDS)}, plain or with {' or '.join(COMPRESSED)}"
        raise DataError(
            f"{path}: a {f'`{ending}` file' if ending else 'file without ending'}; expected one of {wanted}."
        )
    try:
        _check_beginning(path)
        yield from readers[_kind(path)](path)
    except BROKEN as error:
        raise DataError(f"{path}: {_unreadable(error)}") from None


def _unreadable(error: Exception) -> str:
    """What keeps a file from being read: an error with a number is of the disk, others are of the compressed data."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"not readable ({os.strerror(error.errno).lower()}). Check the path and who may read it."
    return f"the compressed data is damaged or cut off. {AGAIN}"


def _check_beginning(path: Path) -> None:
    """Refuse what is no rows at all under one name for it, not under the first byte that a parser stumbles on."""
    with path.open("rb") as file:
        beginning = file.read(64)
    bare = beginning.removeprefix(BOM).lstrip().lower()
    for signature, (ending, found) in FOREIGN.items():
        right = path.suffix.lower() == ending
        if bare.startswith(signature) and not right:
            raise DataError(f"{path}: {found}")
        if right and ending in COMPRESSED and not beginning.startswith(signature):
            raise DataError(f"{path}: not compressed, though its name ends in {ending}. Rename it, or fetch it again.")


def one_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _open(path: Path) -> BinaryIO:
    """A file's bytes, decompressed."""
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(_Expanded(gzip.open(path, "rb"), path), 1 << 20)
    if path.suffix.lower() == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        return io.BufferedReader(_Expanded(stream, path), 1 << 20)
    return path.open("rb")


class _Expanded(io.RawIOBase):
    """A decompressed stream that Python can buffer and split into lines, and that does not swell without end."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._read = getattr(stream, "read1", stream.read)  # no further than what is whole, before the data is cut off
        self._path = path
        self._left = max(BOMB, BOMB_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path}: unpacks to over {BOMB_RATIO} times its size; no rows do. Unpack it yourself."
            )
        return len(data)


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            text = (line.removeprefix(BOM) if number == 1 else line).decode("utf-8").rstrip(" \t\r\n")
            if skip_space(text, 0) < len(text):
                yield place, parse_json(text)
        except UnicodeDecodeError as error:
            yield place, DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.")
        except NotJson as error:
            wrong = _several_lines(text) or f"not valid JSON ({error}). Fix or remove the line."
            yield place, DataError(f"{place}: {wrong}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers, as bytes: str.splitlines would end lines at U+2028, legal inside JSON."""
    number = 0
    with _open(path) as file:
        try:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; expected a row.")
                yield number, line
        except BROKEN as error:
            raise DataError(f"{path}:{number + 1}: {_unreadable(error)}") from None


def _several_lines(text: str) -> str:
    """What to do about a line that only opens a list or an object, or nothing."""
    if text.strip() == "[":
        return "a list over several lines; here each line is a row. End the file's name in .json."
    if text.strip() == "{":
        return "a row over several lines. Write it on one line, or all rows as a list `[...]` in a .json file."
    return ""


def _json(path: Path) -> Iterator[Record]:
    text = _whole(path)
    at = skip_space(text, 0)
    if not text.startswith("[", at):
        yield from _jsonl(path)
        return
    line, counted = 1, 0
    at = skip_space(text, at + 1)
    more = not text.startswith("]", at)
    while more:
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path}:{line}"
        try:
            record, at = parse_json_at(text, at)
        except NotJson as error:
            raise DataError(f"{path}:{error.line or line}: not valid JSON ({error}). Fix the file.") from None
        yield place, record
        at = skip_space(text, at)
        more = text.startswith(",", at)
        if more:
            at = skip_space(text, at + 1)
        elif not text.startswith("]", at):
            line += text.count("\n", counted, at)
            raise DataError(f"{path}:{line}: not valid JSON (expected `,` or `]` after a row). Fix the file.")
    rest = skip_space(text, at + 1)
    if rest < len(text):
        raise DataError(f"{path}:{text.count(chr(10), 0, rest) + 1}: text after the closing `]`. Fix the file.")


def _whole(path: Path) -> str:
    """A file's text.

    Raises:
        DataError: With the line of the first byte that is not UTF-8.
    """
    with _open(path) as file:
        data = b"".join(iter(lambda: file.read(1 << 24), b"")).removeprefix(BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _csv(path: Path) -> Iterator[Record]:
    delimiter = "\t" if _kind(path) == ".tsv" else ","
    text = _whole(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: a NUL byte, as in UTF-16. Save the file as UTF-8.")
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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


def _check_header(header: list[str], delimiter: str, place: str) -> None:
    _check_names(header, place)
    other = next((mark for mark in ";\t,|" if len(header) == 1 and mark in header[0] and mark != delimiter), None)
    if other:
        wanted = "tabs" if delimiter == "\t" else "commas, or for tabs a name that ends in .tsv"
        raise DataError(f"{place}: columns separated by {other!r}; expected {wanted}.")


def _check_names(header: list[str], place: str) -> None:
    if len(set(header)) < len(header):
        raise DataError(f"{place}: a column name is given twice. Rename one.")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    with path.open("rb") as raw:
        ends = {raw.read(4), raw.seek(max(0, path.stat().st_size - 4)) and raw.read(4)}
    if ends != {b"PAR1"}:
        raise DataError(f"{path}:1: not readable as parquet (cut off, or a file of another kind). {AGAIN}")
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        _check_names(file.schema_arrow.names, str(path))
        for batch in file.iter_batches():
            for record in _of_batch(batch):
                number += 1
                place = f"{path}:{number}"
                if isinstance(record, str):
                    yield place, DataError(f"{place}: {record} Fix or remove the row.")
                else:
                    yield place, record
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}:{number + 1}: not readable as parquet ({one_line(error)}). {AGAIN}") from None


def _of_batch(batch: Any) -> list[dict[str, Any] | str]:
    """The rows of a batch; for one with a cell that Python cannot hold, such as a date past 9999, what is wrong."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return [_of_cells({name: batch.column(name)[i] for name in batch.schema.names}) for i in range(len(batch))]


def _of_cells(cells: dict[str, Any]) -> dict[str, Any] | str:
    row = {}
    for name, cell in cells.items():
        try:
            row[name] = cell.as_py()
        except (ValueError, OverflowError) as error:
            return f"{shown(name)}: not readable ({one_line(error)})."
    return row


def _hub(name: str, subset: str | None, split: str) -> Iterator[Record]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, subset, split=split)
    except Exception as error:  # datasets raises a dozen kinds, all of them the user's or the network's to mend
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = UnreachableError if "offline" in reason.lower() or "reach" in reason.lower() else DataError
        raise kind(f"{name}: no such file, and not loaded from the hub ({reason}).") from None
    for number, record in enumerate(rows, 1):
        yield f"{name}:{number}", record
