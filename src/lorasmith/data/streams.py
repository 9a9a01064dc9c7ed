"""Lines of jsonl files on any storage, read from a place that was reached before."""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorasmith.data.files import AGAIN, COMPRESSED, LINE_KINDS, Record, file_kind, foreign, line_record
from lorasmith.data.json_list import LONGEST
from lorasmith.data.remote import Stored, stored
from lorasmith.errors import DataError
from lorasmith.storages import reached

READ_AHEAD = 4 << 20  # bytes asked of a storage at a time


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a stream stands.

    Attributes:
        epoch: How many times all shards were read.
        shard: The file that comes next, from 0.
        line: Lines of it that were read.
        offset: Bytes of it that were read, decompressed.
    """

    epoch: int = 0
    shard: int = 0
    line: int = 0
    offset: int = 0


def shards_of(sources: list[str]) -> list[Stored]:
    """The jsonl files of a stream, in their order.

    Raises:
        DataError: If one is missing, or of another kind.
    """
    shards = [file for source in sources for file in stored(source)]
    for shard in shards:
        if file_kind(Path(shard.name)) not in LINE_KINDS:
            raise DataError(
                f"{shard.address}: data.streaming reads {' and '.join(LINE_KINDS)}, plain or with "
                f"{' or '.join(COMPRESSED)}. Convert it, or leave data.streaming out."
            )
    return shards


class ShardReader:
    """Reads records on from where it stands; only a change of place opens a file."""

    def __init__(self, shards: list[Stored]) -> None:
        self.shards = shards
        self.position = Position()
        self._file: BinaryIO | None = None

    def go_to(self, position: Position) -> None:
        """Stand elsewhere."""
        if position != self.position:
            self.close()
            self.position = position

    def records(self, count: int) -> list[Record]:
        """Up to so many records, as (`address:line`, value or the DataError in its place); fewer as an epoch ends.

        Raises:
            DataError: If the rest cannot be read, or there is none.
        """
        found: list[Record] = []
        begun = self.position.epoch
        while len(found) < count:
            at = self.position
            shard = self.shards[at.shard]
            line = self._line(shard)
            if not line:
                self.close()
                last = at.shard + 1 == len(self.shards)
                self.position = Position(at.epoch + last, 0 if last else at.shard + 1)
                if last and found:
                    break
                if self.position.epoch > begun + 1:
                    raise DataError(f"{self.shards[0].address}: no rows. Give at least one.")
                continue
            self.position = Position(at.epoch, at.shard, at.line + 1, at.offset + len(line))
            record = line_record(shard.address, at.line + 1, line)
            if record is not None:
                found.append(record)
        return found

    def close(self) -> None:
        """Let go of the open file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _line(self, shard: Stored) -> bytes:
        place = f"{shard.address}:{self.position.line + 1}"
        try:
            with reached(shard.address, DataError):
                self._file = self._file or self._opened(shard)
                line = self._file.readline(LONGEST + 1)
        except DataError as error:
            if _is_damaged(shard, error.__cause__):
                raise DataError(f"{place}: the compressed data is damaged or cut off. {AGAIN}") from None
            raise
        if len(line) > LONGEST:
            raise DataError(f"{place}: a line of more than {LONGEST >> 20} MiB; expected a row.")
        return line

    def _opened(self, shard: Stored) -> BinaryIO:
        """A shard's bytes, decompressed, from the position on."""
        raw: Any = shard.storage.open(shard.path, "rb", block_size=READ_AHEAD)
        if not raw.seekable():
            raise DataError(f"{shard.address}: its server gives whole files alone. Leave data.streaming out.")
        if self.position.offset == 0:
            _check_beginning(shard, raw)
        if shard.name.lower().endswith(".gz"):
            raw = gzip.GzipFile(fileobj=raw, mode="rb")
        elif shard.name.lower().endswith(".zst"):
            import pyarrow

            raw = io.BufferedReader(_Decompressed(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")))
        else:
            raw = io.BufferedReader(raw, READ_AHEAD)  # fsspec's own readline takes no limit
        _skip(raw, self.position.offset)
        return raw


class _Decompressed(io.RawIOBase):
    """Arrow's stream as one that Python can split into lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _check_beginning(shard: Stored, raw: Any) -> None:
    """Refuse what is no rows at all under one name for it."""
    beginning = raw.read(64)
    wrong = foreign(beginning, Path(shard.name).suffix.lower())
    if wrong:
        raise DataError(f"{shard.address}: {wrong}")
    raw.seek(0)


def _skip(file: Any, offset: int) -> None:
    """Go on behind so many bytes; compressed data is read for that, and plain data is not."""
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0:
        offset -= len(file.read(min(offset, READ_AHEAD))) or offset


def _is_damaged(shard: Stored, cause: BaseException | None) -> bool:
    """Whether an error comes of compressed data, and not of the way to it."""
    if isinstance(cause, EOFError | zlib.error | gzip.BadGzipFile):
        return True
    return shard.name.lower().endswith(".zst") and type(cause) is OSError and cause.errno is None
