"""Messages, tool calls, tools and weights, each checked and named where it is wrong."""

import math
from typing import Any

from lorasmith.data.rows import ASSISTANT
from lorasmith.data.strict_json import NotJson, parse_json, shown
from lorasmith.errors import DataError

ROLES = ("system", "developer", "user", ASSISTANT, "tool")
# What templates write out as it is, beside the content.
TEXT_FIELDS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
DROP = "Fix or remove the line."
MAX_DEPTH = 100  # of tools and their arguments; a template or a hash that fails deep in Python's stack names no line


def named_kind(value: Any) -> str:
    """What a value is, in words, for an error."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def checked_text(text: Any, name: str, place: str) -> str:
    """Text that can be written as UTF-8; JSON can escape halves of characters, which cannot."""
    if not isinstance(text, str):
        raise DataError(f"{place}: {name}: {named_kind(text)}; expected text. {DROP}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{place}: {name}: half of a surrogate pair, which is no character. {DROP}") from None
    return text


def _sound(value: Any, name: str, place: str, depth: int = 0) -> Any:
    """A value that a chat template is given as it is: JSON that can be written again, all of its text sound."""
    if depth > MAX_DEPTH:
        raise DataError(f"{place}: {name}: nested over {MAX_DEPTH} levels deep. {DROP}")
    if isinstance(value, dict):
        for key, item in value.items():
            checked_text(key, name, place)
            _sound(item, name, place, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _sound(item, name, place, depth + 1)
    elif isinstance(value, str):
        checked_text(value, name, place)
    elif not (value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
        raise DataError(f"{place}: {name}: `{shown(value)}` is no JSON value. {DROP}")
    return value


def json_field(text: str, name: str, place: str) -> Any:
    """The value of JSON that stands in a field as text."""
    try:
        return parse_json(text)
    except NotJson as error:
        raise DataError(f"{place}: {name}: not valid JSON ({error}). {DROP}") from None


def checked_messages(value: Any, name: str, place: str) -> list[dict[str, Any]]:
    """Checked messages, their content as text, without weights."""
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{place}: {name}: {'empty' if value == [] else named_kind(value)}; expected a list of messages."
        )
    return [_message(message, f"{name}[{i}]", place) for i, message in enumerate(value)]


def _message(message: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise DataError(f"{place}: {name}: {named_kind(message)}; expected an object with role and content.")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{place}: {name}.role: `{shown(role)}`; expected one of {', '.join(ROLES)}.")
    content, calls = message.get("content"), checked_calls(message.get("tool_calls"), f"{name}.tool_calls", place)
    if calls and role != ASSISTANT:
        raise DataError(f"{place}: {name}.tool_calls: on a {role} turn; only the assistant calls. {DROP}")
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}.content[{i}]", place) for i, part in enumerate(content))
    if content is None and calls:
        content = ""
    content = said(content, role, f"{name}.content", place, silent=bool(calls))
    kept = {"role": role, "content": content}
    for field, value in message.items():
        if field in TEXT_FIELDS and value is not None:
            kept[field] = checked_text(value, f"{name}.{field}", place)
        elif value is not None and field not in ("role", "content", "weight", "loss_weight", "tool_calls"):
            kept[checked_text(field, name, place)] = _sound(value, f"{name}.{shown(field)}", place)
    return kept | ({"tool_calls": calls} if calls else {})


def said(content: Any, role: str, name: str, place: str, *, silent: bool = False) -> str:
    """The text of a turn; only an assistant that calls a tool may say nothing."""
    content = checked_text(content, name, place)
    if role == ASSISTANT and not content.strip() and not silent:
        raise DataError(f"{place}: {name}: empty; the assistant must say something. {DROP}")
    return content


def _part(part: Any, name: str, place: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise DataError(f"{place}: {name}: not a text part; only text can be trained on.")
    return checked_text(part.get("text", part.get("value")), f"{name}.text", place)


def _function(value: Any, name: str, place: str, wanted: str) -> dict[str, Any]:
    """The part of a tool or a call that has the name, with or without the wrapper that OpenAI puts around it."""
    function = value.get("function", value) if isinstance(value, dict) else None
    named = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(named, str) or not named.strip():
        raise DataError(f"{place}: {name}: no function name; expected {{name, {wanted}}}. {DROP}")
    return function


def checked_calls(calls: Any, name: str, place: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, which is what chat templates expect."""
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise DataError(f"{place}: {name}: {named_kind(calls)}; expected a list of calls.")
    checked = []
    for i, call in enumerate(calls):
        function = _function(call, f"{name}[{i}]", place, "arguments")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = json_field(arguments, f"{name}[{i}].arguments", place)
        if not isinstance(arguments, dict):
            raise DataError(f"{place}: {name}[{i}].arguments: {named_kind(arguments)}; expected an object.")
        _sound(arguments, f"{name}[{i}].arguments", place)
        named = checked_text(function["name"], f"{name}[{i}].name", place)
        checked.append({"type": "function", "function": {"name": named, "arguments": arguments}})
    return checked


def checked_tools(record: dict[str, Any], place: str) -> list[Any] | None:
    """Tool definitions, which some files hold as JSON in a string; none for an empty list."""
    tools = record.get("tools")
    if isinstance(tools, str):
        tools = json_field(tools, "tools", place) if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{place}: tools: {named_kind(tools)}; expected a list of objects.")
    for i, tool in enumerate(tools or []):
        parameters = _function(tool, f"tools[{i}]", place, "description, parameters").get("parameters")
        if not isinstance(parameters, dict | None):
            raise DataError(f"{place}: tools[{i}].parameters: {named_kind(parameters)}; expected an object.")
        _sound(tool, f"tools[{i}]", place)
    return tools or None


def trained_turns(turns: list[Any], messages: list[dict[str, Any]], name: str, place: str) -> list[bool]:
    """Which messages are trained: the assistant's, unless their weight is 0 or they are in a prompt."""
    trained = []
    for i, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        given = [turn[field] for field in ("weight", "loss_weight") if turn.get(field) is not None]
        for weight in given:
            if isinstance(weight, bool) or weight not in (0, 1):
                found = repr(weight) if isinstance(weight, str) else weight
                raise DataError(f"{place}: {name}[{i}].weight: `{shown(found)}`; expected 0 or 1.")
        if len(set(given)) > 1:
            raise DataError(f"{place}: {name}[{i}]: weight and loss_weight differ. Keep one.")
        if 1 in given and message["role"] != ASSISTANT:
            raise DataError(f"{place}: {name}[{i}].weight: 1 on a {message['role']} turn; only the assistant's train.")
        if 1 in given and name == "prompt":
            raise DataError(f"{place}: {name}[{i}].weight: 1 in a prompt; only the completion is trained. {DROP}")
        trained.append(0 not in given and message["role"] == ASSISTANT and name != "prompt")
    return trained
