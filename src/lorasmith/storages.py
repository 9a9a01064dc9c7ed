"""Storages that fsspec knows, by address: s3://, gs://, https:// and others. Imports no torch."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorasmith.errors import LorasmithError


def is_address(name: str) -> bool:
    """Whether a name has a protocol."""
    return re.match(r"[a-z][a-z0-9+.-]*(::|://)", name) is not None


def storage_of(address: str, kind: type[LorasmithError]) -> tuple[Any, str]:
    """fsspec's file system for an address or a path, and the path there.

    Args:
        kind: Of the error that is raised.

    Raises:
        LorasmithError: If it, or the package that it needs, is not known or installed.
    """
    import fsspec
    from fsspec.registry import known_implementations

    protocol = address.partition("://")[0]
    try:
        storage, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        module = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        install = f" Install it: pip install {module}." if module not in ("", "fsspec") else ""
        raise kind(f"{safe(address)}: {_short(error)}.{install}") from None
    except ValueError as error:
        raise kind(f"{safe(address)}: {_short(error)}; such as s3, gs, az, file are known.") from None
    return storage, str(path)


def safe(address: str) -> str:
    """An address without the name and password in it, and without the signature of one that was signed."""
    bare = re.sub(r"://[^/@]*@", "://", address)
    return bare.partition("?")[0] if is_address(bare) and "=" in bare.partition("?")[2] else bare


@contextmanager
def reached(address: str, kind: type[LorasmithError]) -> Iterator[None]:
    """The many errors of the hub and of storages, in one line."""
    try:
        yield
    except LorasmithError:
        raise
    except Exception as error:  # every backend raises its own kinds
        text = safe(" ".join(f"{type(error).__name__}: {error}".split()).replace(address, safe(address)))[:240]
        login = " Log in with: hf auth login." if "://" not in address and re.search(r"\b40[13]\b", text) else ""
        raise kind(f"{safe(address)}: not reached ({text}).{login}") from error


def _short(error: Exception, longest: int = 160) -> str:
    text = " ".join(str(error).split())
    return f"`{text[:longest]}…`" if len(text) > longest else f"`{text}`"
