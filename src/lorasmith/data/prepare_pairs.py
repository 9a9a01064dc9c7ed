"""From the recipe's `data:` to audited pairs of answers."""

from collections.abc import Callable
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorasmith.console import say
from lorasmith.data.answers import Said
from lorasmith.data.audit import SHOWN_ROWS, Account, account_lines, fingerprint
from lorasmith.data.mask import check_masks
from lorasmith.data.pair_tokens import PairTokens, answered, balance_line, fit_pairs, tokenize_pairs
from lorasmith.data.pairs import Found, Pair, read_pairs
from lorasmith.data.prepare import Prepared, read_each, show, uncollected
from lorasmith.data.rows import R, Row
from lorasmith.errors import DataError
from lorasmith.recipe import Data


@dataclass(slots=True)
class PreparedPairs(Prepared):
    """What a run on preferences trains and evaluates on.

    Attributes:
        train, eval: Both sequences of each pair, one behind the other; `eval_rows` are prompts with preferred answers.
    """

    train_pairs: list[PairTokens] = field(default_factory=list)
    eval_pairs: list[PairTokens] = field(default_factory=list)


@uncollected()
def read_train_and_eval_pairs(section: Data, seed: int) -> tuple[list[Pair], list[Pair], list[str]]:
    """All pairs of the recipe, split, weighted and free of overlap, and the refusals of dropped ones.

    Raises:
        DataError: At the first broken pair, unless the recipe drops them.
    """
    return read_and_divide(section, seed, read_pairs, "preference", "pairs are known by `chosen` and `rejected`")


def read_and_divide(
    section: Data, seed: int, reader: Callable[..., Found[R]], kind: str, known: str
) -> tuple[list[R], list[R], list[str]]:
    """Rows of one kind, from all sources of the recipe, as `divide` gives them.

    Args:
        reader: `pairs.read_pairs` or `pairs.read_judged`.
        kind: What the rows are called.
        known: By what they are known, for the refusal of keys that are sft.py's.
    """
    if section.format != "auto" or section.train_on != "assistant":
        raise DataError(f"data.format and data.train_on are for sft.py; {known}.")
    return read_each(section, seed, reader, kind)


@uncollected()
def prepare_pairs(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Pair],
    held_out: list[Pair],
    rejected: list[str],
    max_length: int | None,
) -> PreparedPairs:
    """Tokenize, cut to length, account for every pair, and show some as the model sees them.

    Raises:
        DataError: If pairs cannot be trained on as asked.
    """
    prepared = PreparedPairs([], [], [], rejected=list(rejected))
    for name, pairs in (("train", train), ("eval", held_out)):
        if not pairs:
            continue
        refused: list[str] = []
        tokens = tokenize_pairs(tokenizer, pairs, refused if section.on_bad_row == "drop" else None)
        if name == "train":
            usable = {pair.place for pair in tokens}
            shown = [answered(pair, answer) for pair in pairs if pair.place in usable for answer in _answers(pair)]
            prepared.mask_check = check_masks(tokenizer, shown)
        tokens, account = fit_pairs(tokens, max_length, section.on_too_long)
        account.rows_of(len(pairs), refused)
        prepared.rejected += refused
        prepared.accounts[name] = account
        _say_account(name, account, tokens)
        sequences = [row for pair in tokens for row in pair.rows()]
        if name == "train":
            prepared.train, prepared.train_pairs = sequences, tokens
        else:
            places = {pair.place for pair in tokens}
            prepared.eval, prepared.eval_pairs = sequences, tokens
            prepared.eval_rows = [answered(pair, pair.chosen) for pair in pairs if pair.place in places]
    prepared.fingerprint = fingerprint(prepared.train + prepared.eval)
    if prepared.mask_check:
        say(prepared.mask_check)
    show(tokenizer, prepared.train[:SHOWN_ROWS])
    return prepared


def _answers(pair: Pair) -> tuple[Said, Said]:
    return pair.chosen, pair.rejected


def _say_account(name: str, account: Account, tokens: list[PairTokens]) -> None:
    for line in account_lines(account):
        say(line if name == "train" else f"evaluation {line}")
    if name == "train":
        say(balance_line(tokens))


def pairs_as_dataset(pairs: list[PairTokens]) -> Dataset:
    """Pairs as the data set that trl's collator takes, and the longer sequence's ids, by which rows are ordered."""
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": [], "input_ids": []}
    for pair in pairs:
        columns["prompt_ids"].append(pair.prompt.tolist())
        columns["chosen_ids"].append(pair.chosen.tolist())
        columns["rejected_ids"].append(pair.rejected.tolist())
        longer = max(pair.chosen, pair.rejected, key=len)
        columns["input_ids"].append((pair.prompt + longer).tolist())
    return Dataset.from_dict(columns)


def pairs_as_sequences(pairs: list[PairTokens]) -> Dataset:
    """Pairs as the data set that trl's collator for reward models takes: each answer behind its prompt, as one row."""
    columns: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": [], "input_ids": []}
    for pair in pairs:
        chosen, rejected = pair.prompt + pair.chosen, pair.prompt + pair.rejected
        columns["chosen_ids"].append(chosen.tolist())
        columns["rejected_ids"].append(rejected.tolist())
        columns["input_ids"].append(max(chosen, rejected, key=len).tolist())
    return Dataset.from_dict(columns)


def both_answers(pairs: list[Pair], prepared: PreparedPairs) -> list[Row]:
    """Held-out pairs as rows that a reward model's exports are proven on: each preferred answer, then the other."""
    places = {pair.place for pair in prepared.eval_pairs}
    return [answered(pair, answer) for pair in pairs if pair.place in places for answer in _answers(pair)]
