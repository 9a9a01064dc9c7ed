"""A record taken apart into what is asked, what is answered and all its other columns, and put together as a chat."""

from dataclasses import dataclass
from typing import Any

from lorasmith.data.answers import (
    Said,
    Turns,
    as_messages,
    conversational,
    divided,
    first_trained,
    is_context,
    last_answer,
)
from lorasmith.data.formats import COLUMNS
from lorasmith.data.pairs import LABELS, is_openai_pair, split_judged, split_pair
from lorasmith.data.rows import ASSISTANT
from lorasmith.errors import DataError

# What a row can be asked by where its answers stand apart; the first that is there is the one that asks.
_ASKED_BY = ("prompt", "instruction", "question", "conversations")


@dataclass(frozen=True)
class Parts:
    """A record in parts; `asked` and `answered` are both text or both messages as they stood.

    Attributes:
        rest: The other columns in their order; among them `rejected`, `label`, or the `input` of an instruction.
    """

    asked: Said
    answered: Said
    rest: dict[str, Any]


def parts_of(record: dict[str, Any], kind: str, place: str, *, last: bool = False) -> Parts:
    """Take a record apart.

    Args:
        record: A record that `convert.check` has passed.
        kind: A name in `formats.COLUMNS` other than text, or preference or kto.
        place: `file:line`, to name in errors.
        last: Divide a conversation before its last answer, not before the first that is trained.
    """
    if kind == "preference":
        return _pair(record, place)
    if kind == "kto":
        asked, answered, label = split_judged(record, place)
        return Parts(asked, answered, _without(record, _judged_columns(record)) | {"label": label})
    asked, answered = divided(record, place, last_answer if last else first_trained, kind)
    return Parts(asked, answered, _without(record, _columns(record, kind)))


def _columns(record: dict[str, Any], kind: str) -> set[str]:
    """The columns that asked and answered are made of; an instruction's input stays, to tell it apart again."""
    system = record.get("system")
    said = kind == "sharegpt" and isinstance(system, str) and bool(system.strip())
    return {*COLUMNS[kind]} | ({"system"} if said else set())


def _judged_columns(record: dict[str, Any]) -> set[str]:
    return _columns(record, conversational(record, "")) | {*LABELS}


def _pair(record: dict[str, Any], place: str) -> Parts:
    prompt, chosen, rejected = split_pair(record, place)
    if is_openai_pair(record):
        given = {name: value for name, value in record["input"].items() if name != "messages"}
        used = {"input", "preferred_output", "non_preferred_output"}
        return Parts(prompt, chosen, _without(record, used) | given | {"rejected": rejected})
    by = next((name for name in _ASKED_BY if record.get(name) is not None), None)
    used = {"chosen", "rejected", *([by] if by else ())}
    said = isinstance(record.get("system"), str) and bool(record["system"].strip())
    kept = _without(record, used | ({"system"} if by and said else set()))
    return Parts(prompt, chosen, kept | {"rejected": rejected})


def _without(record: dict[str, Any], used: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in used}


def chat_of(parts: Parts, place: str, *, apart: bool = False) -> Turns:
    """The conversation of a record; answers in what is asked have a weight of 0, as they are not trained.

    Args:
        parts: The record's parts; text becomes a user's turn and the assistant's.
        place: `file:line`, to name in errors.
        apart: Refuse a conversation that could not be divided again where it was.
    """
    asked = [_context(turn) for turn in as_messages(parts.asked, "user")]
    messages = asked + as_messages(parts.answered, ASSISTANT)
    if apart and last_answer(messages) != len(asked):
        raise DataError(f"{place}: where the answer begins is lost in messages. Convert to prompt_completion.")
    return messages


def _context(turn: dict[str, Any]) -> dict[str, Any]:
    return turn if turn["role"] != ASSISTANT or is_context(turn) else turn | {"weight": 0}


def bare(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn of a prompt without the `weight: 0` that says nothing there."""
    silent = turn["role"] == ASSISTANT and "weight" in turn and turn["weight"] == 0
    return {name: value for name, value in turn.items() if not (silent and name == "weight")}


def with_rest(columns: dict[str, Any], rest: dict[str, Any], place: str) -> dict[str, Any]:
    """A record out of the target's columns and all others.

    Raises:
        DataError: If a column that the target writes stands in the row with something else in it.
    """
    for name in columns:
        if name in rest and columns[name] != rest[name]:
            raise DataError(f"{place}: {name}: the row has such a column already. Rename or remove it.")
    return columns | rest
