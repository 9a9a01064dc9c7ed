"""Rows to text by the chat template, and to token ids with the trained tokens marked.

One `render` serves training, evaluation and chat, so that what is trained is what is asked later.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lorasmith.data.rows import Row
from lorasmith.errors import DataError

IGNORED = -100  # the label id that torch's cross entropy and every trainer here skip
BATCH = 1000  # rows tokenized at a time; the tokenizer's threads share a batch


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as text.

    Attributes:
        text: What is tokenized.
        spans: Start and end, in characters, of the trained parts of `text`.
        special: Whether the tokenizer must add its own BOS; a chat template writes it itself.
    """

    text: str
    spans: list[tuple[int, int]]
    special: bool


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row as token ids; `labels` equals `input_ids` where trained and IGNORED elsewhere."""

    place: str
    input_ids: list[int]
    labels: list[int]


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
    except TemplateError as error:
        raise DataError(f"the chat template refuses it ({error}).") from None


def render(tokenizer: PreTrainedTokenizerBase, row: Row, train_on: str) -> Rendered:
    """Text of a row and its trained parts.

    A trained assistant turn is what the template writes after it opened the turn, up to and with the stop token: the
    difference between the conversation rendered with and without the turn. White space behind the stop token is never
    generated, so it is not trained.

    Args:
        train_on: "assistant", or "all" for every token.

    Raises:
        DataError: If the turns cannot be told apart, because the template rewrites earlier turns.
    """
    if row.text:
        return Rendered(row.text, [(0, len(row.text))], special=True)
    if not row.messages:
        start = len(row.prompt) if train_on == "assistant" else 0
        return Rendered(row.prompt + row.completion, [(start, len(row.prompt + row.completion))], special=True)
    try:
        text = apply_template(tokenizer, row.messages, row.tools, answering=False)
        if train_on == "all":
            return Rendered(text, [(0, len(text))], special=False)
        return Rendered(text, _assistant_spans(tokenizer, row, text), special=False)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None


def _assistant_spans(tokenizer: PreTrainedTokenizerBase, row: Row, text: str) -> list[tuple[int, int]]:
    spans = []
    for i, message in enumerate(row.messages):
        if message["role"] != "assistant" or i < row.trained_from:
            continue
        before = apply_template(tokenizer, row.messages[:i], row.tools, answering=True)
        last = i == len(row.messages) - 1
        after = text if last else apply_template(tokenizer, row.messages[: i + 1], row.tools, answering=False)
        if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
            raise DataError(
                f"messages[{i}]: the chat template renders this turn differently inside the conversation than alone, "
                "so its tokens cannot be told apart. Set model.chat_template to one that leaves earlier turns alone."
            )
        spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
    return spans


def tokenize(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], train_on: str) -> list[TokenRow]:
    """Token ids of rows with their labels. Plain text ends with the EOS token, which is trained.

    Raises:
        DataError: If a trained part begins in mid-token, or does not end with a stop token.
    """
    rows = list(rows)
    stop_ids = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    result = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        rendered = [render(tokenizer, row, train_on) for row in batch]
        special = rendered[0].special
        encoded = tokenizer(
            [one.text for one in rendered],
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for row, one, ids, offsets in zip(
            batch, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            labels = _labels(ids, offsets, one, row.place)
            if special and (not ids or ids[-1] != tokenizer.eos_token_id):
                ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
            elif special:
                labels[-1] = tokenizer.eos_token_id
            _check_stops(tokenizer, row, ids, labels, stop_ids, train_on)
            result.append(TokenRow(row.place, list(ids), labels))
    return result


def _labels(ids: list[int], offsets: list[tuple[int, int]], rendered: Rendered, place: str) -> list[int]:
    """Labels of one row; a token is trained if it begins inside a span."""
    labels = [IGNORED] * len(ids)
    spans = iter(rendered.spans)
    start, end = next(spans, (len(rendered.text), len(rendered.text)))
    for i, (left, right) in enumerate(offsets):
        while left >= end and left < len(rendered.text):
            following = next(spans, None)
            if following is None:
                return labels
            start, end = following
        if left < start < right:
            token = rendered.text[left:right]
            raise DataError(
                f"{place}: the answer begins in the middle of token {token!r}, which the model never sees when asked. "
                "End the prompt, or begin the answer, without white space."
            )
        if start <= left < end and right > left:
            labels[i] = ids[i]
    return labels


def _check_stops(
    tokenizer: PreTrainedTokenizerBase, row: Row, ids: list[int], labels: list[int], stop_ids: set[int], train_on: str
) -> None:
    """Every trained turn must end with a token that ends generation, or the model never learns to stop."""
    if not row.messages or train_on == "all":
        return
    for i, label in enumerate(labels):
        is_last = label != IGNORED and (i + 1 == len(labels) or labels[i + 1] == IGNORED)
        if is_last and ids[i] not in stop_ids:
            raise DataError(
                f"{row.place}: the chat template ends the assistant's turn with {tokenizer.decode([ids[i]])!r}, "
                "which is no special token, so the model would never learn to stop. Set model.chat_template to one "
                "that ends turns with the EOS token."
            )


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
