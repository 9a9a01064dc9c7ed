"""Records out of files, folders or the hub, each with its line. Strict: what another reader rejects, this one does."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lorasmith.errors import DataError, UnreachableError

FILE_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
BOM = b"\xef\xbb\xbf"

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
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in FILE_KINDS)
        if not files:
            raise DataError(f"{source}: no rows in this folder; expected files of {', '.join(FILE_KINDS)}.")
        for file in files:
            yield from _file(file)
    elif path.exists():
        yield from _file(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and _kind(path) not in FILE_KINDS:
        yield from _hub(source, subset, split)
    else:
        raise DataError(f"{source}: no such file. Expected a path to rows, or a hub id such as org/name.")


def _kind(path: Path) -> str:
    """The ending that tells how to read a file, compression aside."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


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
        wanted = f"{', '.join(FILE_KINDS)}, plain or with {' or '.join(COMPRESSED)}"
        raise DataError(f"{path}: a `{path.suffix}` file; expected one of {wanted}.")
    try:
        yield from readers[_kind(path)](path)
    except OSError as error:
        raise DataError(f"{path}: not readable ({str(error).splitlines()[0]}).") from None


def _open(path: Path) -> BinaryIO:
    """A file's bytes, decompressed."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]  # a reader of bytes
    if path.suffix == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        return io.BufferedReader(_Raw(stream), 1 << 20)
    return path.open("rb")


class _Raw(io.RawIOBase):
    """pyarrow's stream as a raw stream that Python can buffer and split into lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _whole(path: Path) -> str:
    """A file's text.

    Raises:
        DataError: With the line of the first byte that is not UTF-8.
    """
    with _open(path) as file:
        data = file.read().removeprefix(BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


class _NotStrict(ValueError):
    """JSON that Python's parser would take and others would not."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _NotStrict(f"field `{next(n for n in names if names.count(n) > 1)}` is given twice")
    return found


def _constant(name: str) -> None:
    raise _NotStrict(f"`{name}` is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _jsonl(path: Path) -> Iterator[Record]:
    with _open(path) as file:
        # Lines of bytes end at \n alone; str.splitlines would also end them at U+2028, legal inside a JSON string.
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                text = (line.removeprefix(BOM) if number == 1 else line).decode("utf-8").strip(" \t\r\n")
                if text:
                    yield place, _DECODER.decode(text)
            except UnicodeDecodeError as error:
                yield place, DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.")
            except json.JSONDecodeError as error:
                yield place, DataError(f"{place}: not valid JSON ({_reason(error)}). Fix or remove the line.")
            except (_NotStrict, RecursionError, ValueError) as error:
                yield place, DataError(f"{place}: not valid JSON ({error}). Fix or remove the line.")


def _json(path: Path) -> Iterator[Record]:
    text = _whole(path)
    at = _skip(text, 0)
    if not text.startswith("[", at):
        yield from _jsonl(path)
        return
    at = _skip(text, at + 1)
    while not text.startswith("]", at):
        place = f"{path}:{text.count(chr(10), 0, at) + 1}"
        try:
            record, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not valid JSON ({_reason(error)}). Fix the file.") from None
        except (_NotStrict, RecursionError, ValueError) as error:
            raise DataError(f"{place}: not valid JSON ({error}). Fix the file.") from None
        yield place, record
        at = _skip(text, at)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            line = text.count("\n", 0, at) + 1
            raise DataError(f"{path}:{line}: not valid JSON (expected `,` or `]` after a row). Fix the file.")
    if text[at + 1 :].strip():
        raise DataError(f"{path}:{text.count(chr(10), 0, at) + 1}: text after the closing `]`. Fix the file.")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _reason(error: json.JSONDecodeError) -> str:
    return f"{error.msg[0].lower()}{error.msg[1:]} at column {error.colno}"


def _csv(path: Path) -> Iterator[Record]:
    delimiter = "\t" if _kind(path) == ".tsv" else ","
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(_whole(path), newline=""), strict=True, delimiter=delimiter)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise DataError(f"{place}: a column name is given twice. Rename one.")
            elif cells and len(cells) != len(header):
                wanted = f"{len(cells)} cells; the header has {len(header)} columns"
                yield place, DataError(f"{place}: {wanted}. Fix the line.")
            elif cells:
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not valid CSV ({error}). Fix the line.") from None


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}:{number + 1}: not readable as parquet ({str(error).splitlines()[0]}).") from None


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
