"""Micro-batches without padding: the rows lie one behind the other, and what several begin with lies there once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = "lorasmith_rows"  # key of the spans in a batch, handed through the model to its attention
TOKENS = "lorasmith_tokens"  # key of the number of tokens in the batch, shared ones counted for each row
WORTH_SHARING = 16  # tokens that rows must have in common
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Span:
    """Where a row, or what is its own of it, lies in a flat batch.

    Attributes:
        start: First token.
        end: Behind the last.
        shared_start: First token of what it has in common with others, which it sees too.
        shared: Tokens in common, 0 for a row that lies there whole.
    """

    start: int
    end: int
    shared_start: int = 0
    shared: int = 0


class FlatCollator:
    """Rows to one flat batch, shape (1, tokens).

    Args:
        share_prompts: Whether the common beginning of rows is laid down and computed once. Nothing of it may be
            trained: the last of its tokens predicts another token in each row.
    """

    def __init__(self, share_prompts: bool) -> None:
        self.share_prompts = share_prompts

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch with input_ids, labels, position_ids, the rows' spans, and what attention kernels ask for."""
        rows = [one for row in rows for one in _unpacked(row)]
        pieces: list[tuple[list[int], list[int], int, Span]] = []
        end = 0
        for group in self._groups(rows):
            common = _shared_tokens(group) if len(group) > 1 else 0
            shared_start = end
            if common:
                ids = list(group[0]["input_ids"][:common])
                pieces.append((ids, [IGNORED] * common, 0, Span(end, end + common)))
                end += common
            for row in group:
                ids, labels = list(row["input_ids"][common:]), list(row["labels"][common:])
                labels[0] = IGNORED  # the token before it in the batch is another row's
                span = Span(end, end + len(ids), shared_start, common)
                pieces.append((ids, labels, common, span))
                end = span.end
        tokens = [one for ids, *_ in pieces for one in ids]
        positions = [first + at for ids, _, first, _ in pieces for at in range(len(ids))]
        return laid_down(tokens, positions, [span for *_, span in pieces]) | {
            "labels": torch.tensor([one for _, labels, *_ in pieces for one in labels])[None],
            TOKENS: sum(len(row["input_ids"]) for row in rows),
        }

    def _groups(self, rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Rows that begin alike, in groups."""
        if not self.share_prompts or len(rows) == 1:
            return [[row] for row in rows]
        groups: list[list[dict[str, Any]]] = []
        for row in sorted(rows, key=lambda one: list(one["input_ids"])):
            if groups and _saves([*groups[-1], row]):
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups


def laid_down(tokens: list[int], positions: list[int], spans: Sequence[Span]) -> dict[str, Any]:
    """What a model takes of rows one behind the other, shape (1, tokens), and what attention kernels ask for."""
    ends = torch.tensor([0, *(span.end for span in spans)], dtype=torch.int32)
    longest = max(span.end - span.start for span in spans)
    return {
        "input_ids": torch.tensor(tokens)[None],
        "position_ids": torch.tensor(positions)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        ROWS: tuple(spans),
    }


def _unpacked(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a packed sequence; a row of its own otherwise."""
    found, start = [], 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        found.append({name: row[name][start : start + length] for name in ("input_ids", "labels")})
        start += length
    return found


def _saves(group: list[dict[str, Any]]) -> bool:
    """Whether a group with one row more lays down fewer tokens than without it."""
    common, before = _shared_tokens(group), _shared_tokens(group[:-1]) if len(group) > 2 else 0
    return common >= WORTH_SHARING and common * (len(group) - 1) > before * (len(group) - 2)


def _shared_tokens(group: list[dict[str, Any]]) -> int:
    """Tokens that all rows begin with and that predict nothing that is trained."""
    first = list(group[0]["input_ids"])
    size = len(first)
    for row in group:
        ids, labels = row["input_ids"], row["labels"]
        trained = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))
        size = min(size, trained - 1, len(ids) - 1)
        size = next((i for i in range(max(0, size)) if ids[i] != first[i]), max(0, size))
    return size


def inputs_of(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What of a flat batch a model without its loss takes, on its device."""
    asked = {name: value for name, value in batch.items() if name not in ("labels", TOKENS)}
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in asked.items()}


def rows_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a flat batch as they were, each with input_ids and labels of shape (tokens,)."""
    found = []
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    spans: tuple[Span, ...] = batch[ROWS]
    common = {span.shared_start for span in spans if span.shared}
    for span in spans:
        if not span.shared and span.start in common:
            continue  # no row of its own
        before = slice(span.shared_start, span.shared_start + span.shared)
        own = slice(span.start, span.end)
        parts: tuple[Tensor, Tensor] = (torch.cat((ids[before], ids[own])), torch.cat((labels[before], labels[own])))
        found.append({"input_ids": parts[0], "labels": parts[1]})
    return found


def halves(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A flat batch as two, of half its rows each; or the batch itself where it holds one row."""
    rows = rows_of(batch)
    if len(rows) == 1:
        return [batch]
    collate, middle = FlatCollator(share_prompts=any(span.shared for span in batch[ROWS])), len(rows) // 2
    lists = [{name: value.tolist() for name, value in row.items()} for row in rows]
    return [collate(lists[:middle]), collate(lists[middle:])]
