"""Tokenized rows on disk, found again by their content alone: file names and times play no part."""

import contextlib
import hashlib
import os
import tempfile
import zipfile
from array import array
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

import lorasmith
from lorasmith.data.render import TokenRow, tokenize
from lorasmith.data.rows import Row
from lorasmith.user_cache import user_cache

SMALLEST = 2000  # rows; fewer are tokenized faster than they are looked up


def cache_folder() -> Path:
    """Where tokenized rows are kept."""
    return user_cache() / "tokens"


def tokenize_cached(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], train_on: str, rejected: list[str] | None = None
) -> tuple[list[TokenRow], bool]:
    """`tokenize`, or its result from an earlier call on the same rows, tokenizer, template and version.

    Returns:
        The token rows, and whether they came from the cache.
    """
    if len(rows) < SMALLEST:
        return tokenize(tokenizer, rows, train_on, rejected), False
    path = cache_folder() / f"{_key(tokenizer, rows, train_on)}.npz"
    found = _load(path, rows)
    if found is not None:
        return found, True
    refused_before = len(rejected or ())
    found = tokenize(tokenizer, rows, train_on, rejected)
    if len(rejected or ()) == refused_before:  # refusals are told anew each time
        with contextlib.suppress(OSError):  # a full or read-only disk costs only the time saved
            _save(path, rows, found)
    return found, False


def _key(tokenizer: PreTrainedTokenizerBase, rows: list[Row], train_on: str) -> str:
    digest = hashlib.sha256(f"{lorasmith.__version__}\n{train_on}\n{tokenizer.chat_template}\n".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}".encode())
    for row in rows:
        digest.update(row.digest.encode())
    return digest.hexdigest()


def _save(path: Path, rows: list[Row], found: list[TokenRow]) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    index = {row.place: i for i, row in enumerate(rows)}
    arrays = {
        "ids": np.concatenate([np.frombuffer(row.input_ids, dtype=np.int32) for row in found]),
        "labels": np.concatenate([np.frombuffer(row.labels, dtype=np.int32) for row in found]),
        "lengths": np.array([len(row.input_ids) for row in found]),
        "rows": np.array([index[row.place] for row in found]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the names are arrays, not its one option
    os.replace(file.name, path)


def _load(path: Path, rows: list[Row]) -> list[TokenRow] | None:
    """The token rows of a file, or None if it is missing or broken."""
    try:
        with np.load(path) as arrays:
            ends = np.cumsum(arrays["lengths"])[:-1]
            parts = [np.split(arrays[name], ends) for name in ("ids", "labels")]
            places = [rows[i].place for i in arrays["rows"].tolist()]
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        return None
    return [
        TokenRow(place, array("i", ids.tobytes()), array("i", labels.tobytes()))
        for place, ids, labels in zip(places, *parts, strict=True)
    ]
