"""The files behind a recipe's sources, in batches of raw rows that another process can work on."""

import glob
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.data.convert import recognise
from lorasmith.data.documents import ENDINGS, documents
from lorasmith.data.files import FILE_KINDS, LINE_KINDS, Record, file_kind, raw_lines, records
from lorasmith.data.formats import renamed
from lorasmith.errors import DataError
from lorasmith.preparation import Preparation

Count = Callable[[str], int]  # tokens of a text

LARGE = 4 << 30  # bytes of a file that takes long to hash
BATCH_BYTES = 4 << 20
BATCH_ROWS = 2000
LOOKED_AT = 1000  # rows whose shape decides that of a source


@dataclass(frozen=True, slots=True)
class File:
    """One file of a source, or a hub data set.

    Attributes:
        source: Index of its source.
        reader: "lines" (jsonl), "records" (other files of rows), "documents" (text) or "hub".
        bytes: Its size, 0 for a hub data set.
        sha256: Of its bytes, or nothing for a hub data set.
    """

    source: int
    path: str
    reader: str
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw rows of one file: numbered lines of jsonl, or records.

    Attributes:
        first: Number of the first line.
        read_bytes: How many bytes of all files are behind it, for the progress.
    """

    index: int
    file: int
    first: int = 1
    lines: list[bytes] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    read_bytes: int = 0


def find_files(names: list[str]) -> list[File]:
    """The files of all sources, in order, each with its hash.

    Raises:
        DataError: If a source holds none.
    """
    return [
        File(index, path, reader, *_identity(path, reader))
        for index, name in enumerate(names)
        for path, reader in _expanded(name)
    ]


def _expanded(source: str) -> list[tuple[str, str]]:
    path = Path(source)
    if path.is_dir():
        found = [one for one in sorted(path.rglob("*")) if one.is_file() and _reader(one)]
        kinds = ", ".join((*FILE_KINDS, *ENDINGS))
        if not found:
            raise DataError(f"{source}: no rows in this folder; expected files of {kinds}.")
        rows = [one for one in found if _reader(one) != "documents"]  # a README beside them is no row
        return [(str(one), _reader(one)) for one in rows or found]
    if path.exists():
        return [(source, _reader(path) or "records")]
    if glob.has_magic(source):
        matching = [one for one in sorted(glob.glob(source, recursive=True)) if Path(one).is_file()]
        if not matching:
            raise DataError(f"{source}: no file matches this pattern.")
        return [(one, _reader(Path(one)) or "records") for one in matching]
    if "/" in source and not path.suffix:
        return [(source, "hub")]
    raise DataError(f"{source}: no such file. Expected a path to rows, a pattern, or a hub id such as org/name.")


def _reader(path: Path) -> str:
    kind = file_kind(path)
    if kind in LINE_KINDS:
        return "lines"
    return "records" if kind in FILE_KINDS else "documents" if path.suffix.lower() in ENDINGS else ""


def _identity(path: str, reader: str) -> tuple[int, str]:
    if reader == "hub" or not Path(path).is_file():
        return 0, ""
    try:
        size = Path(path).stat().st_size
        if size > LARGE:
            say(f"files: {path}, {size / 2**30:.1f} GiB, is read once to know it again")
        with open(path, "rb") as file:
            return size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return 0, ""  # what is wrong with it is told when it is read


def kinds_of(recipe: Preparation, names: list[str], files: list[File]) -> list[str]:
    """The shape of each source, recognised by its first rows unless the recipe says it.

    A source that cannot be read at all takes the others' shape; what is wrong with it is told when it is read.

    Raises:
        DataError: If no shape fits, or none can be read.
    """
    found: list[str] = []
    broken: list[DataError] = []
    for index, name in enumerate(names):
        mine = [one for one in files if one.source == index]
        if all(one.reader == "documents" for one in mine):
            found.append("text")
        elif recipe.read.format != "auto":
            found.append(recipe.read.format)
        else:
            seen, errors = _first_rows(recipe, mine)
            found.append(_recognised(seen, name) if seen else "")
            broken += [] if seen else errors[:1] or [DataError(f"{name}: no rows. Give at least one.")]
    if broken and (recipe.read.strict or not any(found)):
        raise broken[0]
    return [kind or next(filter(None, found)) for kind in found]


def _first_rows(recipe: Preparation, files: list[File]) -> tuple[list[Any], list[DataError]]:
    """The first rows of a source that can be read, and what is wrong with others among them."""
    seen: list[Any] = []
    errors: list[DataError] = []
    for file in files:
        if file.reader == "documents" or len(seen) >= LOOKED_AT:
            continue
        try:
            found = records(file.path, recipe.read.subset, recipe.read.split)
            for _, value in islice(found, LOOKED_AT):
                (errors if isinstance(value, DataError) else seen).append(renamed(value, recipe.read.columns))
        except DataError as error:
            errors.append(error)
    return seen, errors


def _recognised(seen: list[Any], name: str) -> str:
    try:
        return recognise(seen)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def batches(recipe: Preparation, files: list[File], count: Count) -> Iterator[Batch]:
    """All rows of all files, in order.

    Args:
        count: Tokens of a text, for cutting documents.
    """
    index, behind = 0, 0
    for number, file in enumerate(files):
        for first, lines, found in _pieces(recipe, file, count):
            behind += sum(map(len, lines))
            yield Batch(index, number, first, lines, found, behind)
            index += 1
        behind = sum(one.bytes for one in files[: number + 1])


def _pieces(recipe: Preparation, file: File, count: Count) -> Iterator[tuple[int, list[bytes], list[Record]]]:
    if file.reader == "lines":
        yield from _of_lines(file)
        return
    found: list[Record] = []
    for record in _told(_records(recipe, file, count), file):
        found.append(record)
        if len(found) >= BATCH_ROWS:
            yield 1, [], found
            found = []
    if found:
        yield 1, [], found


def _records(recipe: Preparation, file: File, count: Count) -> Iterator[Record]:
    if file.reader == "documents":
        folder, path = Path(recipe.weighted_sources[file.source][0]), Path(file.path)
        source = path.relative_to(folder).as_posix() if folder.is_dir() else file.path
        found = documents(path, recipe.read.chunk_tokens, count)
        return ((place, value | {"source": source} if isinstance(value, dict) else value) for place, value in found)
    return records(file.path, recipe.read.subset, recipe.read.split)


def _told(found: Iterator[Record], file: File) -> Iterator[Record]:
    """The records, and what kept the rest from being read as one more that is broken."""
    try:
        yield from found
    except DataError as error:
        yield file.path, error


def _of_lines(file: File) -> Iterator[tuple[int, list[bytes], list[Record]]]:
    first, lines, size = 1, [], 0
    try:
        for number, line in raw_lines(Path(file.path)):
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES or len(lines) >= BATCH_ROWS:
                yield first, lines, []
                first, lines, size = number + 1, [], 0
    except DataError as error:
        if lines:
            yield first, lines, []
        yield 1, [], [(file.path, error)]
        return
    if lines:
        yield first, lines, []
