"""One file of an adapter's files: packed without what must not leave, unpacked without trusting it."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from lorasmith import leaks
from lorasmith.errors import ModelError
from lorasmith.export.adapter_file import CONFIG, WEIGHTS, AdapterFile, read_metadata, read_record, shown
from lorasmith.export.adapter_folder import TOKENIZER_FILES, new_folder
from lorasmith.export.archives import write_member
from lorasmith.export.clinic import absolute_paths, require_sound

ENDING = ".lora.tar.gz"
MANIFEST = "manifest.json"
PACKED = (
    WEIGHTS, CONFIG, *TOKENIZER_FILES, "README.md", "LICENSE", "run.json", "task.json", "recipe.yaml", "metrics.jsonl",
    "template_contract.json", "audit.json", "plots/*.png",
)  # fmt: skip
MOST_FILES = 1000
LARGEST_MANIFEST = 1 << 20  # bytes
MOST_TIMES, SPARE = 100, 64 << 20  # what a parcel may unpack to: so many times its size, and bytes on top
_NAME = re.compile(r"(\w[\w.+@ -]*/)?\w[\w.+@ -]*")


def is_packed(name: str) -> bool:
    """Whether a file of this name, relative to its folder, belongs into a parcel."""
    return _NAME.fullmatch(name) is not None and any(
        fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in PACKED
    )


def packed_files(adapter: AdapterFile) -> tuple[dict[str, bytes | Path], list[str]]:
    """An adapter's files as they may be shared, behind their manifest, and a line for each that was changed.

    Records lose secrets and the folders of this machine; weights and vocabularies are taken as they are.

    Raises:
        ModelError: If the adapter is not sound, or a secret stands where it cannot be removed.
    """
    require_sound(adapter)
    folder = adapter.folder
    metadata = json.dumps(read_metadata(folder / WEIGHTS))
    if leaks.cleaned(metadata) != metadata:
        raise ModelError(f"{folder}: the header of {WEIGHTS} holds an access token. Write it anew: adapter.py convert.")
    found = {path for pattern in PACKED for path in folder.glob(pattern) if path.is_file()}
    names = sorted(name for path in found if is_packed(name := path.relative_to(folder).as_posix()))
    paths = _machine_paths(folder, names)
    files: dict[str, bytes | Path] = {}
    lines = []
    for name in names:
        path = folder / name
        _check_link(path, folder)
        if path.suffix not in leaks.WRITTEN or path.name in leaks.TOKENIZER:
            _check_secret(path, name)
            files[name] = path
            continue
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        new = _without_paths(text, paths, path.suffix == ".json")
        if new != text:
            lines.append(f"{name}: the paths of this machine were cut to their last name")
        clean = leaks.cleaned(new)
        if clean != new:
            lines.append(f"{name}: an access token was removed from it")
        files[name] = clean.encode("utf-8", errors="surrogateescape")
    listed = {name: {"sha256": digest(content), "bytes": _size(content)} for name, content in files.items()}
    manifest = json.dumps({"adapter": folder.resolve().name, "files": listed}, indent=1) + "\n"
    return {MANIFEST: manifest.encode(), **files}, lines


def _check_link(path: Path, folder: Path) -> None:
    """Follow no link out of the folder, but for those of the hub's cache, whose files are links to its blobs."""
    target, home = path.resolve(), folder.resolve()
    if not target.is_relative_to(home) and not target.is_relative_to(home.parent.parent / "blobs"):
        raise ModelError(f"{path}: is a link to {target}, out of the adapter's folder. Replace it by a copy.")


def _check_secret(path: Path, name: str) -> None:
    held = [value.encode() for value in leaks.values()]
    longest = max((len(value) for value in held), default=0)
    with path.open("rb") as file:
        tail = b""
        while held and (data := file.read(1 << 22)):
            if any(value in tail + data for value in held):
                raise ModelError(f"{path}: holds an access token where it cannot be removed. Do not share {name}.")
            tail = data[-longest:]


def _machine_paths(folder: Path, names: list[str]) -> list[str]:
    """The absolute paths that stand in the records, longest first."""
    found: set[str] = set()
    for name in names:
        path = folder / name
        if path.suffix == ".json" and path.name not in leaks.TOKENIZER:
            found |= absolute_paths(read_record(path) if name != "template_contract.json" else None)
    return sorted(found, key=len, reverse=True)


def _without_paths(text: str, paths: list[str], is_json: bool) -> str:
    """A text in which each path is its last name alone."""
    home = str(Path.home())
    for path in paths:
        last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        old, new = (json.dumps(one, ensure_ascii=False)[1:-1] if is_json else one for one in (path, last))
        text = re.sub(rf"{re.escape(old)}(?![\w-])", lambda _, new=new: new, text)  # type: ignore[misc]
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}/(?:[^\s\"'`)]*/)?([^\s\"'`)/]*)", r"\1", text)
    return text


def pack(adapter: AdapterFile, out: Path) -> tuple[Path, list[str]]:
    """Write an adapter's files into one, the same bytes for the same files.

    Returns:
        The parcel, and a line for each file that was changed on its way.

    Raises:
        ModelError: If the adapter must not be packed, or the parcel is there already.
    """
    if out.exists():
        raise ModelError(f"{out} is there already. Remove it, or choose another --out.")
    files, lines = packed_files(adapter)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("wb") as raw:
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                _write_tar(packed, files)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return out, lines


def _write_tar(packed: IO[bytes] | gzip.GzipFile, files: dict[str, bytes | Path]) -> None:
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = _size(content), 0o644
            with _reader(content) as file:
                tar.addfile(member, file)


def write_files(adapter: AdapterFile, folder: Path) -> list[str]:
    """Write the files of a parcel into a folder; a line for each that was changed on its way."""
    files, lines = packed_files(adapter)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with _reader(content) as file, (folder / name).open("wb") as written:
            shutil.copyfileobj(file, written)
    return lines


def _reader(content: bytes | Path) -> IO[bytes]:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def digest(content: bytes | Path) -> str:
    """SHA-256 of a file, or of its content."""
    with _reader(content) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


class _Bounded(io.RawIOBase):
    """What a gzip file unpacks to, up to a limit, in pieces of a size that fits in memory."""

    def __init__(self, file: gzip.GzipFile, limit: int) -> None:
        self.file, self.limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > LARGEST_MANIFEST or self.file.tell() + size > self.limit:
            raise ValueError("it unpacks to far more than its own size")
        return self.file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        if whence or place > self.limit:
            raise ValueError("it unpacks to far more than its own size")
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def unpack(parcel: Path, out: Path) -> None:
    """Unpack a parcel into a new folder: every file as its manifest says, and nothing else.

    Raises:
        ModelError: If it is no parcel, is damaged, or holds anything that `pack` does not put there.
        RunError: If `out` is there already.
    """
    if not parcel.is_file():
        raise ModelError(f"{parcel}: no such file. Give a parcel ({ENDING}).")
    with new_folder(out) as folder, _told(parcel), gzip.open(parcel, "rb") as packed:
        limit = MOST_TIMES * parcel.stat().st_size + SPARE
        bounded: Any = _Bounded(packed, limit)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            wanted: dict[str, Any] | None = None
            seen: set[str] = set()
            for member in tar:
                _check_member(member, seen)
                if wanted is None:
                    wanted = _manifest(tar, member, limit)
                    continue
                entry = wanted.get(member.name)
                if entry is None or member.size != entry["bytes"]:
                    raise ValueError(f"{shown(member.name)} is not as {MANIFEST} says")
                write_member(tar, member, folder / member.name)
                if digest(folder / member.name) != entry["sha256"]:
                    raise ValueError(f"{shown(member.name)} is not as {MANIFEST} says; it was damaged or changed")
            while bounded.read(LARGEST_MANIFEST):  # to the end, where gzip compares its checksum
                pass
            missing = (wanted or {}).keys() - seen
            if missing or not wanted:
                raise ValueError(f"{min(missing, default='everything')} is missing from it")


@contextmanager
def _told(parcel: Path) -> Iterator[None]:
    """Say in one line what is wrong with a parcel."""
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{parcel}: refused ({reason}). Fetch it again, from somebody you trust.") from None


def _check_member(member: tarfile.TarInfo, seen: set[str]) -> None:
    """Plain files of the names that `pack` gives, each once.

    Raises:
        ValueError: For anything else.
    """
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise ValueError(f"{shown(member.name)} is a link, folder or device; expected files alone")
    if member.name != MANIFEST and not is_packed(member.name):
        raise ValueError(f"{shown(member.name)} does not belong into a parcel")
    if member.name.casefold() in {name.casefold() for name in seen}:
        raise ValueError(f"{shown(member.name)} is in it twice")
    if member.name == MANIFEST and seen:
        raise ValueError(f"{MANIFEST} is not its first file")
    seen.add(member.name)
    if len(seen) > MOST_FILES:
        raise ValueError(f"it holds over {MOST_FILES} files")


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> dict[str, Any]:
    """The files that a parcel lists, and itself.

    Raises:
        ValueError: If the first file is no manifest.
    """
    if member.name != MANIFEST or member.size > LARGEST_MANIFEST:
        raise ValueError(f"it does not begin with {MANIFEST}")
    file = tar.extractfile(member)
    assert file is not None
    found = check_manifest(json.loads(file.read()))
    if sum(entry["bytes"] for entry in found.values()) > limit:
        raise ValueError("it unpacks to far more than its own size")
    return found | {MANIFEST: {"bytes": member.size}}


def check_manifest(record: Any) -> dict[str, Any]:
    """The files that a manifest lists, as {name: {"sha256", "bytes"}}.

    Raises:
        ValueError: If it is none.
    """
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not {WEIGHTS, CONFIG} <= files.keys() or len(files) > MOST_FILES:
        raise ValueError(f"{MANIFEST} lists no adapter")
    for name, entry in files.items():
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not is_packed(name) or not isinstance(size, int) or size < 0 or not isinstance(digest, str):
            raise ValueError(f"{MANIFEST} lists {shown(name)}, which does not belong into a parcel")
    return files
