"""The shapes that rows come in: recognised over all rows, each row checked and brought into one form."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorasmith.data.files import Record, records
from lorasmith.data.messages import (
    DROP,
    checked_calls,
    checked_messages,
    checked_text,
    checked_tools,
    json_field,
    named_kind,
    said,
    trained_turns,
)
from lorasmith.data.rows import ASSISTANT, Read, Row, conversation
from lorasmith.data.strict_json import shown
from lorasmith.errors import DataError
from lorasmith.storages import safe

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "system": "system",
    "function_call": ASSISTANT,
    "observation": "tool",
    "tool": "tool",
}
MARKER_ROLES = {"human": "user", "user": "user", "instruction": "user", "system": "system"}
MARKER_ROLES |= {"assistant": ASSISTANT, "response": ASSISTANT}
_MARKER = re.compile(r"### (human|user|instruction|system|assistant|response):[ \t]*", re.IGNORECASE)

# In the order in which they are preferred where several fit.
COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt+completion": ("prompt", "completion"),
    "instruction+output": ("instruction", "output"),
    "question+answer": ("question", "answer"),
    "marked-text": ("text",),
    "text": ("text",),
}
# Another name of prompt+completion, where rows have the columns of no other format: `source` often says where from.
SOURCE_TARGET = "source+target"
NEEDED = {**COLUMNS, SOURCE_TARGET: ("source", "target")}


def read_rows(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    kind: str = "auto",
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
) -> Read:
    """Read all rows of a file, folder or hub data set.

    Args:
        source: Path of a file or folder, or a hub id such as `org/name`.
        subset: Configuration of a hub data set.
        split: Split of a hub data set.
        kind: A name in NEEDED, or "auto": the first that fits all rows, else the one that fits most.
        columns: Our column names to the file's, such as {"question": "problem"}.
        on_bad_row: "error" ends at the first broken row; "drop" leaves all broken rows out and lists them.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """
    return parse_rows(list(records(source, subset, split)), safe(source), kind, columns or {}, on_bad_row)


def parse_rows(found: list[Record], source: str, kind: str, columns: dict[str, str], on_bad_row: str) -> Read:
    """Checked rows out of records; the arguments are those of `read_rows`."""
    found = [(place, renamed(value, columns)) for place, value in found]
    if not found:
        raise DataError(f"{source}: no rows. Give at least one.")
    if kind == "auto":
        kind = _recognise(found, source)
    rows, rejected = [], []
    for place, value in found:
        try:
            rows.append(parse_row(kind, value, place))
        except DataError as error:
            if on_bad_row == "error":
                raise
            rejected.append(str(error))
    if not rows:
        raise DataError(f"{source}: all {len(found)} rows are broken. The first: {rejected[0]}")
    return Read(rows, kind, rejected)


def read_prompts(source: str) -> list[Row]:
    """Read rows that need no answer: messages, prompt, instruction (+input) or question.

    Raises:
        DataError: At the first row that asks nothing.
    """
    rows = []
    for place, record in records(source):
        check_record(record, place)
        name = next((n for n in ("messages", "prompt", "instruction", "question") if n in record), None)
        if name is None:
            raise DataError(f"{place}: nothing is asked; expected messages, prompt, instruction or question.")
        if name == "messages" or isinstance(record[name], list):
            rows.append(
                conversation(place, checked_messages(record[name], name, place), tools=checked_tools(record, place))
            )
        elif name == "prompt":
            rows.append(Row(place, prompt=text_field(record, "prompt", place)))
        else:
            rows.append(conversation(place, [{"role": "user", "content": question_text(record, name, place)}]))
    if not rows:
        raise DataError(f"{source}: no rows. Give at least one.")
    return rows


def renamed(value: Any, columns: dict[str, str]) -> Any:
    """A record under our column names; a mapped column that is missing stays missing."""
    if not columns or not isinstance(value, dict) or not any(name in value for name in columns.values()):
        return value
    taken = set(columns.values())
    kept = {name: cell for name, cell in value.items() if name not in taken and name not in columns}
    return kept | {ours: value[theirs] for ours, theirs in columns.items() if theirs in value}


def _recognise(found: list[Record], source: str) -> str:
    """The first format that fits every readable row, else the one that fits most of them."""
    fitting = dict.fromkeys(COLUMNS, 0)
    readable = [value for _, value in found if isinstance(value, dict)]
    for value in readable:
        for name, columns in COLUMNS.items():
            if all(column in value for column in columns):
                fitting[name] += name != "marked-text" or is_marked(value["text"])
    if fitting["marked-text"] < len(readable):
        del fitting["marked-text"]
    best = max(fitting, key=lambda name: fitting[name])  # the first of equals, so the preferred one
    if not fitting[best] and any(all(name in value for name in NEEDED[SOURCE_TARGET]) for value in readable):
        return SOURCE_TARGET
    if not fitting[best]:
        place, value = found[0]
        check_record(value, place)
        wanted = ", ".join(name for name in COLUMNS if name != "marked-text")
        given = f"{Path(source).name} has columns [{shown(', '.join(value), 200)}]; expected one of: {wanted}"
        raise DataError(f"{place}: {given}. Rename them, or map them with data.columns.")
    return best


def is_marked(text: Any) -> bool:
    """Whether plain text is a conversation with role markers that begins with one and has an answer."""
    if not isinstance(text, str) or not _MARKER.match(text.lstrip()):
        return False
    return any(MARKER_ROLES[name.lower()] == ASSISTANT for name in _MARKER.findall(text))


def check_record(value: Any, place: str) -> None:
    """Refuse what is no object, or the error that stands in its place."""
    if isinstance(value, DataError):
        raise value
    if not isinstance(value, dict):
        raise DataError(f"{place}: the row is {named_kind(value)}; expected an object with named fields.")


def parse_row(kind: str, value: Any, place: str) -> Row:
    """A checked row out of a record of a kind in NEEDED.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    check_record(value, place)
    missing = [column for column in NEEDED[kind] if column not in value]
    if missing:
        raise DataError(f"{place}: field `{missing[0]}` is missing; the rows are {kind}. {DROP}")
    return _PARSERS[kind](value, place)


def text_field(record: dict[str, Any], name: str, place: str, *, empty: bool = False) -> str:
    """The text of a field; only with `empty` may there be none."""
    value = checked_text(record.get(name), name, place)
    if not empty and not value.strip():
        raise DataError(f"{place}: {name}: empty. {DROP}")
    return value


def _chat(record: dict[str, Any], place: str) -> Row:
    messages = checked_messages(record["messages"], "messages", place)
    trained = trained_turns(record["messages"], messages, "messages", place)
    return _with_answer(conversation(place, messages, trained, checked_tools(record, place)), "messages")


def _with_answer(row: Row, name: str) -> Row:
    if not any(row.trained):
        spoken = any(message["role"] == ASSISTANT for message in row.messages)
        why = "all assistant turns have weight 0" if spoken else "no assistant turn"
        raise DataError(f"{row.place}: {name}: {why}, nothing to train on. {DROP}")
    return row


def _sharegpt(record: dict[str, Any], place: str) -> Row:
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        found = "empty" if turns == [] else named_kind(turns)
        raise DataError(f"{place}: conversations: {found}; expected a list of turns.")
    before = system_turn(record, place)
    messages = [sharegpt_turn(turn, f"conversations[{i}]", place) for i, turn in enumerate(turns)]
    trained = trained_turns(turns, messages, "conversations", place)
    row = conversation(place, before + messages, [False] * len(before) + trained, checked_tools(record, place))
    return _with_answer(row, "conversations")


def system_turn(record: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The message that a `system` column makes, if it says anything."""
    system = "" if record.get("system") is None else checked_text(record["system"], "system", place)
    return [{"role": "system", "content": system}] if system.strip() else []


def sharegpt_turn(turn: Any, name: str, place: str) -> dict[str, Any]:
    """A turn of sharegpt as a message."""
    if not isinstance(turn, dict):
        raise DataError(f"{place}: {name}: {named_kind(turn)}; expected an object with from and value.")
    speaker = turn.get("from", turn.get("role"))
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{place}: {name}.from: `{shown(speaker)}`; expected one of {', '.join(SHAREGPT_ROLES)}.")
    value = said(turn.get("value", turn.get("content")), role, f"{name}.value", place)
    if speaker != "function_call":
        return {"role": role, "content": value}
    found = json_field(value, f"{name}.value", place)
    calls = checked_calls(found if isinstance(found, list) else [found], f"{name}.value", place)
    if not calls:
        raise DataError(f"{place}: {name}.value: no call; expected {{name, arguments}}. {DROP}")
    return {"role": ASSISTANT, "content": "", "tool_calls": calls}


def _prompt_completion(record: dict[str, Any], place: str) -> Row:
    if isinstance(record["prompt"], list) or isinstance(record["completion"], list):
        asked = checked_messages(record["prompt"], "prompt", place)
        answered = checked_messages(record["completion"], "completion", place)
        trained = trained_turns(record["prompt"], asked, "prompt", place)
        trained += trained_turns(record["completion"], answered, "completion", place)
        return _with_answer(conversation(place, asked + answered, trained, checked_tools(record, place)), "completion")
    prompt, completion = text_field(record, "prompt", place), text_field(record, "completion", place)
    return Row(place, prompt=prompt, completion=completion)


def _source_target(record: dict[str, Any], place: str) -> Row:
    return Row(place, prompt=text_field(record, "source", place), completion=text_field(record, "target", place))


def _instruction(record: dict[str, Any], place: str) -> Row:
    return _asked(question_text(record, "instruction", place), text_field(record, "output", place), place)


def _question(record: dict[str, Any], place: str) -> Row:
    return _asked(question_text(record, "question", place), text_field(record, "answer", place), place)


def question_text(record: dict[str, Any], name: str, place: str) -> str:
    """A question or instruction, with the instruction's input beneath it."""
    asked = text_field(record, name, place)
    extra = ""
    if name == "instruction" and record.get("input") is not None:
        extra = text_field(record, "input", place, empty=True)
    return f"{asked}\n\n{extra}" if extra.strip() else asked


def _asked(asked: str, answered: str, place: str) -> Row:
    return conversation(place, [{"role": "user", "content": asked}, {"role": ASSISTANT, "content": answered}])


def _marked(record: dict[str, Any], place: str) -> Row:
    text = text_field(record, "text", place).lstrip()
    if not _MARKER.match(text):
        raise DataError(f"{place}: text: no role marker at its start, such as `### Human:`. {DROP}")
    pieces = _MARKER.split(text)[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    messages = [{"role": MARKER_ROLES[name.lower()], "content": said.strip()} for name, said in turns]
    return _with_answer(conversation(place, checked_messages(messages, "text", place)), "text")


def _plain(record: dict[str, Any], place: str) -> Row:
    return Row(place, text=text_field(record, "text", place))


_PARSERS: dict[str, Callable[[dict[str, Any], str], Row]] = {
    "messages": _chat,
    "sharegpt": _sharegpt,
    "prompt+completion": _prompt_completion,
    "instruction+output": _instruction,
    "question+answer": _question,
    "marked-text": _marked,
    "text": _plain,
    SOURCE_TARGET: _source_target,
}
