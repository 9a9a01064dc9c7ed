"""Rows of one format in the columns of another, record by record: what is trained stays, and every column survives."""

from collections.abc import Callable
from typing import Any

from lorasmith.data.answers import Said, Turns, as_messages, divided, one_answer
from lorasmith.data.formats import COLUMNS, check_record, is_marked, parse_row
from lorasmith.data.openai import openai_record
from lorasmith.data.pairs import is_judged, is_openai_pair, is_pair, judged_of, pair_of, split_judged, split_pair
from lorasmith.data.parts import Parts, bare, chat_of, parts_of, with_rest
from lorasmith.data.rows import ASSISTANT, Row
from lorasmith.data.strict_json import shown
from lorasmith.data.turns import text_of
from lorasmith.errors import DataError

TARGETS = ("messages", "prompt_completion", "instruction", "text", "preference", "kto", "openai")
_KINDS = {"prompt_completion": "prompt+completion", "instruction": "instruction+output", "openai": "messages"}
_ANSWERED = ("messages", "conversations", "prompt", "completion", "instruction", "output", "question", "answer")
_OPENAI_PAIR = ("preferred_output", "non_preferred_output")  # `input` is among the carried
_FIELDS = {
    **COLUMNS,
    "preference": ("prompt", "chosen", "instruction", "question", "conversations", *_OPENAI_PAIR),
    "kto": _ANSWERED,
    "openai": ("messages", *_OPENAI_PAIR),
}
_CARRIED = ("input", "rejected", "system")  # columns of text that conversion leaves beside those of a format
_MARKERS = {"system": "System", "user": "User", ASSISTANT: "Assistant"}


def recognise(records: list[Any]) -> str:
    """The kind of a sample of records: preference, kto or a name in `formats.COLUMNS`.

    Args:
        records: Values as `files.records` gives them; what is no object is passed over.

    Raises:
        DataError: If there is no record, or none has the columns of a kind.
    """
    readable = [record for record in records if isinstance(record, dict)]
    fitting = {"preference": sum(map(is_pair, readable)), "kto": sum(map(is_judged, readable))}
    for kind, columns in COLUMNS.items():
        fitting[kind] = sum(all(name in record for name in columns) for record in readable)
    marked = all(is_marked(record.get("text")) for record in readable)
    fitting["marked-text"] = fitting["text"] if marked else 0
    best = max(fitting, key=lambda kind: fitting[kind])  # the first of equals, so the preferred one
    if not fitting[best]:
        kinds = ", ".join(kind for kind in fitting if kind != "marked-text")
        found = f"columns [{shown(', '.join(map(str, readable[0])), 200)}]" if readable else "no row with named fields"
        raise DataError(
            f"{found}; expected one of: {kinds}. Rename them, or set `format: records`, which takes rows as they are."
        )
    return best


def check(record: Any, kind: str, place: str) -> None:
    """Refuse a record that is not a sound row of its kind.

    Args:
        record: A value as `files.records` gives it.
        kind: What `recognise` gives, "records", or a name in TARGETS.
        place: `file:line`, to name in the error.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    check_record(record, place)
    if kind == "records":
        if not _has_text(record):
            raise DataError(f"{place}: no text in any field. Fix or remove the line.")
    elif kind == "preference" or (kind == "openai" and is_openai_pair(record)):
        pair_of(record, place)
    elif kind == "kto":
        judged_of(record, place)
    else:
        parse_row(_KINDS.get(kind, kind), record, place)


def _has_text(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_text, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and bool(value.strip())


def converted(record: dict[str, Any], kind: str, to: str | None, place: str) -> list[dict[str, Any]]:
    """A record as one or more records of another format, which may share what is in them with it and each other.

    Args:
        record: A record of the kind.
        kind: What `recognise` gives, or "records".
        to: A name in TARGETS; None gives the record as it is.
        place: `file:line`, to name in errors.

    Raises:
        DataError: If the record is unsound, or the target cannot hold it.
    """
    if to is None:
        return [record]
    if kind == "records":
        raise DataError(f"{place}: rows taken as they are (`records`) cannot become {to}. Name their format.")
    check(record, kind, place)
    if to not in ("preference", "kto", "openai") and _KINDS.get(to, to) == kind:
        return [record]
    if kind == "text":
        raise DataError(f"{place}: plain text asks and answers nothing, so it cannot become {to}. Leave it text.")
    made = _MADE[to](record, kind, place)
    for one in made:
        check(one, to, place)
    return made


def _messages(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    parts = parts_of(record, kind, place)
    chat = chat_of(parts, place, apart=kind in ("preference", "kto"))
    return [with_rest({"messages": chat}, parts.rest, place)]


def _prompt_completion(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    parts = parts_of(record, kind, place)
    columns = {"prompt": _prompt(parts.asked, place), "completion": parts.answered}
    return [with_rest(columns, parts.rest, place)]


def _prompt(asked: Said, place: str) -> Said:
    if not asked:
        raise DataError(f"{place}: nothing stands before the first trained answer. Leave such rows as messages.")
    return asked if isinstance(asked, str) else [bare(turn) for turn in asked]


def _plain_row(parts: Parts, place: str, target: str) -> Row:
    """A record as a row whose turns are text and nothing else, all of its answers trained.

    Raises:
        DataError: If there is more to a turn than that, or tools to call.
    """
    row = parse_row("messages", {"messages": chat_of(parts, place), "tools": parts.rest.get("tools")}, place)
    for i, (message, trained) in enumerate(zip(row.messages, row.trained, strict=True)):
        more = next((name for name in message if name not in ("role", "content")), None)
        if message["role"] not in _MARKERS or more:
            found = more or f"a turn of the {message['role']}"
            raise DataError(f"{place}: turn {i + 1}: {shown(found)} has no place in {target}. Convert to messages.")
        if message["role"] == ASSISTANT and not trained:
            raise DataError(
                f"{place}: turn {i + 1}: {target} trains every answer, this one is not. Convert to messages."
            )
    if row.tools:
        raise DataError(f"{place}: tools have no place in {target}. Convert to messages.")
    return row


def _instruction(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    parts = parts_of(record, kind, place)
    messages = _plain_row(parts, place, "instruction").messages
    if [message["role"] for message in messages] != ["user", ASSISTANT]:
        raise DataError(f"{place}: an instruction is one question and one answer, no more. Convert to messages.")
    asked, extra = messages[0]["content"], parts.rest.get("input")
    columns = {"instruction": asked}
    if "input" in parts.rest:
        columns["input"] = extra
        if isinstance(extra, str) and extra.strip():
            columns["instruction"] = asked.removesuffix(f"\n\n{extra}")
        if extra is not None and (not isinstance(extra, str) or (extra.strip() and columns["instruction"] == asked)):
            raise DataError(f"{place}: input: not the end of what is asked. Rename or remove the column.")
    return [with_rest(columns | {"output": messages[1]["content"]}, parts.rest, place)]


def _text(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    parts = parts_of(record, kind, place)
    messages = _plain_row(parts, place, "text").messages
    wanted = [(message["role"], message["content"].strip()) for message in messages]
    text = "\n".join(f"### {_MARKERS[role]}: {content}" for role, content in wanted)
    read = parse_row("marked-text", {"text": text}, place).messages
    if [(message["role"], message["content"]) for message in read] != wanted:
        raise DataError(f"{place}: a turn holds a role marker such as `### User:` itself. Convert to messages.")
    return [with_rest({"text": text}, parts.rest, place)]


def _preference(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    parts = parts_of(record, kind, place, last=True)
    if kind == "kto" or "rejected" not in parts.rest:
        raise DataError(f"{place}: no rejected answer; preference needs a pair. Give a column `rejected`.")
    rejected = one_answer(parts.rest["rejected"], "rejected", place)
    rest = {name: value for name, value in parts.rest.items() if name != "rejected"}
    asked, chosen = _prompt(parts.asked, place), parts.answered
    if not (isinstance(asked, str) and isinstance(rejected, str)):
        asked, chosen = as_messages(asked, "user"), as_messages(chosen, ASSISTANT)
        rejected = as_messages(rejected, ASSISTANT)
    return [with_rest({"prompt": asked, "chosen": chosen, "rejected": rejected}, rest, place)]


def _kto(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    parts = parts_of(record, kind, place, last=True)
    asked = _prompt(parts.asked, place)
    if kind == "preference":
        rest = {name: value for name, value in parts.rest.items() if name != "rejected"}
        answers = ((parts.answered, True), (parts.rest["rejected"], False))
        return [
            with_rest({"prompt": asked, "completion": said, "label": label}, rest, place) for said, label in answers
        ]
    if not isinstance(parts.rest.get("label"), bool):
        raise DataError(f"{place}: no verdict on the answer; kto needs one. Give a column `label` of true or false.")
    rest = {name: value for name, value in parts.rest.items() if name != "label"}
    columns = {"prompt": asked, "completion": parts.answered, "label": parts.rest["label"]}
    return [with_rest(columns, rest, place)]


def _openai(record: dict[str, Any], kind: str, place: str) -> list[dict[str, Any]]:
    return [openai_record(record, kind, place)]


_MADE: dict[str, Callable[[dict[str, Any], str, str], list[dict[str, Any]]]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "instruction": _instruction,
    "text": _text,
    "preference": _preference,
    "kto": _kto,
    "openai": _openai,
}


def text_fields(kind: str) -> frozenset[str] | None:
    """The fields of a record that hold its text, on whatever level; None for "records", where all do.

    Args:
        kind: What `recognise` gives, "records", or a name in TARGETS.
    """
    if kind == "records":
        return None
    return frozenset([*_FIELDS[kind if kind in _FIELDS else _KINDS[kind]], *_CARRIED])


def prompt_of(record: dict[str, Any], kind: str) -> str:
    """What the model is shown before its last answer, as text without tools; "" for plain text and "records"."""
    return _divided(record, kind)[0]


def answer_of(record: dict[str, Any], kind: str) -> str:
    """The last answer, the chosen one of two, or a plain text, as text; "" for "records"."""
    return _divided(record, kind)[1]


def _divided(record: dict[str, Any], kind: str) -> tuple[str, str]:
    if kind == "records":
        return "", ""
    if kind == "text" and not is_marked(record["text"]):
        return "", str(record["text"])
    if kind == "preference" or (kind == "openai" and is_openai_pair(record)):
        asked, answered, _ = split_pair(record, kind)
    elif kind == "kto":
        asked, answered, _ = split_judged(record, kind)
    else:
        kind = "marked-text" if kind == "text" else _KINDS.get(kind, kind)
        asked, answered = divided(record, kind, _last_said, kind)
        if isinstance(asked, list) and isinstance(answered, list):
            turns = asked + answered
            asked, answered = turns[: _last_said(turns)], turns[_last_said(turns) :]
    return text_of(asked), text_of(answered)


def _last_said(messages: Turns) -> int:
    said = [i for i, turn in enumerate(messages) if turn.get("role") == ASSISTANT]
    return said[-1] if said else len(messages)
