"""Records out of files, folders or the hub, each with its line. Strict: what another reader rejects, this one does."""

import codecs
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lorasmith.data.json_list import LONGEST, listed_records
from lorasmith.data.remote import local_copies
from lorasmith.data.strict_json import NotJson, parse_json, shown, skip_space
from lorasmith.data.tables import check_names, table_records
from lorasmith.errors import DataError, UnreachableError
from lorasmith.storages import is_address

LINE_KINDS = (".jsonl", ".ndjson")
FILE_KINDS = (*LINE_KINDS, ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
BOM = b"\xef\xbb\xbf"
BROKEN = (OSError, EOFError, zlib.error)  # what gzip and pyarrow raise
PIECE = 1 << 20  # bytes that are read at a time
BATCH = 4096  # rows of parquet that are in memory at a time
BOMB, BOMB_RATIO = 64 << 20, 500  # bytes that any file may unpack to, and beyond, how many times its size
AGAIN = "Fetch or write the file again."

_TOO_LONG = f"a line of more than {LONGEST >> 20} MiB; expected a row."

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
    """Each record of a file, a folder's files, an address of a storage or a hub data set, as (`file:line`, value).

    A record that is broken while those behind it can still be read comes as a DataError in place of its value.

    Raises:
        DataError: If the rest cannot be read.
        UnreachableError: If it is on the hub and the hub is out of reach.
    """
    path = Path(source)
    if is_address(source):
        yield from _fetched(source)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if not file.is_dir() and file_kind(file) in FILE_KINDS)
        if not files:
            raise DataError(f"{source}: no rows in this folder; expected files of {', '.join(FILE_KINDS)}.")
        for file in files:
            yield from _file(file)
    elif path.is_file():
        yield from _file(path)
    elif path.exists():
        raise DataError(f"{source}: a pipe or device; rows are read more than once. Write them into a file.")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and file_kind(path) not in FILE_KINDS:
        yield from _hub(source, subset, split)
    else:
        raise DataError(f"{source}: no such file. Expected a path to rows, or a hub id such as org/name.")


def _fetched(address: str) -> Iterator[Record]:
    """The records of files on a storage, under their own names in place of those of their local copies."""
    for name, copy in local_copies(address):
        try:
            for place, value in _file(copy):
                if isinstance(value, DataError):
                    value = DataError(str(value).replace(str(copy), name))
                yield place.replace(str(copy), name), value
        except DataError as error:
            raise DataError(str(error).replace(str(copy), name)) from None


def file_kind(path: Path) -> str:
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
    if file_kind(path) not in readers:
        ending = file_kind(path) or path.suffix
        wanted = f"{', '.join(FILE_KINDS)}, plain or with {' or '.join(COMPRESSED)}"
        raise DataError(
            f"{path}: a {f'`{ending}` file' if ending else 'file without ending'}; expected one of {wanted}."
        )
    try:
        check_beginning(path)
        yield from readers[file_kind(path)](path)
    except BROKEN as error:
        raise DataError(f"{path}: {unreadable(error)}") from None


def unreadable(error: Exception) -> str:
    """What keeps a file from being read: an error with a number is of the disk, others are of the compressed data."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"not readable ({os.strerror(error.errno).lower()}). Check the path and who may read it."
    return f"the compressed data is damaged or cut off. {AGAIN}"


def check_beginning(path: Path) -> None:
    """Refuse what is no rows at all under one name for it, not under the first byte that a parser stumbles on."""
    with path.open("rb") as file:
        wrong = foreign(file.read(64), path.suffix.lower())
    if wrong:
        raise DataError(f"{path}: {wrong}")


def foreign(beginning: bytes, suffix: str) -> str:
    """What a file is that begins like this and is not what its ending says, and what to do; or nothing."""
    bare = beginning.removeprefix(BOM).lstrip().lower()
    for signature, (ending, found) in FOREIGN.items():
        right = suffix == ending
        if bare.startswith(signature) and not right:
            return found
        if right and ending in COMPRESSED and not beginning.startswith(signature):
            return f"not compressed, though its name ends in {ending}. Rename it, or fetch it again."
    return ""


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
        record = line_record(str(path), number, line)
        if record is not None:
            yield record


def line_record(path: str, number: int, line: bytes) -> Record | None:
    """The record of one line of jsonl, or None for an empty line."""
    place = f"{path}:{number}"
    if len(line) > LONGEST:
        return place, DataError(f"{place}: {_TOO_LONG}")
    try:
        text = (line.removeprefix(BOM) if number == 1 else line).decode("utf-8").rstrip(" \t\r\n")
        return (place, parse_json(text)) if skip_space(text, 0) < len(text) else None
    except UnicodeDecodeError as error:
        return place, DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.")
    except NotJson as error:
        wrong = _several_lines(text) or f"not valid JSON ({error}). Fix or remove the line."
        return place, DataError(f"{place}: {wrong}")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a jsonl file with their numbers, for `line_record`; one that is too long is cut.

    Raises:
        DataError: If the rest cannot be read.
    """
    try:
        check_beginning(path)
        yield from _lines(path, cut=True)
    except BROKEN as error:
        raise DataError(f"{path}: {unreadable(error)}") from None


def _lines(path: Path, cut: bool = False) -> Iterator[tuple[int, bytes]]:
    """A file's lines with their numbers, as bytes: str.splitlines would end lines at U+2028, legal inside JSON.

    Args:
        cut: Whether a line over LONGEST bytes comes with its first LONGEST + 1 alone, or ends it.
    """
    number = 0
    with _open(path) as file:
        try:
            while line := file.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST and not cut:
                    raise DataError(f"{path}:{number}: {_TOO_LONG}")
                yield number, line
                while len(line) > LONGEST and not line.endswith(b"\n"):
                    line = file.readline(LONGEST + 1) or b"\n"
        except BROKEN as error:
            raise DataError(f"{path}:{number + 1}: {unreadable(error)}") from None


def _several_lines(text: str) -> str:
    """What to do about a line that only opens a list or an object, or nothing."""
    if text.strip() == "[":
        return "a list over several lines; here each line is a row. End the file's name in .json."
    if text.strip() == "{":
        return "a row over several lines. Write it on one line, or all rows as a list `[...]` in a .json file."
    return ""


def _json(path: Path) -> Iterator[Record]:
    beginning = next((text for text in texts_of(path) if skip_space(text, 0) < len(text)), "")
    listed = beginning.startswith("[", skip_space(beginning, 0))
    yield from listed_records(path, texts_of(path)) if listed else _jsonl(path)


def _csv(path: Path) -> Iterator[Record]:
    yield from table_records(path, texts_of(path), "\t" if file_kind(path) == ".tsv" else ",")


def texts_of(path: Path) -> Iterator[str]:
    """A file's text in pieces.

    Raises:
        DataError: With the line of the first byte that is not UTF-8.
    """
    decode = codecs.getincrementaldecoder("utf-8")().decode
    line = 1
    with _open(path) as file:
        data = file.read(PIECE)
        piece = data.removeprefix(BOM)
        while True:
            try:
                text = decode(piece, final=not data)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
            line += text.count("\n")
            yield text
            if not data:
                return
            piece = data = file.read(PIECE)


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
        check_names(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(BATCH):
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
