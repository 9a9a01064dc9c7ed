"""Rows to text by the chat template, and to token ids with the trained tokens marked.

One rendering serves training, evaluation and chat, so that what is trained is what is asked later.
"""

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from jinja2 import TemplateError
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from lorasmith.data.rows import ASSISTANT, Row
from lorasmith.errors import DataError

Ids: TypeAlias = "array[int]"  # int32
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
    """One row as token ids, int32; `labels` equals `input_ids` where trained and IGNORED elsewhere."""

    place: str
    input_ids: Ids
    labels: Ids

    @property
    def said(self) -> str:
        """What is to be told of the row, where that is no tokens of it."""
        return ""

    @property
    def supervised(self) -> int:
        """How many tokens are trained."""
        return len(self.labels) - self.labels.count(IGNORED)


# The first so many messages of a row, the next turn opened or not, to their text.
Known = dict[tuple[int, bool], str]
TextOf = Callable[[int, bool], str]


class _Rewritten(Exception):
    """The template renders a turn differently inside the conversation than at its end."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[Any], tools: list[Any] | None, *, answering: bool
) -> Any:
    """Text of a conversation, or of a list of them, by the chat template; `answering` opens the assistant's turn.

    Raises:
        DataError: If the tokenizer has no template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template. Set model.chat_template: chatml, or a .jinja file.")
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=answering)
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template refuses it ({' '.join(str(error).split())}).") from None


def render(tokenizer: PreTrainedTokenizerBase, row: Row, train_on: str, known: Known | None = None) -> list[Rendered]:
    """Text of a row and its trained parts.

    A trained assistant turn is what the template writes after it opened the turn, up to and with the stop token: the
    difference between the conversation rendered with and without the turn. White space behind the stop token is never
    generated, so it is not trained. Where the template rewrites earlier turns, as reasoning templates do that drop
    their thinking, each turn becomes a text of its own, as the model would see it when it answers.

    Args:
        train_on: "assistant", or "all" for every token.
        known: Texts of the row's beginnings that were rendered already (`_render_ahead`).

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

        def text_of(end: int, answering: bool) -> str:
            if known is not None and (end, answering) in known:
                return known[end, answering]
            return apply_template(tokenizer, row.messages[:end], row.tools, answering=answering)

        text = text_of(len(row.messages), False)
        check_calls(row, text)
        if train_on == "all":
            return [Rendered(row.place, text, [(0, len(text))], special=False)]
        return _assistant_turns(text_of, row, text)
    except DataError as error:
        raise DataError(f"{row.place}: {error}") from None


def _assistant_turns(text_of: TextOf, row: Row, text: str) -> list[Rendered]:
    turns = [i for i, trained in enumerate(row.trained) if trained]
    try:
        return [Rendered(row.place, text, [_span(text_of, i, text) for i in turns], special=False)]
    except _Rewritten:
        pass
    alone = []
    for i in turns:
        seen = text_of(i + 1, False)
        try:
            alone.append(Rendered(row.place, seen, [_span(text_of, i, seen)], special=False))
        except _Rewritten:
            raise DataError(
                f"messages[{i}]: the chat template does not continue the turn that it opens, so its tokens cannot be "
                "told apart. Set model.chat_template to another."
            ) from None
    return alone


def _span(text_of: TextOf, i: int, text: str) -> tuple[int, int]:
    """Where message `i` stands in `text`, from behind the opened turn to its stop token."""
    before, after = text_of(i, True), text_of(i + 1, False)
    if not (text.startswith(before) and text.startswith(after) and len(after) > len(before)):
        raise _Rewritten
    return len(before), len(before) + len(after[len(before) :].rstrip())


def check_calls(row: Row, text: str) -> None:
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
    rows = list(rows)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    stop_ids = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    result: list[TokenRow] = []

    def collect(encoded: list[tuple[list[Rendered], Future[list[Encoding]]]]) -> None:
        for batch, future in encoded:
            for one, encoding in zip(batch, future.result(), strict=True):
                with _refusing(rejected):
                    result.append(_token_row(tokenizer, one, encoding, train_on, stop_ids))

    # The tokenizer works without Python's lock, so one batch is encoded while the next one is rendered.
    with ThreadPoolExecutor(1) as pool:
        pending: list[tuple[list[Rendered], Future[list[Encoding]]]] = []
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            texts: list[Rendered] = []
            try:
                for row, known in zip(chunk, _render_ahead(tokenizer, chunk, train_on), strict=True):
                    with _refusing(rejected):
                        texts += render(tokenizer, row, train_on, known)
            except DataError:
                collect(pending)  # the first refusal in the order of the rows is the one that is told
                raise
            submitted = [(batch, pool.submit(_encode, backend, batch)) for batch in _batches(texts)]
            collect(pending)
            pending = submitted
        collect(pending)
    return result


@contextmanager
def _refusing(rejected: list[str] | None) -> Iterator[None]:
    """Note a row's refusal and go on, or let it end the run where nothing takes it."""
    try:
        yield
    except DataError as error:
        if rejected is None:
            raise
        rejected.append(str(error))


def _encode(backend: Any, batch: list[Rendered]) -> list[Encoding]:
    return list(backend.encode_batch([one.text for one in batch], add_special_tokens=batch[0].special))


def _token_row(
    tokenizer: PreTrainedTokenizerBase, one: Rendered, encoding: Encoding, train_on: str, stop_ids: set[int]
) -> TokenRow:
    ids = array("i", encoding.ids)
    labels = _labels(ids, encoding, one)
    if one.special:
        ids, labels = _ended(ids, labels, tokenizer.eos_token_id)
    elif train_on == ASSISTANT:
        _check_stops(tokenizer, one, encoding, ids, stop_ids)
    check_bos(tokenizer, one.place, ids)
    return TokenRow(one.place, ids, labels)


def _render_ahead(tokenizer: PreTrainedTokenizerBase, rows: list[Row], train_on: str) -> list[Known]:
    """The texts that `render` will ask for, many in one call; none if that fails, since one alone must tell why."""
    wanted: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for number, row in enumerate(rows):
        if row.messages and row.tools is None:
            ends = {len(row.messages)}
            if train_on == ASSISTANT:
                turns = [i for i, trained in enumerate(row.trained) if trained]
                ends |= {i + 1 for i in turns}
                wanted[True] += [(number, i) for i in turns]
            wanted[False] += [(number, end) for end in sorted(ends)]
    known: list[Known] = [{} for _ in rows]
    for answering, places in wanted.items():
        try:
            texts = apply_template(
                tokenizer, [rows[number].messages[:end] for number, end in places], None, answering=answering
            )
        except DataError:
            return [{} for _ in rows]
        for (number, end), text in zip(places, texts, strict=True):
            known[number][end, answering] = text
    return known


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


def _ended(ids: Ids, labels: Ids, eos: int) -> tuple[Ids, Ids]:
    """Plain text with a trained EOS at its end."""
    if not ids or ids[-1] != eos:
        ids.append(eos)
        labels.append(eos)
    labels[-1] = eos
    return ids, labels


def _labels(ids: Ids, encoding: Encoding, rendered: Rendered) -> Ids:
    """Labels of one text; a token is trained if it begins inside a span."""
    labels = array("i", [IGNORED]) * len(ids)
    for start, end in rendered.spans:
        first, last = _first_token(encoding, start, len(ids)), _first_token(encoding, end, len(ids))
        before = encoding.token_to_chars(first - 1) if first else None
        if before is not None and before[0] < start < before[1]:
            text = rendered.text[before[0] : before[1]]
            raise DataError(
                f"{rendered.place}: the answer begins in the middle of token {text!r}, which the model never sees "
                "when asked. End the prompt, or begin the answer, without white space."
            )
        labels[first:last] = ids[first:last]
    if rendered.special and ids and encoding.special_tokens_mask[0]:
        labels[0] = IGNORED  # the BOS that the tokenizer added
    return labels


def _first_token(encoding: Encoding, character: int, count: int) -> int:
    """Index of the first token that begins at or behind a character; `count` if there is none."""
    at = encoding.char_to_token(character)
    if at is None:
        # Between tokens, or behind the last: white space that the tokenizer drops has no token of its own.
        return next(
            (i for i, (left, right) in enumerate(encoding.offsets) if left >= character and right > left), count
        )
    left, _ = encoding.token_to_chars(at) or (character, character)
    return at if left >= character else at + 1


def _check_stops(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, encoding: Encoding, ids: Ids, stop_ids: set[int]
) -> None:
    """Every trained turn must end with a token that ends generation, or the model never learns to stop."""
    for _, end in rendered.spans:
        last = ids[_first_token(encoding, end, len(ids)) - 1]
        if last not in stop_ids:
            raise DataError(
                f"{rendered.place}: the chat template ends the assistant's turn with {tokenizer.decode([last])!r}, "
                "which is no special token, so the model would never learn to stop. Set model.chat_template to one "
                "that ends turns with the EOS token."
            )


def check_bos(tokenizer: PreTrainedTokenizerBase, place: str, ids: Ids) -> None:
    """A BOS both in the text and added by the tokenizer is never seen at inference."""
    if tokenizer.bos_token_id is not None and ids[:2].count(tokenizer.bos_token_id) == 2:
        raise DataError(
            f"{place}: begins with {tokenizer.bos_token} twice. Remove it from the row, or from the template."
        )
