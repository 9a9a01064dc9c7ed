"""From the recipe's `data:` to audited sources and targets."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.data.audit import TOO_LONG_LIMIT, quantiles, too_many
from lorasmith.data.examples import Example, PreparedTask, fit_examples, prepared_task
from lorasmith.data.prepare import read_each, uncollected
from lorasmith.data.render import IGNORED, Ids
from lorasmith.data.rows import Row
from lorasmith.data.source_target import read_source_target
from lorasmith.errors import DataError, ModelError
from lorasmith.recipe import Data

AT_ONCE = 4096  # texts given to the tokenizer


@uncollected()
def read_train_and_eval_source_target(section: Data, seed: int) -> tuple[list[Row], list[Row], list[str]]:
    """All rows of the recipe, split, weighted and free of overlap, and the refusals of dropped ones.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    return read_each(section, seed, partial(read_source_target, kind=section.format))


@uncollected()
def prepare_source_target(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Row],
    held_out: list[Row],
    rejected: list[str],
    prefix: str,
    max_length: int | None,
    max_target_length: int | None,
) -> PreparedTask:
    """Tokenize both sides, fit them to their lengths, account for every row, and show some as the model sees them.

    Raises:
        DataError: If rows cannot be trained on as asked.
        ModelError: If the tokenizer ends no target.
    """
    parts: dict[str, Any] = {}
    for name, rows in (("train", train), ("eval", held_out)):
        if not rows:
            continue
        examples, cut_sources = tokenize_rows(tokenizer, rows, prefix, max_length, section.on_too_long == "truncate")
        examples, notes, cut, dropped = _fit_targets(tokenizer, examples, max_target_length, section.on_too_long)
        kept, account = fit_examples(examples, max_length, section.on_too_long)
        lengths = sorted(len(row.target) for row in kept)
        account.read = len(rows)
        account.dropped |= {"target too long": dropped} if dropped else {}
        account.truncated, account.supervised_tokens = len(cut | cut_sources), sum(lengths)
        q = quantiles(lengths)
        account.notes = [
            f"targets: {sum(lengths):,} tokens; a target has {q['min']} to {q['max']} (median {q['median']}, "
            f"p99 {q['p99']})",
            *notes,
            *_unknown(tokenizer, kept),
        ]
        parts[name] = kept, account, rows
    prepared = prepared_task(parts, tokenizer, rejected, "")
    prepared.outputs = 0
    return prepared


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], prefix: str, max_length: int | None, truncate: bool
) -> tuple[list[Example], set[str]]:
    """Each row as the tokenizer writes source and target, special tokens included; places of sources that were cut.

    Raises:
        DataError: If a text gives no token.
        ModelError: If the tokenizer ends no target.
    """
    sources, cut = source_ids(tokenizer, [prefix + row.prompt for row in rows], max_length if truncate else None)
    targets = _encoded(tokenizer, {"text_target": [row.completion for row in rows]})
    added = len(_encoded(tokenizer, {"text_target": [""]})[0])
    _check_end(tokenizer, targets[0])
    found = []
    for row, source, target in zip(rows, sources, targets, strict=True):
        if len(target) <= added or not source:
            name = "target" if source else "source"
            raise DataError(f"{row.place}: its {name} gives no token. Fix or remove the line.")
        ids = array("i", source)
        found.append(Example(row.place, ids, array("i", [IGNORED]) * len(ids), target, row.completion))
    return found, {rows[i].place for i in cut}


def source_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int | None
) -> tuple[list[list[int]], set[int]]:
    """Token ids of sources, longer ones cut to `max_length` as the tokenizer cuts; indices of those."""
    found = _encoded(tokenizer, {"text": list(texts)})
    too_long = [i for i, ids in enumerate(found) if max_length is not None and len(ids) > max_length]
    cut = _encoded(tokenizer, {"text": [texts[i] for i in too_long]}, truncation=True, max_length=max_length)
    for i, ids in zip(too_long, cut, strict=True):
        found[i] = ids
    return found, set(too_long)


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]], **options: Any) -> list[list[int]]:
    """Token ids of texts, given under the tokenizer's own name of their side."""
    [(side, listed)] = texts.items()
    found: list[list[int]] = []
    quiet: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    for start in range(0, len(listed), AT_ONCE):
        given: dict[str, Any] = {side: listed[start : start + AT_ONCE]}
        found += tokenizer(**given, **quiet, **options)["input_ids"]
    return found


def _check_end(tokenizer: PreTrainedTokenizerBase, target: Sequence[int]) -> None:
    """A target must end with EOS, behind which some tokenizers write its language.

    Raises:
        ModelError: If it does not, so that no model could learn to stop.
    """
    if tokenizer.eos_token_id not in list(target)[-2:]:
        raise ModelError(
            f"the tokenizer writes no {tokenizer.eos_token} behind a target, so that no model would learn to stop. "
            "Give its tokenizer.json a post-processor that does."
        )


def _fit_targets(
    tokenizer: PreTrainedTokenizerBase, rows: list[Example], longest: int | None, on_too_long: str
) -> tuple[list[Example], list[str], set[str], int]:
    """Refuse, drop or cut targets over `longest` tokens.

    A cut one is without its EOS: the model learns how it begins, and not to stop in mid-sentence.

    Returns:
        The rows, what was cut as a sentence, the places of what was cut, and how many rows were dropped.

    Raises:
        DataError: If over 1 % of the targets are too long and are to be neither dropped nor cut, or none is left.
    """
    too_long = [row for row in rows if longest is not None and len(row.target) > longest]
    if longest is None or not too_long:
        return rows, [], set(), 0
    if on_too_long == "truncate":
        if too_long[0].target[-1] != tokenizer.eos_token_id:
            raise DataError(
                f"{too_long[0].place}: its target is over trainer.max_target_length ({longest} tokens), and one that "
                "ends with its language is not cut. Raise it, or set data.on_too_long: drop."
            )
        found = [_cut(tokenizer, row, longest) if len(row.target) > longest else row for row in rows]
        note = f"note: {len(too_long)} targets are cut to {longest} tokens; no end is learnt where they are cut"
        return found, [note], {row.place for row in too_long}, 0
    if on_too_long == "error" and len(too_long) > TOO_LONG_LIMIT * len(rows):
        lengths = sorted(len(row.target) for row in rows)
        raise too_many(too_long[0].place, len(too_long), lengths, longest, "targets", "max_target_length")
    kept = [row for row in rows if len(row.target) <= longest]
    if not kept:
        raise DataError(f"no row is left of {len(rows)}: all targets are too long. Raise trainer.max_target_length.")
    return kept, [], set(), len(too_long)


def _cut(tokenizer: PreTrainedTokenizerBase, row: Example, longest: int) -> Example:
    target = row.target[:longest]
    return replace(row, target=target, wanted=f"{tokenizer.decode(target, skip_special_tokens=True)} ...")


def _unknown(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> list[str]:
    """How much of the targets the tokenizer has no token for, as a sentence, if there is any."""
    unknown = tokenizer.unk_token_id
    both: dict[str, list[Ids | list[int]]] = {
        "targets, which the model cannot write": [row.target for row in rows],
        "sources, which the model cannot read": [row.input_ids for row in rows],
    }
    told = []
    for what, texts in both.items():
        count = 0 if unknown is None else sum(ids.count(unknown) for ids in texts)
        if count:
            share = count / sum(map(len, texts))
            told.append(f"note: {count:,} tokens ({share:.2%}) are {tokenizer.unk_token} in {what}")
    return told
