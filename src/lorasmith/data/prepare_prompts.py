"""From the recipe's `data:` to audited prompts, whose answers the model writes in training."""

import hashlib
import json
from array import array
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorasmith.console import say
from lorasmith.data.audit import SHOWN_ROWS, TOO_LONG_LIMIT, Account, account_lines, fingerprint, quantiles
from lorasmith.data.prepare import Prepared, show, uncollected
from lorasmith.data.prepare_pairs import read_and_divide
from lorasmith.data.prompts import Prompt, alike, check_unseen, read_prompts, repeated, with_answer
from lorasmith.data.render import BATCH, IGNORED, Ids, TokenRow, apply_template, check_bos, check_calls, tokenize
from lorasmith.data.rows import ASSISTANT, Row, conversation
from lorasmith.errors import DataError
from lorasmith.recipe import Data


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """One prompt with its token ids, int32, the assistant's turn opened."""

    prompt: Prompt
    ids: Ids

    def row(self) -> TokenRow:
        """The prompt as a row of which nothing is trained."""
        return TokenRow(self.prompt.place, self.ids, array("i", [IGNORED]) * len(self.ids))


@dataclass(slots=True)
class PreparedPrompts(Prepared):
    """What a run on prompts trains and evaluates on.

    Attributes:
        train, eval: The prompts alone; `eval_rows` are those of which the answer is known, with it.
        fingerprint: Hash of all ids and of all columns.
    """

    train_prompts: list[PromptTokens] = field(default_factory=list)
    eval_prompts: list[PromptTokens] = field(default_factory=list)


@uncollected()
def read_train_and_eval_prompts(section: Data, seed: int) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """All prompts of the recipe, split, weighted, free of overlap and with the same columns, and the refusals.

    Raises:
        DataError: At the first broken row, unless the recipe drops them, or if a prompt to evaluate on is trained on.
    """
    reader = partial(read_prompts, system=section.system)
    train, held_out, rejected = read_and_divide(section, seed, reader, "prompts", "prompts are known by their columns")
    check_unseen(train, held_out)
    prompts = alike([*train, *held_out])
    return prompts[: len(train)], prompts[len(train) :], rejected


@uncollected()
def prepare_prompts(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Prompt],
    held_out: list[Prompt],
    rejected: list[str],
    longest: int | None,
) -> PreparedPrompts:
    """Tokenize, account for every prompt, and show some as the model sees them, with the columns of the rewards.

    Args:
        longest: Tokens that a prompt may have, or None for no limit.

    Raises:
        DataError: If prompts cannot be asked as they are, or too many are too long.
    """
    prepared = PreparedPrompts([], [], [], rejected=list(rejected))
    for name, prompts in (("train", train), ("eval", held_out)):
        if not prompts:
            continue
        refused: list[str] = []
        tokens = tokenize_prompts(tokenizer, prompts, refused if section.on_bad_row == "drop" else None)
        tokens, account, long = fit_prompts(tokens, longest, section.on_too_long)
        account.rows_of(len(prompts), refused)
        prepared.rejected += refused + long
        prepared.accounts[name] = account
        for line in account_lines(account):
            say(line if name == "train" else f"evaluation {line}")
        rows = [one.row() for one in tokens]
        if name == "train":
            prepared.train, prepared.train_prompts = rows, tokens
        else:
            prepared.eval, prepared.eval_prompts = rows, tokens
            prepared.eval_rows = _answered(tokenizer, tokens)
    if again := repeated([one.prompt for one in prepared.train_prompts]):
        say(f"prompts: {again} stand in an earlier row too, so that the model is asked them more often")
    prepared.fingerprint = _fingerprint(prepared)
    _say_how_asked(tokenizer, train[0])
    show(tokenizer, prepared.train[:SHOWN_ROWS])
    columns = [name for name in train[0].columns if name != "completion"]  # which trl hands to none
    say(f"columns that rewards are given: {', '.join(columns) or 'none'}")
    return prepared


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], rejected: list[str] | None = None
) -> list[PromptTokens]:
    """Token ids of prompts as trl's GRPOTrainer makes them.

    Args:
        rejected: Where refusals of single prompts go, which are then left out; by default the first one ends it.

    Raises:
        DataError: If the template refuses a prompt or leaves something out, or it begins or ends with a token too many.
    """
    found: list[PromptTokens] = []
    for start in range(0, len(prompts), BATCH):
        chunk = prompts[start : start + BATCH]
        try:
            ids = _ids(tokenizer, chunk)
        except DataError:
            ids = [None] * len(chunk)  # one alone must tell why
        for prompt, known in zip(chunk, ids, strict=True):
            try:
                found.append(_checked(tokenizer, prompt, _ids(tokenizer, [prompt])[0] if known is None else known))
            except DataError as error:
                told = str(error) if str(error).startswith(prompt.place) else f"{prompt.place}: {error}"
                if rejected is None:
                    raise DataError(told) from None
                rejected.append(told)
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> list[Any]:
    """Token ids of each prompt, or refuse them all."""
    if prompts[0].text:
        return list(tokenizer(text=[prompt.text for prompt in prompts])["input_ids"])
    texts = apply_template(tokenizer, [prompt.messages for prompt in prompts], None, answering=True)
    for prompt, text in zip(prompts, texts, strict=True):
        check_calls(conversation(prompt.place, prompt.messages), text)
    return list(tokenizer(texts, add_special_tokens=False)["input_ids"])


def _checked(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, found: list[int]) -> PromptTokens:
    ids = array("i", found)
    check_bos(tokenizer, prompt.place, ids)
    if prompt.text and ids and ids[-1] == tokenizer.eos_token_id:
        raise DataError(
            f"{prompt.place}: ends with {tokenizer.eos_token}, behind which a model says nothing. Remove it; if the "
            "tokenizer adds it, write the prompts as messages."
        )
    return PromptTokens(prompt, ids)


def fit_prompts(
    prompts: list[PromptTokens], longest: int | None, on_too_long: str
) -> tuple[list[PromptTokens], Account, list[str]]:
    """Leave out prompts over `longest` tokens; a prompt is never cut.

    Args:
        on_too_long: "error" drops up to 1 % of the prompts and refuses above; "drop".

    Returns:
        The prompts, their account, and a line for each one left out.

    Raises:
        DataError: If too many prompts are too long, or none is left.
    """
    account = Account(read=len(prompts), max_length=longest)
    kept = [one for one in prompts if longest is None or len(one.ids) <= longest]
    long = [one for one in prompts if longest is not None and len(one.ids) > longest]
    if long and (not kept or (on_too_long == "error" and len(long) > TOO_LONG_LIMIT * len(prompts))):
        raise _too_many(long, sorted(len(one.ids) for one in prompts), longest, bool(kept))
    if not kept:
        raise DataError("no prompt is left: the chat template refuses them all. Set model.chat_template to another.")
    if long:
        account.dropped["too long"] = len(long)
    account.trained = len(kept)
    lengths = sorted(len(one.ids) for one in kept)
    account.tokens = sum(lengths)
    account.length_quantiles = quantiles(lengths)
    told = [f"{one.prompt.place}: {len(one.ids)} tokens, over data.max_prompt_length ({longest})." for one in long]
    return kept, account, told


def _too_many(long: list[PromptTokens], lengths: list[int], longest: int | None, some_left: bool) -> DataError:
    enough = -(-lengths[-(-99 * len(lengths) // 100) - 1] // 8) * 8
    drop = ", or data.on_too_long: drop" if some_left else ""
    return DataError(
        f"{long[0].prompt.place}: {len(long)} of {len(lengths)} prompts are over data.max_prompt_length ({longest} "
        f"tokens; the longest has {lengths[-1]}). Set data.max_prompt_length: {enough}, which holds 99 %{drop}."
    )


def _answered(tokenizer: PreTrainedTokenizerBase, tokens: list[PromptTokens]) -> list[Row]:
    """The prompts whose answer is known, with it, as far as the two can be told apart as tokens."""
    rows = [row for row in (with_answer(one.prompt) for one in tokens) if row is not None]
    usable = {row.place for row in tokenize(tokenizer, rows, ASSISTANT, [])}
    return [row for row in rows if row.place in usable]


def _fingerprint(prepared: PreparedPrompts) -> str:
    digest = hashlib.sha256(fingerprint(prepared.train + prepared.eval).encode())
    for one in prepared.train_prompts + prepared.eval_prompts:
        digest.update(one.prompt.digest.encode())
    return digest.hexdigest()


def _say_how_asked(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """What is odd about how the model is asked: text where a template is there, or a turn that is not opened."""
    if prompt.text and tokenizer.chat_template:
        say("prompts: text, taken as it is without the chat template; messages or a `question` are asked by it")
    if prompt.messages:
        opened, closed = (apply_template(tokenizer, prompt.messages, None, answering=how) for how in (True, False))
        if opened == closed:
            say(
                "prompts: the chat template does not open the assistant's turn for an answer (add_generation_prompt "
                "changes nothing). Check in the prompts below that the model knows whose turn it is."
            )


def prompts_as_dataset(prompts: list[PromptTokens]) -> Dataset:
    """Prompts as the data set that trl's GRPOTrainer takes: `prompt`, every column of the rows, and `input_ids`.

    Arrow has one type for all values of a column, so it adds keys to objects, makes numbers of different kinds the
    same, and refuses a column of text and numbers. So values lie there as JSON and are read when a row is taken.
    """
    values: dict[str, list[Any]] = {"prompt": [json.dumps(one.prompt.asked) for one in prompts]}
    for name in prompts[0].prompt.columns if prompts else ():
        values[name] = [json.dumps(one.prompt.columns[name]) for one in prompts]
    ids = [one.ids.tolist() for one in prompts]
    return Dataset.from_dict({**values, "input_ids": ids}).with_transform(_read_back)


def _read_back(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: values if name == "input_ids" else [json.loads(value) for value in values]
        for name, values in batch.items()
    }


def restored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `prompts_as_dataset` without the token ids, which are no column of the user's, for reward functions."""
    return [{name: value for name, value in row.items() if name != "input_ids"} for row in rows]
