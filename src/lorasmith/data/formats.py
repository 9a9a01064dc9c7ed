"""The shapes that rows come in: recognised over all rows, each row checked and brought into one form."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorasmith.data.files import Record, records
from lorasmith.data.rows import ASSISTANT, Read, Row, conversation
from lorasmith.errors import DataError

ROLES = ("system", "developer", "user", ASSISTANT, "tool")
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
DROP = "Fix or remove the line."


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
        kind: A name in COLUMNS, or "auto": the first that fits all rows, else the one that fits most.
        columns: Our column names to the file's, such as {"question": "problem"}.
        on_bad_row: "error" ends at the first broken row; "drop" leaves all broken rows out and lists them.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """
    found = [(place, _renamed(value, columns or {})) for place, value in records(source, subset, split)]
    if not found:
        raise DataError(f"{source}: no rows. Give at least one.")
    if kind == "auto":
        kind = _recognise(found, source)
    rows, rejected = [], []
    for place, value in found:
        try:
            rows.append(_parse(kind, value, place))
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
        if isinstance(record, DataError):
            raise record
        name = next((n for n in ("messages", "prompt", "instruction", "question") if n in (record or ())), None)
        if not isinstance(record, dict) or name is None:
            raise DataError(f"{place}: nothing is asked; expected messages, prompt, instruction or question.")
        if name == "messages" or isinstance(record[name], list):
            rows.append(conversation(place, _messages(record[name], name, place), tools=_tools(record, place)))
        elif name == "prompt":
            rows.append(Row(place, prompt=_string(record, "prompt", place)))
        else:
            rows.append(conversation(place, [{"role": "user", "content": _question_text(record, name, place)}]))
    if not rows:
        raise DataError(f"{source}: no rows. Give at least one.")
    return rows


def _renamed(value: Any, columns: dict[str, str]) -> Any:
    """A record under our column names; a mapped column that is missing stays missing."""
    if not columns or not isinstance(value, dict):
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
                fitting[name] += name != "marked-text" or _is_marked(value["text"])
    if fitting["marked-text"] < len(readable):
        del fitting["marked-text"]
    best = max(fitting, key=lambda name: fitting[name])  # the first of equals, so the preferred one
    if not fitting[best]:
        place, value = found[0]
        _check_record(value, place)
        wanted = ", ".join(name for name in COLUMNS if name != "marked-text")
        raise DataError(f"{place}: {Path(source).name} has columns [{', '.join(value)}]; expected one of: {wanted}.")
    return best


def _is_marked(text: Any) -> bool:
    """Whether plain text is a conversation with role markers that begins with one and has an answer."""
    if not isinstance(text, str) or not _MARKER.match(text.lstrip()):
        return False
    return any(MARKER_ROLES[name.lower()] == ASSISTANT for name in _MARKER.findall(text))


def _check_record(value: Any, place: str) -> None:
    if isinstance(value, DataError):
        raise value
    if not isinstance(value, dict):
        raise DataError(f"{place}: the row is {_name(value)}; expected an object with named fields.")


def _parse(kind: str, value: Any, place: str) -> Row:
    _check_record(value, place)
    missing = [column for column in COLUMNS[kind] if column not in value]
    if missing:
        raise DataError(f"{place}: field `{missing[0]}` is missing; the rows are {kind}. {DROP}")
    return _PARSERS[kind](value, place)


def _name(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "an object")


def _checked(text: Any, name: str, place: str) -> str:
    """Text that can be written as UTF-8; JSON can escape halves of characters, which cannot."""
    if not isinstance(text, str):
        raise DataError(f"{place}: {name}: {_name(text)}; expected text. {DROP}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{place}: {name}: half of a surrogate pair, which is no character. {DROP}") from None
    return text


def _string(record: dict[str, Any], name: str, place: str, *, empty: bool = False) -> str:
    value = _checked(record.get(name), name, place)
    if not empty and not value.strip():
        raise DataError(f"{place}: {name}: empty. {DROP}")
    return value


def _messages(value: Any, name: str, place: str) -> list[dict[str, Any]]:
    """Checked messages, their content as text, without weights."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {name}: {_name(value) if value else 'empty'}; expected a list of messages.")
    return [_message(message, f"{name}[{i}]", place) for i, message in enumerate(value)]


def _message(message: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise DataError(f"{place}: {name}: {_name(message)}; expected an object with role and content.")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{place}: {name}.role: `{role}`; expected one of {', '.join(ROLES)}.")
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}.content[{i}]", place) for i, part in enumerate(content))
    if content is None and calls:
        content = ""
    content = _checked(content, f"{name}.content", place)
    if role == ASSISTANT and not content.strip() and not calls:
        raise DataError(f"{place}: {name}.content: empty; the assistant must say something. {DROP}")
    kept = {k: v for k, v in message.items() if v is not None and k not in ("weight", "loss_weight", "tool_calls")}
    kept["content"] = content
    if calls:
        kept["tool_calls"] = _calls(calls, f"{name}.tool_calls", place)
    return kept


def _part(part: Any, name: str, place: str) -> str:
    text = part.get("text", part.get("value")) if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise DataError(f"{place}: {name}: not a text part; only text can be trained on.")
    return text


def _calls(calls: Any, name: str, place: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, which is what chat templates expect."""
    if not isinstance(calls, list):
        raise DataError(f"{place}: {name}: {_name(calls)}; expected a list of calls.")
    checked = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{place}: {name}[{i}]: no function name; expected {{name, arguments}}.")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise DataError(f"{place}: {name}[{i}].arguments: not valid JSON. {DROP}") from None
        if not isinstance(arguments, dict):
            raise DataError(f"{place}: {name}[{i}].arguments: {_name(arguments)}; expected an object.")
        checked.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return checked


def _tools(record: dict[str, Any], place: str) -> list[Any] | None:
    """Tool definitions, which some files hold as JSON in a string; none for an empty list."""
    tools = record.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise DataError(f"{place}: tools: not valid JSON. {DROP}") from None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError(f"{place}: tools: {_name(tools)}; expected a list of objects.")
    return tools or None


def _weights(value: list[Any], messages: list[dict[str, Any]], name: str, place: str) -> list[bool]:
    """Which messages are trained: the assistant's, unless their weight is 0."""
    trained = []
    for i, (given, message) in enumerate(zip(value, messages, strict=True)):
        weight = given.get("weight", given.get("loss_weight", 1))
        if isinstance(weight, bool) or weight not in (0, 1):
            raise DataError(f"{place}: {name}[{i}].weight: `{weight}`; expected 0 or 1.")
        explicit = "weight" in given or "loss_weight" in given
        if explicit and weight == 1 and message["role"] != ASSISTANT:
            raise DataError(f"{place}: {name}[{i}].weight: 1 on a {message['role']} turn; only the assistant's train.")
        trained.append(weight == 1 and message["role"] == ASSISTANT)
    return trained


def _chat(record: dict[str, Any], place: str) -> Row:
    messages = _messages(record["messages"], "messages", place)
    trained = _weights(record["messages"], messages, "messages", place)
    return _with_answer(conversation(place, messages, trained, _tools(record, place)), "messages")


def _with_answer(row: Row, name: str) -> Row:
    if not any(row.trained):
        spoken = any(message["role"] == ASSISTANT for message in row.messages)
        why = "all assistant turns have weight 0" if spoken else "no assistant turn"
        raise DataError(f"{row.place}: {name}: {why}, nothing to train on. {DROP}")
    return row


def _sharegpt(record: dict[str, Any], place: str) -> Row:
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        found = _name(turns) if turns else "empty"
        raise DataError(f"{place}: conversations: {found}; expected a list of turns.")
    messages = []
    if isinstance(record.get("system"), str) and record["system"].strip():
        messages.append({"role": "system", "content": _checked(record["system"], "system", place)})
    for i, turn in enumerate(turns):
        name = f"conversations[{i}]"
        if not isinstance(turn, dict):
            raise DataError(f"{place}: {name}: {_name(turn)}; expected an object with from and value.")
        speaker = turn.get("from", turn.get("role"))
        if speaker not in SHAREGPT_ROLES:
            raise DataError(f"{place}: {name}.from: `{speaker}`; expected one of {', '.join(SHAREGPT_ROLES)}.")
        value = _checked(turn.get("value", turn.get("content")), f"{name}.value", place)
        message: dict[str, Any] = {"role": SHAREGPT_ROLES[speaker], "content": value}
        if speaker == "function_call":
            message = {"role": ASSISTANT, "content": None, "tool_calls": _call_text(value, f"{name}.value", place)}
        messages.append(_message(message, name, place))
    return _with_answer(conversation(place, messages, tools=_tools(record, place)), "conversations")


def _call_text(value: str, name: str, place: str) -> list[Any]:
    try:
        calls = json.loads(value)
    except ValueError:
        raise DataError(f"{place}: {name}: not a call as JSON. {DROP}") from None
    return calls if isinstance(calls, list) else [calls]


def _prompt_completion(record: dict[str, Any], place: str) -> Row:
    if isinstance(record["prompt"], list) or isinstance(record["completion"], list):
        asked = _messages(record["prompt"], "prompt", place)
        answered = _messages(record["completion"], "completion", place)
        trained = [False] * len(asked) + _weights(record["completion"], answered, "completion", place)
        return _with_answer(conversation(place, asked + answered, trained, _tools(record, place)), "completion")
    prompt, completion = _string(record, "prompt", place), _string(record, "completion", place)
    return Row(place, prompt=prompt, completion=completion)


def _instruction(record: dict[str, Any], place: str) -> Row:
    return _asked(_question_text(record, "instruction", place), _string(record, "output", place), place)


def _question(record: dict[str, Any], place: str) -> Row:
    return _asked(_question_text(record, "question", place), _string(record, "answer", place), place)


def _question_text(record: dict[str, Any], name: str, place: str) -> str:
    """A question or instruction, with the instruction's input beneath it."""
    asked = _string(record, name, place)
    extra = ""
    if name == "instruction" and record.get("input") is not None:
        extra = _string(record, "input", place, empty=True)
    return f"{asked}\n\n{extra}" if extra.strip() else asked


def _asked(asked: str, answered: str, place: str) -> Row:
    return conversation(place, [{"role": "user", "content": asked}, {"role": ASSISTANT, "content": answered}])


def _marked(record: dict[str, Any], place: str) -> Row:
    text = _string(record, "text", place).lstrip()
    if not _MARKER.match(text):
        raise DataError(f"{place}: text: no role marker at its start, such as `### Human:`. {DROP}")
    pieces = _MARKER.split(text)[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    messages = [{"role": MARKER_ROLES[name.lower()], "content": said.strip()} for name, said in turns]
    return _with_answer(conversation(place, _messages(messages, "text", place)), "text")


def _plain(record: dict[str, Any], place: str) -> Row:
    return Row(place, text=_string(record, "text", place))


_PARSERS: dict[str, Callable[[dict[str, Any], str], Row]] = {
    "messages": _chat,
    "sharegpt": _sharegpt,
    "prompt+completion": _prompt_completion,
    "instruction+output": _instruction,
    "question+answer": _question,
    "marked-text": _marked,
    "text": _plain,
}
