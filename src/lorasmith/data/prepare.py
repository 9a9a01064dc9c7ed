"""From the recipe's `data:` to audited token rows."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorasmith.console import say
from lorasmith.data.audit import Account, account_lines, fingerprint, fit_lengths, marked
from lorasmith.data.render import TokenRow, tokenize
from lorasmith.data.rows import Row, check_no_overlap, read_rows, split_rows
from lorasmith.recipe import Data


@dataclass(slots=True)
class Prepared:
    """What a run trains and evaluates on.

    Attributes:
        accounts: Row accounts by name, "train" and, with evaluation rows, "eval".
        fingerprint: Hash of all ids and labels.
    """

    train: list[TokenRow]
    eval: list[TokenRow]
    eval_rows: list[Row]
    accounts: dict[str, Account] = field(default_factory=dict)
    fingerprint: str = ""


def read_train_and_eval(section: Data, seed: int) -> tuple[list[Row], list[Row]]:
    """All rows of the recipe, recognised, split and free of overlap.

    Raises:
        DataError: At the first broken row.
    """
    train, kind = read_rows(section.train, section.subset, section.split)
    say(f"rows: {len(train)} of {section.train}, recognised as {kind}")
    held_out: list[Row] = []
    if section.eval is not None:
        held_out, kind = read_rows(section.eval, section.subset, section.split)
        say(f"rows: {len(held_out)} of {section.eval}, recognised as {kind}, to evaluate on")
    elif section.eval_fraction:
        train, held_out = split_rows(train, section.eval_fraction, seed)
        say(f"rows: {len(held_out)} of them held out to evaluate on")
    check_no_overlap(train, held_out)
    return train, held_out


def prepare(
    section: Data, tokenizer: PreTrainedTokenizerBase, train: list[Row], held_out: list[Row], max_length: int | None
) -> Prepared:
    """Tokenize, cut to length, account for every row, and show one as the model sees it.

    Raises:
        DataError: If rows cannot be trained on as asked.
    """
    prepared = Prepared([], [], [])
    for name, rows in (("train", train), ("eval", held_out)):
        if not rows:
            continue
        ids, account = fit_lengths(
            tokenize(tokenizer, rows, section.train_on), max_length, section.on_too_long, plain_text=bool(rows[0].text)
        )
        prepared.accounts[name] = account
        for line in account_lines(account):
            say(line if name == "train" else f"evaluation {line}")
        if name == "train":
            prepared.train = ids
        else:
            places = {row.place for row in ids}
            prepared.eval, prepared.eval_rows = ids, [row for row in rows if row.place in places]
    prepared.fingerprint = fingerprint(prepared.train + prepared.eval)
    say("one row, trained tokens in brackets:")
    say("    " + marked(tokenizer, prepared.train[0]).rstrip("\n").replace("\n", "\n    "))
    return prepared


def source_name(source: str) -> str:
    """A data source without its folder, for records that are shared."""
    return Path(source).name if Path(source).exists() else source
