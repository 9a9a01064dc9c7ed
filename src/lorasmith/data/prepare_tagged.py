"""From the recipe's `data:` to audited words with tags."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.data.audit import Account, quantiles
from lorasmith.data.examples import Example, PreparedTask, prepared_task
from lorasmith.data.prepare import read_each, uncollected
from lorasmith.data.render import IGNORED, TokenRow
from lorasmith.data.strict_json import shown
from lorasmith.data.tag_tokens import encode_words, tokenize_tagged, with_known_tags
from lorasmith.data.tag_windows import TagWindow, tag_windows
from lorasmith.data.tagged import OUTSIDE, Tagged, is_bio, labels_of, read_tagged
from lorasmith.errors import DataError
from lorasmith.recipe import Data

SHOWN_KINDS = 12  # in a sentence


@dataclass(slots=True)
class PreparedTags(PreparedTask):
    """What a tagger's run trains and evaluates on.

    Attributes:
        windows: Of `eval_rows`, one for each example of `eval`: evaluations read rows as predictions do, uncut.
    """

    windows: list[TagWindow] = field(default_factory=list)


@uncollected()
def read_train_and_eval_tagged(
    section: Data, names: Sequence[str], seed: int
) -> tuple[list[Tagged], list[Tagged], list[str]]:
    """All rows of the recipe, split, weighted and free of overlap, and the refusals of dropped ones.

    Args:
        names: Of the tags, for rows with numbers in their place; or none.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    return read_each(section, seed, partial(read_tagged, names=names or None), "words with tags")


def tags_of(rows: Sequence[Tagged], names: Sequence[str]) -> list[str]:
    """All tags in the order of the model's outputs: as the recipe names them, or as the rows have them.

    Raises:
        DataError: If BIO tags and plain ones are mixed, or there is nothing to tell apart.
    """
    plain = [name for name in names if name != OUTSIDE and not is_bio(name)]
    if plain and len(plain) < len(set(names) - {OUTSIDE}):
        raise DataError(f"task.labels: `{shown(plain[0])}` is plain, others begin with B- or I-. Use one kind.")
    found = list(names) or labels_of(rows)
    if len(found) < 2:
        raise DataError(
            f"all words of {len(rows)} rows have the tag `{shown(found[0])}`: there is nothing to tell apart."
        )
    return found


@uncollected()
def prepare_tagged(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Tagged],
    held_out: list[Tagged],
    rejected: list[str],
    labels: Sequence[str],
    max_length: int | None,
) -> PreparedTags:
    """Tokenize, cut what is trained on to length, account for every row and tag, and show some as the model sees them.

    Raises:
        DataError: If rows cannot be trained on as asked.
    """
    refused: list[str] = []
    kept = refused if section.on_bad_row == "drop" else None
    tokens, account = tokenize_tagged(tokenizer, train, labels, max_length, section.on_too_long, kept)
    account.notes = [balance(train), *account.notes]
    parts: dict[str, Any] = {"train": ([_example(row, labels) for row in tokens], account, train)}
    rows: Any = []
    windows: list[TagWindow] = []
    if held_out:
        rows, windows, account = _windowed(tokenizer, held_out, labels, max_length, kept)
        parts["eval"] = [_of_window(window, rows[window.row], labels) for window in windows], account, rows
    done = prepared_task(parts, tokenizer, rejected + refused, "")
    prepared = PreparedTags(done.train, done.eval, rows, done.accounts, done.rejected, done.fingerprint)
    prepared.windows, prepared.outputs = windows, len(labels)
    return prepared


def _example(row: TokenRow, labels: Sequence[str]) -> Example:
    marked = array("i", (IGNORED if tag == IGNORED else i for i, tag in zip(row.input_ids, row.labels, strict=True)))
    wanted = " ".join(labels[tag] for tag in row.labels if tag != IGNORED)
    return Example(row.place, row.input_ids, marked, row.labels.tolist(), wanted)


def _windowed(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Tagged],
    labels: Sequence[str],
    max_length: int | None,
    rejected: list[str] | None,
) -> tuple[list[Tagged], list[TagWindow], Account]:
    """Rows to evaluate on that have tokens, the windows in which they are read, and their account."""
    account = Account(read=len(rows), max_length=max_length, labelled=True)
    known = with_known_tags(rows, labels, rejected)
    encoded = encode_words(tokenizer, known)
    both = [(row, tokens) for row, tokens in zip(known, encoded, strict=True) if tokens.firsts]
    for reason, count in (("another tag", len(rows) - len(known)), ("no token", len(known) - len(both))):
        if count:
            account.dropped[reason] = count
    if not both:
        raise DataError(f"no row to evaluate on is left of {account.read}: {account.dropped}. Give others.")
    windows = [one for one in tag_windows([tokens for _, tokens in both], max_length) if one.is_read]
    lengths = sorted(len(window.input_ids) for window in windows)
    account.trained, account.tokens, account.length_quantiles = len(both), sum(lengths), quantiles(lengths)
    account.supervised_tokens = sum(len(tokens.firsts) for _, tokens in both)
    account.notes = [balance([row for row, _ in both])]
    several = sum(count > 1 for count in Counter(window.row for window in windows).values())
    if several:
        account.notes.append(f"rows: {several} are longer than trainer.max_length and read in windows that overlap")
    return [row for row, _ in both], windows, account


def _of_window(window: TagWindow, row: Tagged, labels: Sequence[str]) -> Example:
    assert row.tags is not None
    at = {label: i for i, label in enumerate(labels)}
    target = array("i", (IGNORED if word < 0 else at[row.tags[word]] for word in window.words))
    return _example(TokenRow(row.place, window.input_ids, target), labels)


def balance(rows: Sequence[Tagged]) -> str:
    """How often each kind of entity, or each tag, stands in the rows, as a sentence."""
    tags = Counter(tag for row in rows for tag in row.tags or ())
    entities = {tag[2:]: count for tag, count in tags.items() if tag.startswith("B-")}
    counts = Counter(entities or tags)
    shares = [f"{shown(name)} {count:,} ({count / counts.total():.1%})" for name, count in counts.most_common()]
    more = f" and {len(shares) - SHOWN_KINDS} kinds more" if len(shares) > SHOWN_KINDS else ""
    return f"{'entities' if entities else 'tags'}: {', '.join(shares[:SHOWN_KINDS])}{more}"
