"""Training rows that are read as they are trained on: in order, shuffled in a buffer, and found again by position."""

import bisect
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorasmith.console import say
from lorasmith.data.audit import fit_lengths
from lorasmith.data.files import Record
from lorasmith.data.formats import parse_rows, read_rows
from lorasmith.data.prepare import Prepared, as_dataset, prepare, say_read
from lorasmith.data.remote import Stored
from lorasmith.data.render import TokenRow, tokenize
from lorasmith.data.rows import Read, Row, check_no_overlap
from lorasmith.data.streams import Position, ShardReader, shards_of
from lorasmith.recipe import Data, Recipe


@dataclass(frozen=True, slots=True, order=True)
class Start:
    """Where a buffer of rows begins: the number of its first row, and the position of its first record."""

    row: int
    position: Position


class RowStream:
    """All rows of a stream by number, over its epochs: row n is the same whoever asks, and when.

    Args:
        shards: Files of rows.
        made: Gives the token rows of a buffer's records, at least one.
        buffer: Records that are read at a time and shuffled among themselves.
        seed: Of the shuffle.
    """

    def __init__(
        self, shards: list[Stored], made: Callable[[list[Record]], list[TokenRow]], buffer: int, seed: int
    ) -> None:
        self.buffer, self.seed = buffer, seed
        self._made = made
        self._reader = ShardReader(shards)
        self._starts = [Start(0, Position())]
        self._held: dict[int, list[TokenRow]] = {}  # rows of buffers by the number of the first

    def rows(self, first: int, count: int) -> list[TokenRow]:
        """So many rows from a number on; buffers that end before the `count` rows in front of them are let go.

        Raises:
            DataError: At the first broken row of a buffer that is read for them.
        """
        found: list[TokenRow] = []
        while len(found) < count:
            at = first + len(found)
            start = self.start_of(at)
            held = self._read(start)
            found += held[at - start.row :]  # none, where this buffer's end was not known: then the next one is
            for row in [row for row, rows in self._held.items() if row + len(rows) <= first - count]:
                del self._held[row]
        return found[:count]

    def start_of(self, row: int) -> Start:
        """The last known beginning of a buffer at or before a row."""
        return self._starts[bisect.bisect_right(self._starts, row, key=lambda one: one.row) - 1]

    def go_on(self, start: Start) -> None:
        """Know where a buffer begins."""
        if self.start_of(start.row) != start:
            bisect.insort(self._starts, start)

    def begin_with(self, rows: list[TokenRow], end: Position) -> None:
        """Take the first buffer's rows, as `made` would give them, and where its records end."""
        self._reader.go_to(end)
        self._keep(self._starts[0], list(rows))

    def _read(self, start: Start) -> list[TokenRow]:
        """The shuffled rows of the buffer that begins somewhere."""
        if start.row not in self._held:
            self._reader.go_to(start.position)
            self._keep(start, self._made(self._reader.records(self.buffer)))
        return self._held[start.row]

    def _keep(self, start: Start, rows: list[TokenRow]) -> None:
        at = start.position
        random.Random(f"{self.seed} {at.epoch} {at.shard} {at.line}").shuffle(rows)
        self._held[start.row] = rows
        self.go_on(Start(start.row + len(rows), self._reader.position))

    def __iter__(self) -> Iterator[TokenRow]:
        """The rows that are in memory."""
        for rows in self._held.values():
            yield from rows


class StreamedRows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """A stream as the data set of a run of known length, whose rows are read when they are asked for by number.

    A stream that is indexed lets the trainer deal rows to processes, and pass over those of a resumed run unread, as it
    does with any other data set. All rows of an update are read by all processes before the first of them is given, so
    that a broken row ends all processes in the same step. They stand from longest to shortest (`runs.order`).

    Args:
        longest: Rows as long as any may be, for the rehearsal.
    """

    column_names = ("input_ids", "labels")

    def __init__(self, stream: RowStream, updates: int, rows_per_update: int, longest: Dataset) -> None:
        self.stream, self.updates, self.rows_per_update, self.longest = stream, updates, rows_per_update, longest
        self._update, self._rows = -1, list[TokenRow]()

    def __len__(self) -> int:
        return self.updates * self.rows_per_update

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        update, at = divmod(number, self.rows_per_update)
        if update != self._update:
            rows = self.stream.rows(update * self.rows_per_update, self.rows_per_update)
            self._update, self._rows = update, sorted(rows, key=lambda row: -len(row.input_ids))
        row = self._rows[at]
        return {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}


@dataclass(slots=True)
class PreparedStream(Prepared):
    """What a run on a stream trains and evaluates on.

    Attributes:
        train: The rows of the first buffer, in their order.
        stream: All of them.
        max_length: Tokens of the longest that there may be.
        rows_per_update: Effective batch.
        updates: Of the run.
    """

    stream: RowStream = field(kw_only=True)
    max_length: int = field(kw_only=True)
    rows_per_update: int = field(kw_only=True)
    updates: int = field(kw_only=True)

    def dataset(self, micro_batch: int) -> StreamedRows:
        """What the trainer trains on."""
        longest = sorted(self.train, key=lambda row: -len(row.input_ids))[:micro_batch]
        stretched = as_dataset([_stretched(row, self.max_length) for row in longest])
        return StreamedRows(self.stream, self.updates, self.rows_per_update, stretched)


def _stretched(row: TokenRow, length: int) -> TokenRow:
    times = -(-length // len(row.input_ids))
    return TokenRow(row.place, (row.input_ids * times)[:length], (row.labels * times)[:length])


class Opened(NamedTuple):
    """A stream of which the first buffer was read and recognised, and the rows to evaluate on."""

    shards: list[Stored]
    first: Read
    end: Position
    held_out: list[Row]
    rejected: list[str]


def open_stream(section: Data) -> Opened:
    """Find the files, read the first buffer and the rows to evaluate on.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    shards = shards_of([source for source, _ in section.sources])
    reader = ShardReader(shards)
    records = reader.records(section.shuffle_buffer)
    reader.close()
    first = parse_rows(records, shards[0].address, section.format, section.columns, section.on_bad_row)
    say(f"stream: {_count(shards)}; its first {len(first.rows)} rows are looked at now, the others while training")
    say_read(len(first.rows), shards[0].address, "", first.kind, first.rejected)
    held_out, refused = list[Row](), list[str]()
    if section.eval is not None:
        read = read_rows(section.eval, kind=section.format, columns=section.columns, on_bad_row=section.on_bad_row)
        held_out, refused = read.rows, read.rejected
        say_read(len(held_out), section.eval, ", to evaluate on", read.kind, refused)
    check_no_overlap(first.rows, held_out)
    return Opened(shards, first, reader.position, held_out, first.rejected + refused)


def _count(shards: list[Stored]) -> str:
    size = sum(shard.size or 0 for shard in shards)
    return f"{len(shards)} files, {size / 2**30:.2f} GiB" if len(shards) > 1 else f"one file, {size / 2**30:.2f} GiB"


def prepare_stream(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, opened: Opened) -> PreparedStream:
    """Tokenize, cut and account for the rows of the first buffer, and make the stream of all.

    Raises:
        DataError: If rows cannot be trained on as asked.
    """
    section, max_length = recipe.data, int(recipe.trainer["max_length"])
    first = prepare(section, tokenizer, opened.first.rows, opened.held_out, opened.rejected, max_length)

    def made(records: list[Record]) -> list[TokenRow]:
        read = parse_rows(records, opened.shards[0].address, opened.first.kind, section.columns, section.on_bad_row)
        check_no_overlap(read.rows, opened.held_out)
        refused = list(read.rejected)
        kept = refused if section.on_bad_row == "drop" else None
        ids = tokenize(tokenizer, read.rows, section.train_on, kept)
        if refused:
            say(f"stream: {len(refused)} broken rows left out, the first: {refused[0]}")
        return fit_lengths(ids, max_length, section.on_too_long, {row.place for row in read.rows if row.text})[0]

    stream = RowStream(opened.shards, made, section.shuffle_buffer, recipe.seed)
    stream.begin_with(first.train, opened.end)
    files = [(shard.name, shard.size) for shard in opened.shards]
    fingerprint = hashlib.sha256(f"{first.fingerprint} {files}".encode()).hexdigest()
    return PreparedStream(
        first.train,
        first.eval,
        first.eval_rows,
        first.accounts,
        first.rejected,
        fingerprint,
        first.mask_check,
        stream=stream,
        max_length=max_length,
        rows_per_update=recipe.run.effective_batch,
        updates=int(recipe.trainer["max_steps"]),
    )
