"""Files of rows on a storage: which an address names, and a local copy of one that is fetched once."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lorasmith.console import say
from lorasmith.errors import DataError, FitError
from lorasmith.memory.machine import free_disk
from lorasmith.storages import is_address, reached, safe, storage_of
from lorasmith.user_cache import user_cache

# What a storage may tell of an object that changes with it.
MARKS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "updated", "mtime")
SPARED = 1 << 30  # bytes of disk that a copy leaves free


@dataclass(frozen=True, slots=True)
class Stored:
    """A file on a storage.

    Attributes:
        address: To name in errors, without a password.
        path: As its storage knows it.
        size: Bytes, or None if the storage does not tell.
        mark: What changes when the file does; empty if the storage tells nothing.
    """

    address: str
    storage: Any
    path: str
    size: int | None
    mark: str

    @property
    def name(self) -> str:
        """Without its folders."""
        return PurePosixPath(self.address.partition("?")[0]).name


def stored(address: str) -> list[Stored]:
    """The files that an address or a path names: itself, or what its pattern matches, in the order of their names.

    Raises:
        DataError: If there is none, or the storage is not reached.
    """
    with reached(address, DataError):
        storage, path = storage_of(address, DataError)
        pattern = "*" in path
        paths = sorted(str(one) for one in storage.glob(path)) if pattern else [path]
        if not paths:
            raise DataError(f"{safe(address)}: no file matches. Expected an address such as s3://bucket/rows-*.jsonl.")
        found = []
        for one in paths:
            try:
                told = storage.info(one)
            except FileNotFoundError as error:
                why = f" ({' '.join(str(error.__cause__).split())[:160]})" if error.__cause__ else ""
                raise DataError(f"{safe(address)}: no such file on the storage{why}.") from None
            if told.get("type") == "directory":
                raise DataError(
                    f"{safe(address)}: a folder. Name its files with a pattern, such as /*.jsonl behind it."
                )
            mark = ", ".join(str(told[name]) for name in MARKS if told.get(name))
            shown = safe(str(storage.unstrip_protocol(one)) if pattern and is_address(address) else one)
            named = shown if pattern or not is_address(address) else safe(address)
            found.append(Stored(named, storage, one, told.get("size"), mark))
        return found


def fetched(file: Stored) -> Path:
    """A local copy of a stored file, from the user's cache where it is still the same there.

    Raises:
        DataError: If it cannot be fetched whole.
        FitError: If the disk is too small.
    """
    key = hashlib.sha256(f"{file.address}\n{file.path}\n{file.size}\n{file.mark}".encode()).hexdigest()
    copy = user_cache() / "fetched" / key[:24] / file.name
    if file.mark and copy.is_file() and file.size in (None, copy.stat().st_size):
        say(f"rows: {file.address} is as it was when it was fetched")
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    if file.size is not None and free_disk(copy.parent) < file.size + SPARED:
        raise FitError(
            f"{file.address}: {file.size / 2**30:.2f} GiB to fetch, and {free_disk(copy.parent) / 2**30:.2f} GiB free "
            f"in {copy.parent}. Free some space, set LORASMITH_CACHE, or let sft.py stream it: data.streaming: true."
        )
    handle, beside = tempfile.mkstemp(dir=copy.parent, suffix=".part")
    os.close(handle)
    try:
        with reached(file.address, DataError):
            file.storage.get_file(file.path, beside)
        size = Path(beside).stat().st_size
        if file.size not in (None, size):
            raise DataError(f"{file.address}: {size} of {file.size} bytes came. Start again.")
        os.replace(beside, copy)
    finally:
        Path(beside).unlink(missing_ok=True)
    say(f"rows: {file.address} fetched, {size / 2**20:.1f} MiB")
    return copy


def local_copies(address: str) -> Iterator[tuple[str, Path]]:
    """Each file that an address names, with a local copy of it."""
    for file in stored(address):
        yield file.address, fetched(file)
