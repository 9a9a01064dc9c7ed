"""Rows to text by the chat template, and to token ids with the trained tokens marked.

One rendering serves training, evaluation and chat, so that what is trained is what is asked later.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lorasmith.data.rows import ASSISTANT, Row
from lorasmith.errors import DataError

IGNORED = -100  # the label id that torch's cross entropy and every trainer here skip
BATCH = 1000  # texts tokenized at a time; the tokenizer's threads share a batch


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row, or one turn of it, as text.

    Attributes:
        text: What is tokenized.
        spans: Start and end, in characters, of the trained parts of `text`.
        special: Whether the tokenizer must add its own BOS; a chat template writes it itself.
    """

    place: str
    text: str
    spans: list[tuple[int, int]]
    special: bool


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row as token ids; `labels` equals `input_ids` where trained and IGNORED elsewhere."""

    place: str
    input_ids: list[int]
    labels: list[int]


class _Rewritten(Exception):
    """The template renders a turn differently inside the conversation than at its end."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[Any] | None, *, answering: bool
) -> str:
    """Text of a conversation by the tokenizer's chat template; `answering` opens the assistant's turn.

    Raises:
        DataError: If the tokenizer has no template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template. Set model.chat_template: chatml, or a .jinja file.")
    try:
        return str(
            tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=answering)
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template refuses it ({' '.join(str(error).split())}).") from None


def render(tokenizer: PreTrainedTokenizerBase, row: Row, train_on: str) -> list[Rendered]:
    """Text of a row and its trained parts.

    A trained assistant turn is what the template writes after it opened the turn, up to and with the stop token: the
    difference between the conversation rendered with and without the turn. White space behind the stop token is never
    generated, so it is not trained. Where the template rewrites earlier turns, as reasoning templates do that drop
    their thinking, each turn becomes a text of its own, as the model would see it when it answers.

    Args:
        train_on: "assistant", or "all" for every token.

    Raises:
        DataError: If the turns cannot be told apart, or the template leaves a tool call out.
    """
    if row.text:
        return [Rendered(row.place, row.text, [(0, len(row.text))], special=True)]
    if not row.messages:
        text = row.prompt + row.completion
        start = len(row.prompt) if train_on == ASSISTANT else 0
        return [Rendered(row.place, text, [(start, len(text))], special=True)]
    try:
        text = apply_template(tokenizer, row.messages, row.tools, answering=False)
        _check_calls(row, text)
        if train_on == "all":
            return [Rendered(row.place, text, [(0, len(text))], special=False)]
        return _assistant_turns(tokenizer, row, text)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None


def _assistant_turns(tokenizer: PreTrainedTokenizerBase, row: Row, text: str) -> list[Rendered]:
    turns = [i for i, trained in enumerate(row.trained) if trained]
    try:
        return [Rendered(row.place, text, [_span(tokenizer, row, i, text) for i in turns], special=False)]
    except _Rewritten:
        pass
    alone = []
    for i in turns:
        seen = apply_template(tokenizer, row.messages[: i + 1], row.tools, answering=False)
        try:
            alone.append(Rendered(row.place, seen, [_span(tokenizer, row, i, seen)], special=False))
        except _Rewritten:
            raise DataError(
                f"messages[{i}]: the chat template does not continue the turn that it opens, so its tokens cannot be "
                "told apart. Set model.chat_template to another."
            ) from None
    return alone


def _span(tokenizer: PreTrainedTokenizerBase, row: Row, i: int, text: str) -> tuple[int, int]:
    """Where message `i` stands in `text`, from behind the opened turn to its stop token."""
    before = apply_template(tokenizer, row.messages[:i], row.tools, answering=True)
    after = apply_template(tokenizer, row.messages[: i + 1], row.tools, answering=False)
    if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
        raise _Rewritten
    return len(before), len(before) + len(after[len(before) :].rstrip())


def _check_calls(row: Row, text: str) -> None:
    """A template without tool support leaves calls out silently; then the turn would teach nothing."""
    for i, message in enumerate(row.messages):
        for call in message.get("tool_calls", ()):
            if call["function"]["name"] not in text:
                raise DataError(
                    f"messages[{i}]: the chat template leaves the tool call `{call['function']['name']}` out. "
                    "Set model.chat_template to one that knows tools, such as chatml."
                )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], train_on: str, rejected: list[str] | None = None
) -> list[TokenRow]:
    """Token ids of rows with their labels. Plain text ends with the EOS token, which is trained.

    Args:
        rejected: Where refusals of single rows go, which are then left out; by default the first one ends it.

    Raises:
        DataError: If a trained part begins in mid-token, or does not end with a stop token.
    """
    texts: list[Rendered] = []
    for row in rows:
        try:
            texts += render(tokenizer, row, train_on)
        except DataError as error:
            if rejected is None:
                raise
            rejected.append(str(error))
    stop_ids = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    result = []
    for batch in _batches(texts):
        encoded = tokenizer(
            [one.text for one in batch],
            add_special_tokens=batch[0].special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for one, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            try:
                labels = _labels(ids, offsets, one)
                if one.special:
                    ids, labels = _ended(ids, labels, tokenizer.eos_token_id)
                elif train_on == ASSISTANT:
                    _check_stops(tokenizer, one, ids, labels, stop_ids)
                _check_bos(tokenizer, one, ids)
            except DataError as error:
                if rejected is None:
                    raise
                rejected.append(str(error))
            else:
                result.append(TokenRow(one.place, ids, labels))
    return result


def _batches(texts: list[Rendered]) -> Iterator[list[Rendered]]:
    """Up to BATCH texts in order, conversations and plain texts apart."""
    for _, alike in itertools.groupby(texts, key=lambda one: one.special):
        while batch := list(itertools.islice(alike, BATCH)):
            yield batch


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[Any] | None
) -> list[int]:
    """Token ids of a conversation with the assistant's turn opened, as training saw it."""
    text = apply_template(tokenizer, messages, tools, answering=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_prompt(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[int]:
    """Token ids of everything before a row's last answer."""
    if row.messages:
        return prompt_ids(tokenizer, row.messages[: row.answer_start], row.tools)
    ids = list(tokenizer(row.prompt)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _ended(ids: list[int], labels: list[int], eos: int) -> tuple[list[int], list[int]]:
    """Plain text with a trained EOS at its end."""
    if ids and ids[-1] == eos:
        return ids, [*labels[:-1], eos]
    return [*ids, eos], [*labels, eos]


def _labels(ids: list[int], offsets: list[tuple[int, int]], rendered: Rendered) -> list[int]:
    """Labels of one text; a token is trained if it begins inside a span."""
    labels = [IGNORED] * len(ids)
    spans = iter(rendered.spans)
    start, end = next(spans)
    for i, (left, right) in enumerate(offsets):
        while left >= end:
            following = next(spans, None)
            if following is None:
                return labels
            start, end = following
        if left < start < right:
            raise DataError(
                f"{rendered.place}: the answer begins in the middle of token {rendered.text[left:right]!r}, which the "
                "model never sees when asked. End the prompt, or begin the answer, without white space."
            )
        if start <= left < end and right > left:
            labels[i] = ids[i]
    return labels


def _check_stops(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, ids: list[int], labels: list[int], stop_ids: set[int]
) -> None:
    """Every trained turn must end with a token that ends generation, or the model never learns to stop."""
    for i, label in enumerate(labels):
        is_last = label != IGNORED and (i + 1 == len(labels) or labels[i + 1] == IGNORED)
        if is_last and label not in stop_ids:
            raise DataError(
                f"{rendered.place}: the chat template ends the assistant's turn with {tokenizer.decode([ids[i]])!r}, "
                "which is no special token, so the model would never learn to stop. Set model.chat_template to one "
                "that ends turns with the EOS token."
            )


def _check_bos(tokenizer: PreTrainedTokenizerBase, rendered: Rendered, ids: list[int]) -> None:
    """A BOS both in the text and added by the tokenizer is never seen at inference."""
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise DataError(
            f"{rendered.place}: begins with {tokenizer.bos_token} twice. Remove it from the row, or from the template."
        )
