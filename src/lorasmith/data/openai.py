"""OpenAI's fine-tuning rows, written and checked by their published rules.

The rules are those of platform.openai.com/docs/guides/supervised-fine-tuning and direct-preference-optimization, and of
the schemas FineTuneChatRequestInput and FineTunePreferenceRequestInput of their API.
"""

import json
from collections.abc import Iterator
from typing import Any

from lorasmith.data.answers import Turns, as_messages
from lorasmith.data.messages import checked_calls, checked_messages, checked_tools, named_kind, trained_turns
from lorasmith.data.parts import chat_of, parts_of
from lorasmith.data.rows import ASSISTANT
from lorasmith.data.strict_json import NotJson, parse_json, shown
from lorasmith.errors import DataError

MIN_EXAMPLES = 10
MAX_FILE_BYTES = 512_000_000  # of an upload in one request; a multipart upload takes files up to 8 GB
CONTEXT_TOKENS = 65_536  # of an example, in training gpt-4o and gpt-4.1; longer ones are cut off
MAX_TOOLS = 128
ROLES = ("system", "developer", "user", ASSISTANT, "tool")
_FIELDS = {role: {"role", "content", "name"} for role in ("system", "developer", "user")}
_FIELDS[ASSISTANT] = {"role", "content", "name", "refusal", "tool_calls", "weight"}
_FIELDS["tool"] = {"role", "content", "tool_call_id"}
_TOP = ({"messages", "tools", "parallel_tool_calls"}, {"input", "preferred_output", "non_preferred_output"})


def openai_record(record: dict[str, Any], kind: str, place: str) -> dict[str, Any]:
    """A record as OpenAI takes it; columns that OpenAI does not know are left out, as it refuses them.

    Calls get their arguments as JSON text and an id (call_1, call_2, ...) where they have none.

    Args:
        record: A record that `convert.check` has passed.
        kind: A name in `formats.COLUMNS` other than text, or preference or kto.
        place: `file:line`, to name in errors.

    Raises:
        DataError: If OpenAI would refuse the row or read less in it than there is.
    """
    parts = parts_of(record, kind, place)
    if kind == "kto" and parts.rest["label"] is False:
        raise DataError(f"{place}: label: false, and OpenAI would train the answer all the same. Leave the row out.")
    tools = [_tool(tool) for tool in checked_tools(parts.rest, place) or []]
    more: dict[str, Any] = {"tools": tools} if tools else {}
    if isinstance(parts.rest.get("parallel_tool_calls"), bool):
        more["parallel_tool_calls"] = parts.rest["parallel_tool_calls"]
    if kind == "preference":
        asked = _prompt(_sayings(as_messages(parts.asked, "user"), "prompt", place))
        chosen, rejected = (as_messages(said, ASSISTANT) for said in (parts.answered, parts.rest["rejected"]))
        made = {
            "input": {"messages": asked, **more},
            "preferred_output": _sayings(chosen, "chosen", place),
            "non_preferred_output": _sayings(rejected, "rejected", place),
        }
    else:
        made = {"messages": _sayings(chat_of(parts, place), "messages", place), **more}
    wrong = problems(made, place)
    if wrong:
        raise DataError(wrong[0])
    return made


def _prompt(messages: Turns) -> Turns:
    return [{name: value for name, value in turn.items() if name != "weight"} for turn in messages]


def _sayings(turns: Turns, name: str, place: str) -> Turns:
    """Turns in OpenAI's shape, each call with an id and each answer of a tool with that of its call."""
    messages = checked_messages(turns, name, place)
    trained = trained_turns(turns, messages, name, place)
    taken = {call.get("id") for turn in turns for call in turn.get("tool_calls") or () if isinstance(call, dict)}
    fresh = (made for i in range(1, 1 << 30) if (made := f"call_{i}") not in taken)
    waiting: list[str] = []
    said = []
    for i, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        one = {field: value for field, value in message.items() if field not in ("tool_calls", "tool_call_id")}
        if message["role"] == ASSISTANT and not trained[i] and name != "prompt":
            one["weight"] = 0
        if message.get("tool_calls"):
            one["tool_calls"] = _calls(turn["tool_calls"], fresh, f"{name}[{i}]", place)
            waiting = [call["id"] for call in one["tool_calls"]]
            if not one["content"]:
                del one["content"]
        elif message["role"] == "tool":
            one.pop("name", None)  # its call has the name
            one["tool_call_id"] = _answered(message, waiting, f"{name}[{i}]", place)
        said.append(one)
    return said


def _calls(given: list[Any], fresh: Iterator[str], name: str, place: str) -> list[dict[str, Any]]:
    calls = []
    for raw, call in zip(given, checked_calls(given, f"{name}.tool_calls", place), strict=True):
        function, number = call["function"], raw.get("id")
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        known = number if isinstance(number, str) and number else next(fresh)
        calls.append({"id": known, "type": "function", "function": {**function, "arguments": arguments}})
    return calls


def _answered(message: dict[str, Any], waiting: list[str], name: str, place: str) -> str:
    """The id of the call that a tool answers: the one that it names, else the first without an answer."""
    given = message.get("tool_call_id")
    if given in waiting:
        waiting.remove(str(given))
        return str(given)
    if given is not None or not waiting:
        raise DataError(f"{place}: {name}: the answer of a tool that was not called. Fix or remove the line.")
    return waiting.pop(0)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": tool}


def problems(record: Any, place: str) -> list[str]:
    """What OpenAI would refuse in a row, one line each; empty if nothing."""
    if not isinstance(record, dict):
        return [f"{place}: the row is {named_kind(record)}; expected an object with named fields."]
    pair = "messages" not in record and ("preferred_output" in record or "input" in record)
    unknown = sorted(map(str, record.keys() - _TOP[pair]))
    found = [f"{place}: {shown(name)}: OpenAI takes no such column. Remove it." for name in unknown]
    if pair:
        return found + _pair_problems(record, place)
    messages = record.get("messages")
    found += _message_problems(messages, "messages", place) + _tool_problems(record, place)
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        if messages[-1].get("role") != ASSISTANT:
            found.append(
                f"{place}: messages: the last is not the assistant's, so nothing is learnt. Remove what follows."
            )
        elif all(m.get("weight") == 0 for m in messages if isinstance(m, dict) and m.get("role") == ASSISTANT):
            found.append(f"{place}: messages: all assistant turns have weight 0, nothing to train on. Remove the line.")
    return found


def _pair_problems(record: dict[str, Any], place: str) -> list[str]:
    asked = record.get("input")
    if not isinstance(asked, dict):
        return [f"{place}: input: {named_kind(asked)}; expected {{messages: [...]}}."]
    unknown = sorted(map(str, asked.keys() - _TOP[0]))
    found = [f"{place}: input.{shown(name)}: OpenAI takes no such column. Remove it." for name in unknown]
    found += _message_problems(asked.get("messages"), "input.messages", place) + _tool_problems(asked, place)
    for name in ("preferred_output", "non_preferred_output"):
        said = record.get(name)
        wrong = _message_problems(said, name, place)
        if not wrong and (len(said or ()) != 1 or (said or [{}])[0].get("role") != ASSISTANT):
            wrong = [f"{place}: {name}: OpenAI takes exactly one message of the assistant. Fix or remove the line."]
        found += wrong
    return found


def _message_problems(messages: Any, name: str, place: str) -> list[str]:
    if not isinstance(messages, list) or not messages:
        return [f"{place}: {name}: {'empty' if messages == [] else named_kind(messages)}; expected a list of messages."]
    found, called = [], set[str]()
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            found.append(f"{place}: {name}[{i}].role: `{shown(role)}`; expected one of {', '.join(ROLES)}.")
            continue
        unknown = sorted(map(str, message.keys() - _FIELDS[role]))
        found += [f"{place}: {name}[{i}].{shown(key)}: OpenAI takes no such field. Remove it." for key in unknown]
        found += [f"{place}: {name}[{i}].{wrong}" for wrong in _content_problems(message)]
        if role == "tool" and message.get("tool_call_id") not in called:
            found.append(f"{place}: {name}[{i}].tool_call_id: of no call before it. Give the id of the call.")
        calls = message.get("tool_calls") if role == ASSISTANT else None
        called |= {call["id"] for call in calls or () if isinstance(call, dict) and isinstance(call.get("id"), str)}
    return found


def _content_problems(message: dict[str, Any]) -> list[str]:
    """What is wrong with a message's content, weight and calls, each beginning with the field."""
    found, content, calls = [], message.get("content"), message.get("tool_calls")
    if content is not None and not isinstance(content, str | list):
        found.append(f"content: {named_kind(content)}; expected text.")
    silent = content is None or content == [] or (isinstance(content, str) and not content.strip())
    if silent and not calls and not message.get("refusal") and message["role"] != "tool":
        found.append("content: empty, and no tool is called. Fix or remove the line.")
    weight = message.get("weight")
    if weight is not None and (type(weight) is not int or weight not in (0, 1)):
        found.append(f"weight: `{shown(weight)}`; expected 0 or 1.")
    if calls is not None and (not isinstance(calls, list) or not calls):
        return [*found, "tool_calls: expected a list of calls, or no such field."]
    return found + [f"tool_calls[{i}]{wrong}" for i, call in enumerate(calls or ()) if (wrong := _call_problem(call))]


def _call_problem(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type") != "function" or not isinstance(call.get("id"), str):
        return ": expected {id, type: function, function: {name, arguments}}."
    if not isinstance(function.get("name"), str) or not function["name"]:
        return ".function.name: expected text."
    try:
        sound = isinstance(parse_json(function.get("arguments", 0)), dict)
    except (NotJson, TypeError):
        sound = False
    return "" if sound else ".function.arguments: expected a JSON object as text."


def _tool_problems(record: dict[str, Any], place: str) -> list[str]:
    tools, found = record.get("tools"), []
    if "parallel_tool_calls" in record and not isinstance(record["parallel_tool_calls"], bool):
        found.append(f"{place}: parallel_tool_calls: expected true or false.")
    if tools is not None and (not isinstance(tools, list) or len(tools) > MAX_TOOLS):
        return [*found, f"{place}: tools: expected a list of at most {MAX_TOOLS}."]
    for i, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function" or not function.get("name"):
            found.append(f"{place}: tools[{i}]: expected {{type: function, function: {{name, ...}}}}.")
    return found


def file_problems(examples: int, size: int, longest: int | None = None, context: int = CONTEXT_TOKENS) -> list[str]:
    """What OpenAI would refuse or cut in a file as a whole, one line each.

    Args:
        examples: Rows in the file.
        size: Bytes of the file.
        longest: Tokens of its longest row, if they are counted.
        context: Tokens that the model takes of a row in training.
    """
    found = []
    if examples < MIN_EXAMPLES:
        found.append(f"{examples} rows; OpenAI wants at least {MIN_EXAMPLES}. Add some.")
    if size > MAX_FILE_BYTES:
        found.append(f"{size:,} bytes; OpenAI takes at most {MAX_FILE_BYTES:,} in one upload. Split the file.")
    if longest is not None and longest > context:
        found.append(f"a row of {longest:,} tokens; the model takes {context:,} and the rest is cut off. Shorten it.")
    return found


def estimate(tokens: int, epochs: int, price_per_million: float | None) -> dict[str, Any]:
    """What a run bills: tokens of the file times epochs, and their price in the currency of `price_per_million`."""
    billed = tokens * epochs
    cost = None if price_per_million is None else round(billed * price_per_million / 1e6, 2)
    return {"tokens": tokens, "epochs": epochs, "billed_tokens": billed, "price": cost}
