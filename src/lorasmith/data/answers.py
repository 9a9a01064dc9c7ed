"""How a record divides into what is asked and what is answered, as text or as messages, nothing in them changed."""

import re
from collections.abc import Callable
from typing import Any

from lorasmith.data.formats import COLUMNS, parse_row, question_text, sharegpt_turn, system_turn, text_field
from lorasmith.data.messages import DROP, named_kind
from lorasmith.data.rows import ASSISTANT
from lorasmith.errors import DataError

Turns = list[dict[str, Any]]
Said = Turns | str
_SPEAKER = re.compile(r"\n\n(Human|Assistant):[ \t]*")  # of Anthropic's hh-rlhf
_SHAREGPT = ("from", "role", "value", "content")


def first_trained(messages: Turns) -> int:
    """Index of the first assistant turn whose weight is not 0; past the end if there is none."""
    trained = (i for i, turn in enumerate(messages) if turn.get("role") == ASSISTANT and not is_context(turn))
    return next(trained, len(messages))


def last_answer(messages: Turns) -> int:
    """Index of the first trained turn where weights of 0 tell it, else of what follows the last question."""
    if any(turn.get("role") == ASSISTANT and is_context(turn) for turn in messages):
        return first_trained(messages)
    asked = [i for i, turn in enumerate(messages) if turn.get("role") not in (ASSISTANT, "tool")]
    return asked[-1] + 1 if asked else 0


def is_context(turn: dict[str, Any]) -> bool:
    """Whether a turn has a weight of 0."""
    return any(turn.get(name) is not None and turn[name] == 0 for name in ("weight", "loss_weight"))


def divided(record: dict[str, Any], place: str, where: Callable[[Turns], int], kind: str = "") -> tuple[Said, Said]:
    """What is asked and what is answered, both text or both messages.

    Args:
        record: A record with the columns of a conversation, a prompt and completion, or a question and answer.
        place: `file:line`, to name in errors.
        where: Gives the index at which a conversation's answer begins.
        kind: A name in `formats.COLUMNS`; by default the first whose columns are there.

    Raises:
        DataError: If the columns are not there or hold neither text nor turns.
    """
    kind = kind or conversational(record, place)
    if kind == "prompt+completion":
        asked, answered = (one_answer(record[name], name, place) for name in ("prompt", "completion"))
        if isinstance(asked, str) and isinstance(answered, str):
            return asked, answered
        return as_messages(asked, "user"), as_messages(answered, ASSISTANT)
    if kind in ("instruction+output", "question+answer"):
        name, answer = kind.split("+")
        asked, answered = question_text(record, name, place), text_field(record, answer, place)
        return as_messages(asked, "user"), as_messages(answered, ASSISTANT)
    messages = _messages(record, kind, place)
    at = where(messages)
    return messages[:at], messages[at:]


def conversational(record: dict[str, Any], place: str) -> str:
    """The format, a name in `formats.COLUMNS`, by which a record asks and answers.

    Raises:
        DataError: If it does not.
    """
    kinds = {kind: names for kind, names in COLUMNS.items() if names != ("text",)}
    kind = next((kind for kind, names in kinds.items() if all(name in record for name in names)), None)
    if kind is None:
        raise DataError(f"{place}: no answer; expected one of {', '.join(kinds)}. {DROP}")
    return kind


def _messages(record: dict[str, Any], kind: str, place: str) -> Turns:
    if kind == "messages":
        return _turns(record["messages"], "messages", place)
    if kind == "sharegpt":
        turns = _turns(record["conversations"], "conversations", place)
        return system_turn(record, place) + [_of_sharegpt(t, f"conversations[{i}]", place) for i, t in enumerate(turns)]
    return parse_row(kind, record, place).messages


def _turns(value: Any, name: str, place: str) -> Turns:
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        found = "empty" if value == [] else named_kind(value)
        found = "a list of other things" if isinstance(value, list) and value else found
        raise DataError(f"{place}: {name}: {found}; expected a list of messages.")
    return value


def _of_sharegpt(turn: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    kept = {key: value for key, value in turn.items() if key not in _SHAREGPT}
    return sharegpt_turn(turn, name, place) | kept


def one_answer(value: Any, name: str, place: str) -> Said:
    """What a field says: text, one message, or several; messages of sharegpt brought into the usual form.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, dict | list):
        raise DataError(f"{place}: {name}: {named_kind(value)}; expected text or messages. {DROP}")
    turns = _turns([value] if isinstance(value, dict) else value, name, place)
    return [_of_sharegpt(t, f"{name}[{i}]", place) if "from" in t else t for i, t in enumerate(turns)]


def as_messages(value: Said, role: str) -> Turns:
    """Messages as they are; text as one message of a role."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def asked_in(record: dict[str, Any], place: str) -> Said | None:
    """What is asked by a row that holds its answers apart: a prompt, an instruction, a question or a conversation.

    A transcript and a question with a system text are given as messages.
    """
    name = next((n for n in ("prompt", "instruction", "question") if record.get(n) is not None), None)
    before = system_turn(record, place)
    if name is None:
        return _messages(record, "sharegpt", place) if "conversations" in record else None
    if name != "prompt":
        return [*before, {"role": "user", "content": question_text(record, name, place)}]
    asked = one_answer(record["prompt"], "prompt", place)
    if isinstance(asked, str):
        asked = transcript(asked) or asked
    return before + as_messages(asked, "user") if before else asked


def transcript(text: str) -> Turns | None:
    """The turns of a text such as "\\n\\nHuman: Hi\\n\\nAssistant: Hello", or None for other text.

    An empty turn of the assistant at its end only asks for an answer and is left out.
    """
    if not _SPEAKER.match(text) or not text.startswith("\n\nHuman:"):
        return None
    pieces = _SPEAKER.split(text)[1:]
    roles = {"Human": "user", "Assistant": ASSISTANT}
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    messages = [{"role": roles[speaker], "content": content.strip()} for speaker, content in turns]
    return messages[:-1] if messages[-1] == {"role": ASSISTANT, "content": ""} else messages
