"""From the recipe's `data:` to audited texts with labels."""

from array import array
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.data.examples import Example, PreparedTask, fit_examples, prepared_task
from lorasmith.data.labelled import MULTI, REGRESSION, Labelled, Problem, balance, read_labelled
from lorasmith.data.prepare import read_each, uncollected
from lorasmith.data.render import IGNORED
from lorasmith.errors import DataError
from lorasmith.recipe import Data

AT_ONCE = 4096  # rows given to the tokenizer


@uncollected()
def read_train_and_eval_labelled(section: Data, seed: int) -> tuple[list[Labelled], list[Labelled], list[str]]:
    """All rows of the recipe, split, weighted and free of overlap, and the refusals of dropped ones.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    return read_each(section, seed, read_labelled, "texts with labels")


@uncollected()
def prepare_labelled(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Labelled],
    held_out: list[Labelled],
    rejected: list[str],
    problem: Problem,
    max_length: int | None,
) -> PreparedTask:
    """Tokenize, cut to length, account for every row and label, and show some as the model sees them.

    Raises:
        DataError: If rows cannot be trained on as asked.
    """
    parts: dict[str, Any] = {}
    for name, rows in (("train", train), ("eval", held_out)):
        if not rows:
            continue
        examples, cut = tokenize_labelled(tokenizer, rows, problem, max_length, section.on_too_long == "truncate")
        kept, account = fit_examples(examples, max_length, section.on_too_long)
        account.truncated = cut
        account.notes = balance(rows, problem)
        parts[name] = kept, account, rows
    prepared = prepared_task(parts, tokenizer, rejected, "")
    prepared.outputs = len(problem.labels)
    return prepared


def tokenize_labelled(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Labelled],
    problem: Problem,
    max_length: int | None,
    truncate: bool,
) -> tuple[list[Example], int]:
    """Each row as the tokenizer writes it, special tokens included, and how many were cut at their ends.

    Raises:
        DataError: If a row's label is none of the problem's, or its text gives no token.
    """
    found, cut = [], 0
    for ids, types, row, was_cut in encoded(tokenizer, rows, max_length, truncate):
        target = problem.target(row.label, row.place)
        found.append(Example(row.place, ids, array("i", [IGNORED]) * len(ids), target, wanted(problem, target), types))
        cut += was_cut
    return found, cut


def encoded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Labelled], max_length: int | None, truncate: bool
) -> Any:
    """Ids, token types or None, the row, and whether it was cut, of each row.

    Raises:
        DataError: If a text gives no token, or some rows have a second text and others none.
    """
    paired = [row for row in rows if row.text_pair]
    if paired and len(paired) < len(rows):
        alone = next(row for row in rows if not row.text_pair)
        raise DataError(f"{alone.place}: text_pair: missing, and other rows have one. Fix or remove the line.")
    with_types = "token_type_ids" in tokenizer.model_input_names and bool(paired)
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        pairs = [row.text_pair for row in some] if paired else None
        out = tokenizer(
            [row.text for row in some],
            pairs,
            truncation=truncate and max_length is not None,
            max_length=max_length if truncate else None,
            return_token_type_ids=with_types,
            return_attention_mask=False,
            verbose=False,
        )
        for at, row in enumerate(some):
            ids = array("i", out["input_ids"][at])
            if not ids:
                raise DataError(f"{row.place}: text: gives no token. Fix or remove the line.")
            types = array("i", out["token_type_ids"][at]) if with_types else None

            yield ids, types, row, bool(truncate and out.encodings[at].overflowing)


def wanted(problem: Problem, target: Any) -> str:
    """What a row is to be told, in words."""
    if problem.kind == REGRESSION:
        return f"{target:g}"
    if problem.kind == MULTI:
        return ", ".join(name for name, given in zip(problem.labels, target, strict=True) if given) or "no label"
    return problem.labels[target]
