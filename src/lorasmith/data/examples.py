"""Tokenized rows of tasks in which the model writes nothing, each with what is to be told of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from lorasmith.console import say
from lorasmith.data.audit import SHOWN_ROWS, TOO_LONG_LIMIT, Account, account_lines, quantiles, too_many
from lorasmith.data.prepare import Prepared, show
from lorasmith.data.render import Ids, TokenRow
from lorasmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Example(TokenRow):
    """A row as the model sees it.

    Attributes:
        labels: The ids of tokens that are labelled, to be shown; IGNORED elsewhere.
        target: What the loss compares the outputs with.
        wanted: The same in words.
        types: Token type ids, where the tokenizer gives any, such as 0 for a question and 1 for its context.
    """

    target: Any
    wanted: str
    types: "Ids | None" = None

    @property
    def said(self) -> str:
        """What is to be told of the row."""
        return self.wanted


@dataclass(slots=True)
class PreparedTask(Prepared):
    """What a task's run trains and evaluates on; `eval_rows` are its rows as they were read.

    Attributes:
        outputs: Of the head, 0 where the model writes.
    """

    outputs: int = 2


def fit_examples(rows: list[Example], max_length: int | None, on_too_long: str) -> tuple[list[Example], Account]:
    """Refuse or drop what is longer than `max_length`, and count. Rows that were cut before are no longer than it.

    Raises:
        DataError: If over 1 % of the rows are too long and are not to be dropped, or none is left.
    """
    too_long = [row for row in rows if max_length is not None and len(row.input_ids) > max_length]
    if on_too_long == "error" and len(too_long) > TOO_LONG_LIMIT * len(rows):
        assert max_length is not None
        raise too_many(too_long[0].place, len(too_long), sorted(len(row.input_ids) for row in rows), max_length)
    kept = [row for row in rows if max_length is None or len(row.input_ids) <= max_length]
    if not kept:
        raise DataError(f"no row is left of {len(rows)}: all are too long. Raise trainer.max_length.")
    account = Account(read=len(rows), trained=len(kept), max_length=max_length, labelled=True)
    account.dropped = {"too long": len(too_long)} if too_long else {}
    lengths = sorted(len(row.input_ids) for row in kept)
    account.tokens, account.length_quantiles = sum(lengths), quantiles(lengths)
    account.supervised_tokens = sum(row.supervised for row in kept)
    return kept, account


def prepared_task(
    parts: dict[str, tuple[list[Example], Account, Sequence[Any]]], tokenizer: Any, rejected: list[str], check: str
) -> PreparedTask:
    """Rows of both parts put together, said and shown.

    Args:
        parts: Examples, account and the rows that they were made of, for "train" and "eval".
        check: What was proven of the rows, as a sentence.
    """
    prepared = PreparedTask([], [], [], rejected=list(rejected), mask_check=check)
    for name, (examples, account, rows) in parts.items():
        prepared.accounts[name] = account
        for line in account_lines(account):
            say(line if name == "train" else f"evaluation {line}")
        if name == "train":
            prepared.train = list(examples)
        else:
            places = {one.place for one in examples}
            prepared.eval, prepared.eval_rows = list(examples), [row for row in rows if row.place in places]
    prepared.fingerprint = fingerprint_of([*prepared.train, *prepared.eval])
    if check:
        say(check)
    show(tokenizer, prepared.train[:SHOWN_ROWS])
    return prepared


def fingerprint_of(rows: Sequence[Any]) -> str:
    """SHA-256 over ids, types and targets of all rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{len(row.input_ids)} {row.target!r} ".encode())
        digest.update(row.input_ids.tobytes())
        digest.update(row.types.tobytes() if row.types is not None else b"")
    return digest.hexdigest()


def examples_as_dataset(rows: Sequence[Any]) -> Dataset:
    """Examples as the data set that transformers' trainer takes."""
    columns: dict[str, list[Any]] = {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "labels": [row.target for row in rows],
    }
    if any(row.types is not None for row in rows):
        columns["token_type_ids"] = [row.types.tolist() for row in rows]
    return Dataset.from_dict(columns)
