"""Rows that only ask (grpo): a prompt, and the columns that reward functions are given."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

from lorasmith.console import say
from lorasmith.data.answers import Said, Turns, as_messages, asked_in, divided, last_answer
from lorasmith.data.formats import check_record, is_marked
from lorasmith.data.messages import DROP, checked_text, checked_tools
from lorasmith.data.pairs import Found, checked_said, content_hash, found_in, is_judged, is_pair, split_pair
from lorasmith.data.rows import ASSISTANT, Row, conversation
from lorasmith.data.strict_json import shown
from lorasmith.errors import DataError

# Columns that ask, in the order in which formats.COLUMNS prefers them.
ASKING = ("messages", "conversations", "prompt", "instruction", "question")
CONVERSATIONS = {"messages": "messages", "conversations": "sharegpt", "text": "marked-text"}
# What trl hands to reward functions under these names, takes for pictures, or is the token ids of the prompt.
TAKEN = (
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
    "image", "images", "input_ids",
)  # fmt: skip
ANSWERS = ("answer", "completion", "solution", "response", "output", "final")  # columns that may hold a right answer


@dataclass(frozen=True)
class Prompt:
    """What is asked, as messages or as text that is taken as it is, and the row's other columns.

    Attributes:
        place: `file:line`, to name in errors.
        messages: The conversation up to the turn that is to be answered, or empty.
        columns: JSON values as they stand in the row; `answer` is what the row's conversation or `completion` answers,
            where it has no such column, since trl hands `completion` to no reward.
    """

    place: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Said:
        """The messages or the text, as trl takes them under `prompt`."""
        return self.messages or self.text

    @cached_property
    def prompt_key(self) -> str:
        """What the model is shown; equal for prompts that must not straddle a split."""
        return json.dumps(self.asked, sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """Hash of the content, columns included, wherever the row stands."""
        return content_hash(self.asked, self.columns)


def read_prompts(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
    system: str | None = None,
) -> Found[Prompt]:
    """Read all prompts of a file, folder or hub data set; the other arguments are those of `formats.read_rows`.

    Args:
        system: A system turn for prompts that have none; one of text becomes the user's turn behind it.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """
    return found_in(partial(prompt_of, system=system), source, subset, split, columns or {}, on_bad_row)


def prompt_of(record: Any, place: str, system: str | None = None) -> Prompt:
    """A checked prompt.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    check_record(record, place)
    for name in TAKEN:
        if name in record:
            raise DataError(
                f"{place}: column `{name}` has a name that trl gives to something else. Rename it, as by data.columns: "
                f"{{my_{name}: {name}}}."
            )
    if checked_tools(record, place):
        raise DataError(f"{place}: tools: grpo.py shows the model none, so it could not call them. Remove the field.")
    name = _asking(record, place)
    asked, answer = _parts(record, name, place)
    checked = checked_said(asked, name, place, answer=False) if asked else []
    if isinstance(checked, list):
        _check_open(checked, name, place)
        if system and not any(turn["role"] in ("system", "developer") for turn in checked):
            checked = [{"role": "system", "content": system}, *checked]
    elif system:
        checked = [{"role": "system", "content": system}, {"role": "user", "content": checked}]
    columns = {key: _json_value(value, key, place) for key, value in record.items() if key != "prompt"}
    if answer is not None and "answer" not in record and not is_judged(record):
        columns["answer"] = answer
    if isinstance(checked, str):
        return Prompt(place, text=checked, columns=columns)
    return Prompt(place, messages=checked, columns=columns)


def _asking(record: dict[str, Any], place: str) -> str:
    """The column that asks."""
    if is_pair(record):
        return "prompt"
    name = next((name for name in ASKING if record.get(name) is not None), None)
    if name is None and is_marked(record.get("text")):
        return "text"
    empty = next((name for name in ASKING if name in record), None)
    if name is None and empty is not None:
        raise DataError(f"{place}: {empty}: null; expected {_wanted(empty)}. {DROP}")
    if name is None:
        given = shown(", ".join(record), 200) or "none"
        raise DataError(
            f"{place}: nothing is asked in the columns [{given}]; expected one of: {', '.join(ASKING)}. Rename one, or "
            "map it with data.columns."
        )
    return name


def _wanted(name: str) -> str:
    return {"prompt": "text or messages", "instruction": "text", "question": "text"}.get(name, "a list of messages")


def _parts(record: dict[str, Any], name: str, place: str) -> tuple[Said, str | None]:
    """What is asked, not yet checked, and the text of the answer that the row has in its conversation or `completion`.

    Where `formats` reads the row as sft.py does, the model is asked the same by both.
    """
    if is_pair(record):
        return split_pair(record, place)[0], None
    if name in CONVERSATIONS:
        asked, answered = divided(record, place, _open_end, CONVERSATIONS[name])
        whole = checked_said([*asked, *answered], name, place, answer=False)  # what the model is not shown too
        return asked, _said_last(list(takewhile(_is_answer, whole[len(asked) :])))
    alone = {key: value for key, value in record.items() if key not in ("messages", "conversations")}
    said = asked_in(alone, place)
    assert said is not None
    completion = record.get("completion")
    if isinstance(completion, dict | list):
        said = as_messages(said, "user")
    return said, _said_last([completion] if isinstance(completion, dict) else completion)


def _open_end(messages: Turns) -> int:
    """Where the answer begins: past the end of a conversation that waits for one, else behind the last question."""
    return last_answer(messages) if messages[-1].get("role") == ASSISTANT else len(messages)


def _is_answer(turn: Any) -> bool:
    return turn["role"] in (ASSISTANT, "tool")


def _said_last(answered: Any) -> str | None:
    """The text of an answer, or of the last of its turns; None if there is none."""
    if isinstance(answered, list) and answered and isinstance(answered[-1], dict):
        answered = answered[-1].get("content")
    return answered if isinstance(answered, str) and answered.strip() else None


def _check_open(messages: Turns, name: str, place: str) -> None:
    """Refuse a conversation that does not wait for the assistant."""
    if not messages:
        raise DataError(f"{place}: {name}: no turn before the assistant's, so that nothing is asked. {DROP}")
    if messages[-1]["role"] not in ("user", "tool"):
        role = messages[-1]["role"]
        raise DataError(f"{place}: {name}: ends with the {role}'s turn; expected the user's, to be answered. {DROP}")


def _json_value(value: Any, name: str, place: str) -> Any:
    """A column's value, which can be written as JSON."""
    checked_text(name, "a column's name", place)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise DataError(
            f"{place}: {name}: `{shown(str(value))}` ({type(value).__name__}) is no JSON value. Write it as text, or "
            "remove the column."
        ) from None
    return value


def alike(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the same columns in each, in one order: trl hands over those of a batch's first row alone.

    Raises:
        DataError: If some are text and some messages, which trl cannot take in one batch.
    """
    texts = [prompt for prompt in prompts if prompt.text]
    if texts and len(texts) < len(prompts):
        other = next(prompt for prompt in prompts if prompt.messages)
        raise DataError(
            f"{texts[0].place}: the prompt is text, that of {other.place} is messages. Write all the same way."
        )
    there = Counter(name for prompt in prompts for name in prompt.columns)
    lacking = [f"`{name}` ({len(prompts) - count})" for name, count in there.items() if count < len(prompts)]
    if lacking:
        say(f"rows: columns that some of {len(prompts)} lack and rewards get as None there: {', '.join(lacking)}")
    return [replace(prompt, columns={name: prompt.columns.get(name) for name in there}) for prompt in prompts]


def check_unseen(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """Refuse prompts to evaluate on that are also trained on, whatever their columns.

    Raises:
        DataError: Naming both lines of the first such prompt.
    """
    places = {prompt.prompt_key: prompt.place for prompt in reversed(train)}
    shared = [prompt for prompt in held_out if prompt.prompt_key in places]
    if shared:
        more = f" ({len(shared)} such prompts)" if len(shared) > 1 else ""
        raise DataError(
            f"{shared[0].place}: the same prompt is trained on ({places[shared[0].prompt_key]}){more}. Remove it from "
            "one of the files."
        )


def repeated(prompts: Sequence[Prompt]) -> int:
    """How many prompts stand in another row too, beyond the first; a row taken twice by its weight counts once."""
    keys = {prompt.place: prompt.prompt_key for prompt in prompts}
    return len(keys) - len(set(keys.values()))


def with_answer(prompt: Prompt) -> Row | None:
    """The prompt and the answer that its columns know, as a row to prove exports with; None if they know none."""
    known = (prompt.columns.get(name) for name in ANSWERS)
    said = (str(one) for one in known if isinstance(one, str | int | float) and not isinstance(one, bool))
    answer = next((one for one in said if one.strip()), None)
    if answer is None:
        return None
    if prompt.text:
        return Row(prompt.place, prompt=prompt.text, completion=answer)
    messages = [*prompt.messages, {"role": ASSISTANT, "content": answer}]
    trained = [False] * len(prompt.messages) + [True]
    return conversation(prompt.place, messages, trained)
