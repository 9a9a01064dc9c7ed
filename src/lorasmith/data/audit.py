"""Show and check what the model will be trained on, before its weights are read."""

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith import figures
from lorasmith.console import plain
from lorasmith.data.render import IGNORED, TokenRow
from lorasmith.errors import DataError
from lorasmith.html_page import page, shown

SHOWN_ROWS = 3
BINS = 24
TOO_LONG_LIMIT = 0.01  # share of rows over max_length above which `error` stops the run


@dataclass(slots=True)
class Account:
    """Where every row went: read + unrolled = trained + dropped. Truncated rows are among the trained.

    Attributes:
        unrolled: Rows that came of turning a conversation into one row a turn, or a long context into windows, beyond
            the first.
        labelled: Whether a row has a label, and no tokens that the model is to write.
        notes: More sentences, such as how often each label stands in the rows.
    """

    read: int
    unrolled: int = 0
    trained: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    supervised_tokens: int = 0
    length_quantiles: dict[str, int] = field(default_factory=dict)
    max_length: int | None = None
    unrolled_by: str = "unrolling turns"
    labelled: bool = False
    notes: list[str] = field(default_factory=list)

    def rows_of(self, read: int, refused: list[str]) -> None:
        """Count from the rows that were read, some refused by the template, some unrolled into several."""
        if refused:
            self.dropped["refused by the template"] = len(refused)
        self.unrolled = self.trained + sum(self.dropped.values()) - read
        self.read = read


def fit_lengths(
    rows: list[TokenRow], max_length: int | None, on_too_long: str, plain: Collection[str] = ()
) -> tuple[list[TokenRow], Account]:
    """Apply `max_length`, keeping answers and their stop tokens whole.

    Args:
        max_length: Tokens a row may have, or None for no limit.
        on_too_long: "error" drops up to 1 % of the rows and refuses above; "drop"; "truncate" cuts the prompt's
            start, or the end of plain text.
        plain: Places of the rows that are plain text.

    Raises:
        DataError: If too many rows are too long, or none is left.
    """
    account = Account(read=len(rows), max_length=max_length)
    kept: list[TokenRow] = []
    too_long = [row for row in rows if max_length is not None and len(row.input_ids) > max_length]
    if on_too_long == "error" and len(too_long) > TOO_LONG_LIMIT * len(rows):
        assert max_length is not None
        raise too_many(too_long[0].place, len(too_long), sorted(len(row.input_ids) for row in rows), max_length)
    for row in rows:
        reason = ""
        if max_length is not None and len(row.input_ids) > max_length:
            shorter = _truncate(row, max_length, row.place in plain) if on_too_long == "truncate" else None
            reason = "" if shorter else "answer too long" if on_too_long == "truncate" else "too long"
            if shorter:
                row = shorter
                account.truncated += 1
        if not reason and row.supervised - (row.labels[0] != IGNORED) == 0:
            reason = "nothing to train on"
        if reason:
            account.dropped[reason] = account.dropped.get(reason, 0) + 1
        else:
            kept.append(row)
    if not kept:
        raise DataError(f"no row is left of {len(rows)}: {account.dropped}. Raise trainer.max_length.")
    account.trained = len(kept)
    lengths = sorted(len(row.input_ids) for row in kept)
    account.tokens = sum(lengths)
    account.supervised_tokens = sum(row.supervised for row in kept)
    account.length_quantiles = quantiles(lengths)
    return kept, account


def quantiles(lengths: list[int]) -> dict[str, int]:
    """The least, the median, the 95 and 99 % quantile and the most of ascending lengths."""
    shares = (("min", 0), ("median", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1))
    return {name: lengths[min(len(lengths) - 1, int(share * len(lengths)))] for name, share in shares}


def too_many(
    first: str, count: int, lengths: list[int], max_length: int, what: str = "rows", key: str = "max_length"
) -> DataError:
    """The refusal of rows of which too many are too long, with the length that would hold 99 %.

    Args:
        first: Place of the first of them.
        lengths: Of all rows, ascending.
        what: What is too long, by which key of `trainer:`.
    """
    enough = -(-lengths[-(-99 * len(lengths) // 100) - 1] // 8) * 8
    return DataError(
        f"{first}: {count} of {len(lengths)} {what} are over trainer.{key} ({max_length} tokens; the longest has "
        f"{lengths[-1]}). Set trainer.{key}: {enough}, which holds 99 %, or data.on_too_long: drop or truncate."
    )


def _truncate(row: TokenRow, max_length: int, plain_text: bool) -> TokenRow | None:
    """The row in `max_length` tokens, or None if an answer would be cut."""
    if plain_text:
        return TokenRow(row.place, row.input_ids[:max_length], row.labels[:max_length])
    end = max(i for i, label in enumerate(row.labels) if label != IGNORED) + 1
    start = end - max_length
    if start > 0 and row.labels[start - 1] != IGNORED:
        return None
    start = max(0, start)
    return TokenRow(row.place, row.input_ids[start:end], row.labels[start:end])


def account_lines(account: Account) -> list[str]:
    """The account as sentences; without a trained token it is one of prompts, whose answers are written in training."""
    dropped = "".join(f", {count} dropped ({reason})" for reason, count in account.dropped.items())
    truncated = f", {account.truncated} of them truncated" if account.truncated else ""
    unrolled = f" and {account.unrolled} more by {account.unrolled_by}" if account.unrolled else ""
    share = account.supervised_tokens / account.tokens
    q = account.length_quantiles
    spread = f"a row has {q['min']} to {q['max']} (median {q['median']}, p99 {q['p99']})"
    if account.labelled:
        return [
            f"rows: {account.read} read{unrolled}, {account.trained} trained{truncated}{dropped}",
            f"tokens: {account.tokens:,}; {spread}",
            *account.notes,
        ]
    if not account.supervised_tokens:
        return [
            f"prompts: {account.read} read, {account.trained} kept{dropped}",
            f"tokens: {account.tokens:,}; a prompt has {q['min']} to {q['max']} (median {q['median']}, p99 {q['p99']})",
        ]
    return [
        f"rows: {account.read} read{unrolled}, {account.trained} trained{truncated}{dropped}",
        f"tokens: {account.tokens:,}, {share:.1%} of them trained; {spread}",
        *account.notes,
    ]


def marked(
    tokenizer: PreTrainedTokenizerBase,
    row: TokenRow,
    opening: str = "[",
    closing: str = "]",
    longest: int | None = None,
) -> str:
    """A row's text with the trained tokens between marks, the middle of pieces over `longest` characters left out."""
    shown = []
    for text, trained in _pieces(tokenizer, row):
        text = plain(text)
        if longest is not None and len(text) > longest:
            text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
        shown.append(f"{opening}{text}{closing}" if trained else text)
    return "".join(shown)


def _pieces(tokenizer: PreTrainedTokenizerBase, row: TokenRow) -> Iterator[tuple[str, bool]]:
    start = 0
    for i in range(1, len(row.labels) + 1):
        if i == len(row.labels) or (row.labels[i] != IGNORED) != (row.labels[start] != IGNORED):
            yield str(tokenizer.decode(row.input_ids[start:i].tolist())), row.labels[start] != IGNORED
            start = i


def fingerprint(rows: list[TokenRow]) -> str:
    """SHA-256 over what is trained on: ids and labels of all rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row.input_ids)} ".encode())
        digest.update(row.input_ids.tobytes())
        digest.update(row.labels.tobytes())
    return digest.hexdigest()


def write_audit(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[TokenRow],
    accounts: dict[str, Account],
    mask_check: str,
) -> None:
    """Write audit.json (counts) and audit.html (counts, a histogram of lengths, rows with trained tokens coloured)."""
    report: dict[str, Any] = {name: asdict(account) for name, account in accounts.items()}
    report["mask_check"] = mask_check
    report["histogram"] = histogram([len(row.input_ids) for row in rows])
    (folder / "audit.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = _page(tokenizer, rows, accounts, mask_check, report["histogram"])
    (folder / "audit.html").write_text(text, encoding="utf-8")


def _page(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[TokenRow],
    accounts: dict[str, Account],
    mask_check: str,
    bins: list[dict[str, int]],
) -> str:
    """audit.html."""
    drawn = f"<figure>{figures.histogram(bins, 'tokens')}<figcaption>Training rows by length.</figcaption></figure>"
    answered = any(account.supervised_tokens for account in accounts.values())
    labelled = any(account.labelled for account in accounts.values())
    told = ["<p>Trained tokens are <mark>marked</mark>.</p>" if answered else "<p>The answers come in training.</p>"]
    told = [
        "<p>Each row with what is to be told of it; labelled tokens are <mark>marked</mark>.</p>"
    ] * labelled or told
    for row in rows[:SHOWN_ROWS]:
        pieces = (
            f"<mark>{shown(text)}</mark>" if trained else shown(text) for text, trained in _pieces(tokenizer, row)
        )
        wanted = f"<p>&rarr; {shown(row.said)}</p>" if row.said else ""
        told.append(f'<p>{shown(row.place)}</p><pre dir="auto">{"".join(pieces)}</pre>{wanted}')
    sections = [
        (f"account-{i}", name, "".join(f"<p>{shown(line)}</p>" for line in account_lines(account)))
        for i, (name, account) in enumerate(accounts.items())
    ]
    sections += [("lengths", "Lengths in tokens", drawn), ("rows", "Rows as the model sees them", "\n".join(told))]
    return page("What is trained on", mask_check, "", sections)


def histogram(lengths: list[int]) -> list[dict[str, int]]:
    """Counts of lengths in up to BINS equal bins, each with its first and last length."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // BINS)
    counts: dict[int, int] = {}
    for length in lengths:
        counts[(length - low) // width] = counts.get((length - low) // width, 0) + 1
    return [
        {"from": low + i * width, "to": low + (i + 1) * width - 1, "rows": counts.get(i, 0)}
        for i in range(max(counts) + 1)
    ]
