"""Folders of safetensors, read and written tensor by tensor: a model of any size passes through little memory."""

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lorasmith.errors import ModelError

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 16 << 20  # bytes copied at a time
LARGEST_HEADER = 100 << 20  # bytes, as safetensors itself allows
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a folder.

    Attributes:
        file: Name of its file in the folder.
        start: Of its first byte in the file.
        size: In bytes.
    """

    name: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class Weights:
    """The tensors of a folder: model.safetensors, or shards with their index.

    Raises:
        ModelError: If a file is missing, cut off, or is no safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in _files(folder):
            for entry in _entries(folder / file):
                if entry.name in self.entries:
                    raise ModelError(
                        f"{folder / file}: tensor {entry.name} is also in {self.entries[entry.name].file}."
                    )
                self.entries[entry.name] = entry
        if not self.entries:
            raise ModelError(f"{folder}: no tensors. Fetch the model again.")

    @property
    def files(self) -> dict[str, list[Entry]]:
        """The tensors of each file, in the order of its bytes."""
        found: dict[str, list[Entry]] = {}
        for entry in sorted(self.entries.values(), key=lambda one: (one.file, one.start)):
            found.setdefault(entry.file, []).append(entry)
        return found

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries.values())

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in memory of its own: a mapped file's pages would be copied when they are written to."""
        entry = self.entries[name]
        data = bytearray(entry.size)
        with (self.folder / entry.file).open("rb") as file:
            file.seek(entry.start)
            if file.readinto(data) != entry.size:
                raise ModelError(f"{self.folder / entry.file}: cut off at {entry.name}. Fetch it again.")
        if not data:
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """One tensor's bytes, some at a time."""
        entry, left = self.entries[name], self.entries[name].size
        with (self.folder / entry.file).open("rb") as file:
            file.seek(entry.start)
            while left:
                data = file.read(min(CHUNK, left))
                if not data:
                    raise ModelError(f"{self.folder / entry.file}: cut off at {name}. Fetch it again.")
                left -= len(data)
                yield data


def _files(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index}: not an index of shards. Fetch it again.") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{index}: names {name!r}, which is no shard of this folder.")
            if not (folder / name).is_file():
                raise ModelError(f"{folder}: shard {name} is missing. Fetch it again.")
        return names
    if (folder / ONE_FILE).is_file():
        return [ONE_FILE]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelError(f"{folder}: its weights are pickled ({pickles[0]}), which is refused. Save it as safetensors.")
    raise ModelError(f"{folder}: no {ONE_FILE} here, nor shards with an index.")


def _entries(path: Path) -> Iterator[Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size):
            raise ModelError(f"{path}: not a whole safetensors file. Fetch it again.")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            raise ModelError(f"{path}: not a whole safetensors file (its header is no JSON). Fetch it again.") from None
    for name, found in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = DTYPES[found["dtype"]], tuple(int(n) for n in found["shape"])
            begin, end = found["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise ModelError(f"{path}: {name} is of an unknown kind ({str(found)[:60]}).") from None
        if end - begin != math.prod(shape) * dtype.itemsize or begin < 0 or any(n < 0 for n in shape):
            raise ModelError(f"{path}: {name} is not as long as its shape says. Fetch it again.")
        if 8 + length + end > size:
            raise ModelError(f"{path}: cut off at {name}. Fetch it again.")
        yield Entry(name, path.name, dtype, shape, 8 + length + begin, end - begin)


class Writer:
    """One safetensors file whose tensors come one by one, in the order that was said; it counts when it is closed.

    safetensors itself writes only what is in memory as a whole. Format: 8 bytes of length, a JSON header, the data.

    Args:
        specs: (name, dtype, shape) of each tensor, in the order in which they will come.
    """

    def __init__(self, path: Path, specs: list[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
        self.path, self.beside = path, path.with_name(f"{path.name}.part")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._sizes: list[tuple[str, int]] = []
        at = 0
        for name, dtype, shape in specs:
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            self._sizes.append((name, size))
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._next = 0
        self._file: IO[bytes] = self.beside.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor."""
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self.put_chunks(name, iter([memoryview(data.numpy().data)]))

    def put_chunks(self, name: str, chunks: Iterator[Any]) -> None:
        """Write the next tensor from its bytes."""
        expected, size = self._sizes[self._next]
        written = 0
        for chunk in chunks:
            self._file.write(chunk)
            written += len(chunk)
        assert (name, written) == (expected, size), f"{name} of {written} bytes in place of {expected} of {size}"
        self._next += 1

    def close(self) -> None:
        """All tensors are written: the file appears under its name, on the disk."""
        assert self._next == len(self._sizes), "tensors are missing"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.beside, self.path)

    def abandon(self) -> None:
        """Close without a result."""
        self._file.close()
        self.beside.unlink(missing_ok=True)


def write_index(folder: Path, files: dict[str, list[str]], size: int) -> None:
    """The index of several shards; one file needs none.

    Args:
        files: Names of the tensors in each file.
        size: Bytes of all tensors.
    """
    if list(files) == [ONE_FILE]:
        return
    weight_map = {name: file for file, names in files.items() for name in names}
    record = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
