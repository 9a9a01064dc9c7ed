"""Rows: recognised, checked strictly, and brought into one of three shapes."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorasmith.data.files import records
from lorasmith.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
FORMATS = {
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "instruction+output": ("instruction", "output"),
    "question+answer": ("question", "answer"),
    "text": ("text",),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row in one of three shapes: a conversation, a plain prompt with its completion, or plain text.

    Attributes:
        place: `file:line`, to name in errors.
        messages: The conversation, or empty.
        trained_from: Index of the first message that may be trained; earlier assistant turns are context.
        tools: Tool definitions for the chat template.
    """

    place: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    trained_from: int = 0
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    text: str = ""

    @property
    def prompt_key(self) -> str:
        """What the model is shown before it must answer; equal for rows that must not straddle a split."""
        if self.messages:
            return json.dumps([self.tools, *self.messages[: self.answer_start]], sort_keys=True)
        return self.prompt or self.text

    @property
    def answer_start(self) -> int:
        """Index of the last assistant message; past the end if there is none."""
        spoken = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        return spoken[-1] if spoken else len(self.messages)

    @property
    def answer(self) -> str:
        """The last assistant message, the completion, or the text."""
        return str(self.messages[self.answer_start]["content"]) if self.messages else self.completion or self.text

    @property
    def digest(self) -> str:
        """Hash of the content, wherever the row stands."""
        content = [self.messages, self.trained_from, self.tools, self.prompt, self.completion, self.text]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_rows(source: str, subset: str | None = None, split: str = "train") -> tuple[list[Row], str]:
    """Read all rows of a file or hub data set.

    Args:
        source: Path of a jsonl, json, csv or parquet file, or a hub id such as `org/name`.
        subset: Configuration of a hub data set.
        split: Split of a hub data set.

    Returns:
        The rows, and the name of the format they were recognised as.

    Raises:
        DataError: At the first row that is broken, naming its line.
    """
    rows: list[Row] = []
    kind = ""
    for place, record in records(source, subset, split):
        if not isinstance(record, dict):
            raise DataError(f"{place}: the row is {_name(record)}; expected an object with named fields.")
        if not kind:
            kind = _recognise(record, place, source)
        missing = [name for name in FORMATS[kind] if name not in record]
        if missing:
            raise DataError(
                f"{place}: field `{missing[0]}` is missing; the rows before it are {kind}. Fix or remove the line."
            )
        rows.append(_PARSERS[kind](record, place))
    if not rows:
        raise DataError(f"{source}: no rows. Give at least one.")
    return rows, kind


def read_prompts(source: str) -> list[Row]:
    """Read rows that need no answer: messages, prompt, instruction (+input) or question.

    Raises:
        DataError: At the first row that asks nothing.
    """
    rows = []
    for place, record in records(source, None, "train"):
        name = next((n for n in ("messages", "prompt", "instruction", "question") if n in (record or ())), None)
        if not isinstance(record, dict) or name is None:
            raise DataError(f"{place}: nothing is asked; expected messages, prompt, instruction or question.")
        if name == "messages" or isinstance(record[name], list):
            rows.append(Row(place, messages=_messages(record[name], name, place), tools=record.get("tools")))
        elif name == "prompt":
            rows.append(Row(place, prompt=_string(record, "prompt", place)))
        else:
            rows.append(_asked(_question_text(record, name, place), "", place))
    if not rows:
        raise DataError(f"{source}: no rows. Give at least one.")
    return rows


def split_rows(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Hold out about `fraction` of the rows, the same for the same seed; rows with one prompt stay on one side.

    Raises:
        DataError: If nothing would be left on one of the sides.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.prompt_key, []).append(row)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    wanted = max(1, round(fraction * len(rows)))
    held: set[str] = set()
    count = 0
    for key in keys:
        if count + len(groups[key]) > wanted:
            continue
        held.add(key)
        count += len(groups[key])
    if not held or len(held) == len(groups):
        raise DataError(f"{len(rows)} rows with {len(groups)} prompts cannot be split. Set data.eval to a file.")
    return [r for r in rows if r.prompt_key not in held], [r for r in rows if r.prompt_key in held]


def check_no_overlap(train: list[Row], held_out: list[Row]) -> None:
    """Refuse evaluation rows that are also trained on.

    Raises:
        DataError: Naming both lines of the first such row.
    """
    places = {row.digest: row.place for row in train}
    for row in held_out:
        if row.digest in places:
            raise DataError(
                f"{row.place}: the same row is trained on ({places[row.digest]}). Remove it from one of the files."
            )


def _recognise(record: dict[str, Any], place: str, source: str) -> str:
    for kind, names in FORMATS.items():
        if all(name in record for name in names):
            return kind
    wanted = ", ".join(FORMATS)
    raise DataError(f"{place}: {Path(source).name} has columns [{', '.join(record)}]; expected one of: {wanted}.")


def _name(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "an object")


def _string(record: dict[str, Any], name: str, place: str, *, empty: bool = False) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise DataError(f"{place}: {name}: {_name(value)}; expected text. Fix or remove the line.")
    if not empty and not value.strip():
        raise DataError(f"{place}: {name}: empty. Fix or remove the line.")
    return value


def _messages(value: Any, name: str, place: str) -> list[dict[str, Any]]:
    """Checked messages, their content as text."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {name}: {_name(value) if value else 'empty'}; expected a list of messages.")
    return [_message(message, f"{name}[{i}]", place) for i, message in enumerate(value)]


def _message(message: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise DataError(f"{place}: {name}: {_name(message)}; expected an object with role and content.")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{place}: {name}.role: `{role}`; expected one of {', '.join(ROLES)}.")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}.content[{i}]", place) for i, part in enumerate(content))
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise DataError(f"{place}: {name}.content: {_name(content)}; expected text.")
    if role == "assistant" and not content.strip() and not message.get("tool_calls"):
        raise DataError(f"{place}: {name}.content: empty; the assistant must say something. Fix or remove the line.")
    return {key: value for key, value in message.items() if value is not None} | {"content": content}


def _part(part: Any, name: str, place: str) -> str:
    text = part.get("text", part.get("value")) if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise DataError(f"{place}: {name}: not a text part; only text can be trained on.")
    return text


def _conversation(record: dict[str, Any], place: str) -> Row:
    messages = _messages(record["messages"], "messages", place)
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{place}: messages: no assistant turn, nothing to train on. Fix or remove the line.")
    return Row(place, messages=messages, tools=record.get("tools"))


def _prompt_completion(record: dict[str, Any], place: str) -> Row:
    if isinstance(record["prompt"], list) or isinstance(record["completion"], list):
        asked = _messages(record["prompt"], "prompt", place)
        answered = _messages(record["completion"], "completion", place)
        if not any(message["role"] == "assistant" for message in answered):
            raise DataError(f"{place}: completion: no assistant turn, nothing to train on. Fix or remove the line.")
        return Row(place, messages=asked + answered, trained_from=len(asked), tools=record.get("tools"))
    return Row(place, prompt=_string(record, "prompt", place), completion=_string(record, "completion", place))


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
    return Row(place, messages=[{"role": "user", "content": asked}, {"role": "assistant", "content": answered}])


def _plain(record: dict[str, Any], place: str) -> Row:
    return Row(place, text=_string(record, "text", place))


_PARSERS: dict[str, Callable[[dict[str, Any], str], Row]] = {
    "messages": _conversation,
    "prompt+completion": _prompt_completion,
    "instruction+output": _instruction,
    "question+answer": _question,
    "text": _plain,
}
