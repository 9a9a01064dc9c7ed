"""From the recipe's `data:` to audited token rows."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorasmith.console import plain, say
from lorasmith.data.audit import SHOWN_ROWS, Account, account_lines, fingerprint, fit_lengths, marked
from lorasmith.data.cache import tokenize_cached
from lorasmith.data.formats import read_rows
from lorasmith.data.manifest import preparation_line, preparation_of
from lorasmith.data.mask import check_masks
from lorasmith.data.render import TokenRow
from lorasmith.data.rows import R, Row, check_no_overlap, split_rows, weigh
from lorasmith.recipe import Data
from lorasmith.storages import safe

SHOWN_CHARACTERS = 600  # of each piece of a row on the screen; audit.html has all


@dataclass(slots=True)
class Prepared:
    """What a run trains and evaluates on.

    Attributes:
        accounts: Row accounts by name, "train" and, with evaluation rows, "eval".
        rejected: Refusals of rows that were left out, with their places.
        fingerprint: Hash of all ids and labels.
    """

    train: list[TokenRow]
    eval: list[TokenRow]
    eval_rows: list[Row]
    accounts: dict[str, Account] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    fingerprint: str = ""
    mask_check: str = ""


@contextmanager
def uncollected() -> Iterator[None]:
    """Millions of small objects and no cycles among them: the collector would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@uncollected()
def read_train_and_eval(section: Data, seed: int) -> tuple[list[Row], list[Row], list[str]]:
    """All rows of the recipe, recognised, split, weighted and free of overlap, and the refusals of dropped ones.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    return read_each(section, seed, partial(read_rows, kind=section.format))


def read_each(
    section: Data, seed: int, reader: Callable[..., Any], kind: str = ""
) -> tuple[list[R], list[R], list[str]]:
    """The rows of all sources of the recipe as `divide` gives them.

    Args:
        reader: Reads a source; it gives `rows`, `rejected` and, without a kind here, `kind`.
        kind: What the rows are called.
    """

    def read(source: str, purpose: str = "") -> tuple[list[R], list[str]]:
        found = reader(source, section.subset, section.split, columns=section.columns, on_bad_row=section.on_bad_row)
        say_read(len(found.rows), source, purpose, kind or found.kind, found.rejected)
        return found.rows, found.rejected

    return divide(section, seed, read)


def divide(
    section: Data, seed: int, read: Callable[..., tuple[list[R], list[str]]]
) -> tuple[list[R], list[R], list[str]]:
    """The rows of all sources split, weighted and free of overlap, and the refusals of dropped ones.

    Args:
        read: Gives the rows of a source, which it is told with its purpose, and the refusals.

    Raises:
        DataError: If a row to evaluate on is also trained on, or nothing would be left on a side.
    """
    sources: list[tuple[list[R], float]] = []
    rejected: list[str] = []
    for source, weight in section.sources:
        rows, refused = read(source)
        rejected += refused
        sources.append((rows, weight))
    held_out: list[R] = []
    if section.eval_fraction:
        _, held_out = split_rows([row for rows, _ in sources for row in rows], section.eval_fraction, seed)
    train: list[R] = []
    held = {id(row) for row in held_out}
    for rows, weight in sources:
        weighted = weigh([row for row in rows if id(row) not in held], weight, seed)
        if weight != 1:
            say(f"rows: {len(weighted)} for weight {weight:g}")
        train += weighted
    if section.eval is not None:
        held_out, refused = read(section.eval, ", to evaluate on")
        rejected += refused
    elif held_out:
        say(f"rows: {len(held_out)} held out to evaluate on")
    check_no_overlap(train, held_out)
    return train, held_out, rejected


def say_read(rows: int, source: str, purpose: str, kind: str, rejected: list[str]) -> None:
    """Say what was read of a source, and whether it is as a preparation wrote it."""
    dropped = f", {len(rejected)} broken ones dropped" if rejected else ""
    say(f"rows: {rows} of {safe(source)}{purpose}, recognised as {kind}{dropped}")
    if line := preparation_line(source):
        say(line)


@uncollected()
def prepare(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Row],
    held_out: list[Row],
    rejected: list[str],
    max_length: int | None,
) -> Prepared:
    """Tokenize, cut to length, account for every row, and show one as the model sees it.

    Raises:
        DataError: If rows cannot be trained on as asked.
    """
    prepared = Prepared([], [], [], rejected=list(rejected))
    for name, rows in (("train", train), ("eval", held_out)):
        if not rows:
            continue
        refused: list[str] = []
        kept = refused if section.on_bad_row == "drop" else None
        ids, cached = tokenize_cached(tokenizer, rows, section.train_on, kept)
        if cached:
            say(f"tokens: {len(ids)} rows tokenized before, found by their content")
        if section.train_on == "assistant" and name == "train":
            usable = {row.place for row in ids}
            prepared.mask_check = check_masks(tokenizer, [row for row in rows if row.place in usable])
        ids, account = fit_lengths(ids, max_length, section.on_too_long, {row.place for row in rows if row.text})
        account.rows_of(len(rows), refused)
        prepared.rejected += refused
        prepared.accounts[name] = account
        for line in account_lines(account):
            say(line if name == "train" else f"evaluation {line}")
        if name == "train":
            prepared.train = ids
        else:
            places = {row.place for row in ids}
            prepared.eval, prepared.eval_rows = ids, [row for row in rows if row.place in places]
    prepared.fingerprint = fingerprint(prepared.train + prepared.eval)
    if prepared.mask_check:
        say(prepared.mask_check)
    show(tokenizer, prepared.train[:SHOWN_ROWS])
    return prepared


def show(tokenizer: PreTrainedTokenizerBase, rows: list[TokenRow]) -> None:
    """Rows as the model sees them, the trained tokens green on a terminal and in brackets elsewhere."""
    coloured = sys.stdout.isatty()
    labelled = any(row.said for row in rows)
    kind = "labelled" if labelled else "trained"
    trained = f", {kind} tokens {'in green' if coloured else 'in brackets'}" if any(r.supervised for r in rows) else ""
    say(f"{len(rows)} {'rows' if trained or labelled else 'prompts'} as the model sees them{trained}:")
    marks = ("\033[32m", "\033[0m") if coloured else ("[", "]")
    for row in rows:
        say(f"  {row.place}")
        text = marked(tokenizer, row, *marks, longest=SHOWN_CHARACTERS)
        say("    " + text.rstrip("\n").replace("\n", "\n    "))
        if row.said:
            say(f"    -> {plain(row.said)}")


def as_dataset(rows: list[TokenRow]) -> Dataset:
    """Token rows as the data set that trl's trainers take as it is."""
    columns = ("input_ids", "labels")
    return Dataset.from_dict({name: [np.asarray(getattr(row, name)) for row in rows] for name in columns})


def preparations(section: Data) -> dict[str, Any]:
    """For each file of the recipe that a preparation wrote: which one, and whether the file is still as written."""
    names = [name for name, _ in section.sources] + ([section.eval] if section.eval else [])
    found = {source_name(name): preparation_of(name) for name in names}
    return {name: told for name, told in found.items() if told is not None}


def source_names(section: Data) -> str:
    """The training sources without their folders, for records that are shared."""
    return ", ".join(source_name(source) for source, _ in section.sources)


def source_name(source: str) -> str:
    """A data source without its folder, or an address without a password."""
    return Path(source).name if Path(source).exists() else safe(source)
