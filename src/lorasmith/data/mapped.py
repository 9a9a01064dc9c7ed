"""Token rows in a file that processes map: each sees them as a list, and the machine holds them once."""

import dataclasses
import pickle
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

AT_ONCE = 4096  # rows of a piece of the file; more tokens than 2^31 in one would not fit Arrow's offsets
PLAIN = (str, bool, int, float)


class MappedRows(Sequence[Any]):
    """Rows of one dataclass, each made of the mapped file when it is asked for.

    Args:
        kind: The dataclass.
        path: An Arrow stream with a column for each of its fields but those in `kept`.
        kept: Values of the fields that Arrow would change.
        dataset: Another Arrow stream with what a trainer takes of these rows; None: this one, without the places.
    """

    def __init__(self, kind: type[Any], path: Path, kept: dict[str, list[Any]], dataset: Path | None) -> None:
        self._made_of = kind, path, kept, dataset
        self.kind, self.kept = kind, kept
        self.table = _opened(path)
        self._trained_on = None if dataset is None else _opened(dataset)

    def __reduce__(self) -> Any:
        return MappedRows, self._made_of

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return next(self._rows_from(at % len(self), 1))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), AT_ONCE):
            yield from self._rows_from(start, AT_ONCE)

    def _rows_from(self, start: int, count: int) -> Iterator[Any]:
        piece = self.table.slice(start, count)
        columns = {name: _cells(piece.column(name)) for name in piece.column_names}
        columns |= {name: iter(values[start : start + count]) for name, values in self.kept.items()}
        for cells in zip(*columns.values(), strict=True):
            yield self.kind(**dict(zip(columns, cells, strict=True)))

    def dataset(self, fingerprint: str) -> Dataset:
        """What a trainer takes of these rows, mapped as they are.

        Args:
            fingerprint: By which `datasets` knows them; it would read all of them to find one.
        """
        table = self._trained_on if self._trained_on is not None else self.table.drop_columns(["place"])
        # Not Dataset.from_file: a worker process would look for the file, whose name is gone by then.
        return Dataset(InMemoryTable(table), fingerprint=fingerprint[:32])


def map_rows(rows: list[Any], folder: Path, name: str, build: Callable[[Any], Dataset] | None) -> MappedRows:
    """Write rows into a folder and map them.

    Args:
        rows: Instances of one dataclass.
        build: Makes what a trainer takes of them, where that is more than their columns.

    Raises:
        OSError: If the disk is full.
    """
    kind = type(rows[0])
    names = [one.name for one in dataclasses.fields(kind)]
    kinds = {one: _arrow_type([getattr(row, one) for row in rows]) for one in names}
    kept = {one: [getattr(row, one) for row in rows] for one, found in kinds.items() if found is None}
    schema = pa.schema([(one, found) for one, found in kinds.items() if found is not None])
    path, trained_on = folder / f"{name}.arrow", None
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        left = iter(rows)
        while some := list(islice(left, AT_ONCE)):
            columns = [_column([getattr(row, field.name) for row in some], field.type) for field in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    if build is not None:
        trained_on = folder / f"{name}-dataset.arrow"
        table = build(rows).data.table
        with pa.OSFile(str(trained_on), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, AT_ONCE)
    return MappedRows(kind, path, kept, trained_on)


def _opened(path: Path) -> Any:
    with pa.memory_map(str(path)) as mapped:
        return pa.ipc.open_stream(mapped).read_all()


def _arrow_type(values: list[Any]) -> Any:
    """The type of a column that gives these very values back, or None if there is none."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {array}:
        return pa.list_(pa.int32())
    if kinds == {list}:
        inner = {type(one) for value in values if value is not None for one in value}
        return pa.list_(_plain(inner)) if len(inner) == 1 and inner <= set(PLAIN) else None
    return _plain(kinds) if len(kinds) == 1 and kinds <= set(PLAIN) else None


def _plain(kinds: set[type]) -> Any:
    names = {str: pa.large_string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return names[next(iter(kinds))]


def _column(values: list[Any], kind: Any) -> Any:
    if not any(isinstance(value, array) for value in values):
        return pa.array(values, kind)
    flat = np.concatenate([np.frombuffer(value or b"", np.int32) for value in values])
    ends = np.cumsum([0, *(len(value or ()) for value in values)])
    missing = pa.array([value is None for value in values]) if None in values else None
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat), mask=missing)


def _cells(column: Any) -> Iterator[Any]:
    """The values of a column as they were."""
    for piece in column.chunks:
        if piece.type != pa.list_(pa.int32()):
            yield from piece.to_pylist()
            continue
        values, ends = piece.values.to_numpy(), piece.offsets.to_numpy()
        there = piece.is_valid().to_numpy(zero_copy_only=False)
        for start, end, valid in zip(ends[:-1].tolist(), ends[1:].tolist(), there.tolist(), strict=True):
            yield array("i", values[start:end].tobytes()) if valid else None


class _Ours(pickle.Unpickler):
    """Makes instances of this package's classes and of arrays; nothing else can be asked for."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "array" or (module, name) in (("pathlib", "PosixPath"), ("pathlib", "Path")):
            return super().find_class(module, name)
        found = super().find_class(module, name) if module.startswith("lorasmith.") and "." not in name else None
        if not isinstance(found, type):
            raise pickle.UnpicklingError(f"{module}.{name} is no class of rows")
        return found


def write_made(made: Any, path: Path) -> None:
    """Write what was made of the rows, the mapped ones by their files."""
    with path.open("wb") as file:
        pickle.dump(made, file, protocol=5)


def read_made(path: Path) -> Any:
    """What `write_made` wrote; a file that asks for anything but rows is refused."""
    with path.open("rb") as file:
        return _Ours(file).load()
