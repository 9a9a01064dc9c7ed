"""Records out of files or the hub, each with its line. Strict: what another reader would reject is rejected here."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorasmith.errors import DataError, UnreachableError

FILE_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


def records(source: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    """Each record of a file or hub data set as (`file:line`, value).

    Raises:
        DataError: At the first record that cannot be read.
        UnreachableError: If it is on the hub and the hub is out of reach.
    """
    path = Path(source)
    if path.is_file():
        readers: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
            ".jsonl": _jsonl,
            ".ndjson": _jsonl,
            ".json": _json,
            ".csv": _csv,
            ".parquet": _parquet,
        }
        if path.suffix not in readers:
            raise DataError(f"{source}: a `{path.suffix}` file; expected one of {', '.join(FILE_KINDS)}.")
        yield from readers[path.suffix](path)
    elif path.is_dir():
        raise DataError(f"{source} is a folder; expected a file ({', '.join(FILE_KINDS)}) or a hub id.")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", source) and path.suffix not in FILE_KINDS:
        yield from _hub(source, subset, split)
    else:
        raise DataError(f"{source}: no such file. Expected a path to rows, or a hub id such as org/name.")


def _text(path: Path) -> str:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
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


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    # Not str.splitlines: it also splits at U+2028, which is legal inside a JSON string.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                yield place, _DECODER.decode(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{place}: not valid JSON ({_reason(error)}). Fix or remove the line.") from None
            except (_NotStrict, RecursionError) as error:
                raise DataError(f"{place}: not valid JSON ({error}). Fix or remove the line.") from None


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = _text(path)
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
        except (_NotStrict, RecursionError) as error:
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


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"{path}:{line}", reader.line_num + 1
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise DataError(f"{place}: a column name is given twice. Rename one.")
            elif cells:
                if len(cells) != len(header):
                    raise DataError(f"{place}: {len(cells)} cells; the header has {len(header)} columns. Fix the line.")
                yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not valid CSV ({error}). Fix the line.") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
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


def _hub(name: str, subset: str | None, split: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, subset, split=split)
    except Exception as error:  # datasets raises a dozen kinds, all of them the user's or the network's to mend
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = UnreachableError if "offline" in reason.lower() or "reach" in reason.lower() else DataError
        raise kind(f"{name}: no such file, and not loaded from the hub ({reason}).") from None
    for number, record in enumerate(rows, 1):
        yield f"{name}:{number}", record
