"""Derive the trained tokens a second way, and refuse to train where the two disagree.

`render` takes the difference between a conversation with and without a turn. Here the same turns are found by the
template's own {% generation %} marks (or those of trl's training copy of it), and, for templates without any, by
looking for the answers in the text.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.data.render import IGNORED, Rendered, TokenRow, apply_template, render, tokenize
from lorasmith.data.rows import ASSISTANT, Row, conversation
from lorasmith.errors import DataError

CHECKED = 64  # conversations, one of each shape first


def check_masks(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> str:
    """Compare both derivations on conversations of every shape.

    Returns:
        How it was checked, as a sentence, or nothing if there is no conversation among the rows.

    Raises:
        DataError: Naming the first row on which they disagree.
    """
    chosen = _one_of_each_shape([row for row in rows if row.messages])
    if not chosen:
        return ""
    marked, source = _marked_template(tokenizer)
    by_marks = 0
    for row in chosen:
        whole = conversation(row.place, row.messages, tools=row.tools)  # marks know nothing of weights
        if marked is not None and _by_marks(tokenizer, whole, marked):
            by_marks += 1
        else:
            _by_place(tokenizer, whole)
    ways = [f"{by_marks} against {source}"] if by_marks else []
    ways += [f"{len(chosen) - by_marks} against where the answers stand"] if by_marks < len(chosen) else []
    return f"mask: derived a second way and found equal, on conversations of every shape ({', '.join(ways)})"


def _one_of_each_shape(rows: list[Row]) -> list[Row]:
    """Up to CHECKED rows: the first of every sequence of roles, then evenly spaced ones."""
    shapes: dict[str, Row] = {}
    for row in rows:
        roles = [(message["role"], bool(message.get("tool_calls"))) for message in row.messages]
        shapes.setdefault(json.dumps([roles, bool(row.tools)]), row)
    chosen = {row.place: row for row in [*shapes.values(), *rows[:: max(1, len(rows) // CHECKED)]]}
    return list(chosen.values())[:CHECKED]


def _marked_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, str]:
    """A template with {% generation %} marks: the tokenizer's own, or trl's copy for training; with its name."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    template = tokenizer.chat_template
    if has_generation_markers(template):
        return template, "the template's own marks"
    try:
        return get_training_chat_template(tokenizer), "trl's training template"
    except Exception:  # trl has no copy of this template, or the template refuses trl's probe of it
        return None, ""


def _by_marks(tokenizer: PreTrainedTokenizerBase, row: Row, marked: str) -> bool:
    """Compare one row with the marks; False if the marked template renders another text, so that it cannot be."""
    ours = tokenize(tokenizer, [row], ASSISTANT)
    try:
        theirs: Any = tokenizer.apply_chat_template(
            row.messages, tools=row.tools, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:
        raise DataError(f"{row.place}: the chat template's marks fail ({' '.join(str(error).split())}).") from None
    if len(ours) > 1 or list(theirs["input_ids"]) != list(ours[0].input_ids):
        return False
    _compare(tokenizer, ours[0], [bit == 1 for bit in theirs["assistant_masks"]])
    return True


def _compare(tokenizer: PreTrainedTokenizerBase, ours: TokenRow, theirs: list[bool]) -> None:
    """Equal, but that marks may take in white space behind the stop token."""
    for i, (label, marked) in enumerate(zip(ours.labels, theirs, strict=True)):
        trained = label != IGNORED
        if trained == marked:
            continue
        text = str(tokenizer.decode([ours.input_ids[i]]))
        if trained or text.strip():
            what = "leaves out" if trained else "takes in"
            raise DataError(
                f"{ours.place}: the chat template's {{% generation %}} marks and its turns disagree: the mark {what} "
                f"token {i}, {text!r}. Move the marks so that they hold the answer and its stop token, or set "
                "model.chat_template to another."
            )


def _by_place(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    """Every answer must stand inside its own span, nothing that was asked before it, only a stop token behind it."""
    for one, turns in _texts(tokenizer, row):
        for i, (start, end) in zip(turns, one.spans, strict=True):
            said = row.messages[i]["content"].strip()
            begins = one.text.find(said, start)
            head, tail = one.text[start:begins], one.text[begins + len(said) : end].strip()
            asked = [message["content"].strip() for message in row.messages[:i]]
            misplaced = begins < 0 or begins + len(said) > end or any(len(text) > 8 and text in head for text in asked)
            calls = row.messages[i].get("tool_calls")  # how a template writes them is its own
            if misplaced or not (calls or _is_stop(tokenizer, tail)):
                raise DataError(
                    f"{row.place}: messages[{i}]: its text does not stand where the chat template's turns say. "
                    "Set model.chat_template to one that writes each message once, in order."
                )


def _texts(tokenizer: PreTrainedTokenizerBase, row: Row) -> list[tuple[Rendered, list[int]]]:
    """Each rendered text of a row with the messages that its spans belong to."""
    texts = render(tokenizer, row, ASSISTANT)
    turns = [i for i, trained in enumerate(row.trained) if trained]
    return [(texts[0], turns)] if len(texts) == 1 else [(one, [i]) for one, i in zip(texts, turns, strict=True)]


def _is_stop(tokenizer: PreTrainedTokenizerBase, tail: str) -> bool:
    """Whether text is special tokens and white space alone, with at least one token."""
    left = tail
    for token in {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens):
        left = left.replace(token, "")
    return bool(tail) and not left.strip()


# Conversations made up by this project; their ids are the contract between training and everything after it.
GOLDEN = (
    [{"role": "user", "content": "Hello!"}],
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": ASSISTANT, "content": "4"}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "The colour of snow?\nOf fresh snow."},
        {"role": ASSISTANT, "content": "White."},
        {"role": "user", "content": "Grüße, 你好 🙂"},
    ],
)


def template_contract(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """Token ids of the golden conversations, the assistant's turn opened where it is due; refused ones left out."""
    contract: list[dict[str, object]] = []
    for messages in GOLDEN if tokenizer.chat_template else ():
        answering = messages[-1]["role"] == "user"
        try:
            text = apply_template(tokenizer, messages, None, answering=answering)
        except DataError:
            continue
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        contract.append({"messages": messages, "answering": answering, "ids": ids})
    return contract


def plain_contract(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """Token ids of the golden conversations' turns as plain text with special tokens, which is what encoders read."""
    texts = list(dict.fromkeys(message["content"] for messages in GOLDEN for message in messages))
    return [{"text": text, "ids": list(tokenizer(text)["input_ids"])} for text in texts]


def keeps_contract(tokenizer: PreTrainedTokenizerBase, contract: list[dict[str, object]], where: str) -> bool:
    """Whether `check_contract` passes."""
    try:
        check_contract(tokenizer, contract, where)
    except DataError:
        return False
    return True


def check_contract(tokenizer: PreTrainedTokenizerBase, contract: list[dict[str, object]], where: str) -> None:
    """Refuse a tokenizer that renders otherwise than the one an adapter was trained with.

    Raises:
        DataError: Naming the first conversation and token that differ.
    """
    plain = any("text" in one for one in contract)
    key = "text" if plain else "messages"
    made = plain_contract(tokenizer) if plain else template_contract(tokenizer)
    now = {json.dumps(one[key]): one["ids"] for one in made}
    for number, one in enumerate(contract, 1):
        before, after = one["ids"], now.get(json.dumps(one[key]), [])
        assert isinstance(before, list)
        assert isinstance(after, list)
        if before != after:
            at = next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(after))
            raise DataError(
                f"{where}: its tokenizer or chat template renders otherwise than in training (golden conversation "
                f"{number}, token {at}). Restore the files that training wrote, or train anew."
            )
