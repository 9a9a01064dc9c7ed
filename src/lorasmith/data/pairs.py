"""Rows with an answer that is preferred over another (dpo, reward), and rows with an answer that is judged (kto)."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from lorasmith.data.answers import Said, as_messages, asked_in, divided, last_answer, one_answer, transcript
from lorasmith.data.files import Record, records
from lorasmith.data.formats import check_record, renamed
from lorasmith.data.messages import DROP, checked_messages, checked_text, checked_tools, named_kind, trained_turns
from lorasmith.data.rows import ASSISTANT
from lorasmith.errors import DataError

LABELS = ("label", "kto_tag")


def content_hash(*content: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Pair:
    """A prompt with two answers. All three are messages, or all three are text that is taken as it is.

    Attributes:
        place: `file:line`, to name in errors.
        tools: Tool definitions for the chat template.
    """

    place: str
    prompt: Said
    chosen: Said
    rejected: Said
    tools: list[Any] | None = None

    @cached_property
    def prompt_key(self) -> str:
        """What the model is shown; equal for pairs that must not straddle a split."""
        return json.dumps([self.tools, self.prompt], sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """Hash of the content, wherever the pair stands."""
        return content_hash(self.tools, self.prompt, self.chosen, self.rejected)


@dataclass(frozen=True)
class Judged:
    """A prompt with an answer, both messages or both text, and whether the answer is wanted.

    Attributes:
        place: `file:line`, to name in errors.
        tools: Tool definitions for the chat template.
    """

    place: str
    prompt: Said
    completion: Said
    label: bool
    tools: list[Any] | None = None

    @cached_property
    def prompt_key(self) -> str:
        """What the model is shown; equal for rows that must not straddle a split."""
        return json.dumps([self.tools, self.prompt], sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """Hash of the content, wherever the row stands."""
        return content_hash(self.tools, self.prompt, self.completion, self.label)


T = TypeVar("T")


class Found(NamedTuple, Generic[T]):
    """What came out of a source: the rows, and the refusals of dropped rows."""

    rows: list[T]
    rejected: list[str]


def read_pairs(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
) -> Found[Pair]:
    """Read all pairs of a file, folder or hub data set; the arguments are those of `formats.read_rows`.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """
    return found_in(pair_of, source, subset, split, columns or {}, on_bad_row)


def read_judged(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
) -> Found[Judged]:
    """Read all judged rows of a file, folder or hub data set, as `read_pairs` does."""
    return found_in(judged_of, source, subset, split, columns or {}, on_bad_row)


def found_in(
    parse: Callable[[Any, str], T],
    source: str,
    subset: str | None,
    split: str,
    columns: dict[str, str],
    on_bad_row: str,
) -> Found[T]:
    """What a source's records are parsed to, and the refusals of those that cannot be, where they are dropped.

    Raises:
        DataError: At the first record that is broken, unless `on_bad_row` is "drop", or if no row is left.
    """
    return found_among(parse, records(source, subset, split), source, columns, on_bad_row)


def found_among(
    parse: Callable[[Any, str], T], given: Iterable[Record], source: str, columns: dict[str, str], on_bad_row: str
) -> Found[T]:
    """What given records of a source are parsed to, as `found_in` does with all of them."""
    rows: list[T] = []
    rejected: list[str] = []
    for place, value in given:
        try:
            rows.append(parse(renamed(value, columns), place))
        except DataError as error:
            if on_bad_row == "error":
                raise
            rejected.append(str(error))
    if not rows and rejected:
        raise DataError(f"{source}: all {len(rejected)} rows are broken. The first: {rejected[0]}")
    if not rows:
        raise DataError(f"{source}: no rows. Give at least one.")
    return Found(rows, rejected)


def is_pair(record: dict[str, Any]) -> bool:
    """Whether a record has two answers, of which one is preferred."""
    return ("chosen" in record and "rejected" in record) or is_openai_pair(record)


def is_judged(record: dict[str, Any]) -> bool:
    """Whether a record has an answer and a verdict of true or false on it."""
    tagged = isinstance(record.get("kto_tag"), bool)
    if not tagged and not isinstance(record.get("label"), bool):
        return False
    conversational = "messages" in record or "conversations" in record or {"prompt", "completion"} <= record.keys()
    return conversational or (tagged and {"instruction", "output"} <= record.keys())


def is_openai_pair(record: dict[str, Any]) -> bool:
    """Whether two answers stand in OpenAI's columns for them."""
    return "preferred_output" in record and "non_preferred_output" in record


def pair_of(record: Any, place: str) -> Pair:
    """A checked pair.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    prompt, chosen, rejected = split_pair(record, place)
    asked = record["input"] if is_openai_pair(record) else record
    pair = Pair(
        place,
        checked_said(prompt, "prompt", place, answer=False),
        checked_said(chosen, "chosen", place),
        checked_said(rejected, "rejected", place),
        checked_tools(asked, place),
    )
    if pair.chosen == pair.rejected:
        raise DataError(f"{place}: chosen and rejected are the same, so that none is preferred. {DROP}")
    return pair


def judged_of(record: Any, place: str) -> Judged:
    """A checked judged row.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    prompt, completion, label = split_judged(record, place)
    if "messages" in record:  # what is wrong with a turn is told by its number in the row
        checked_messages(record["messages"], "messages", place)
    asked = checked_said(prompt, "prompt", place, answer=False)
    return Judged(place, asked, checked_said(completion, "completion", place), label, checked_tools(record, place))


def checked_said(value: Said, name: str, place: str, *, answer: bool = True) -> Said:
    """Text or messages, checked; an answer ends with the assistant's turn.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    if isinstance(value, str):
        if not checked_text(value, name, place).strip():
            raise DataError(f"{place}: {name}: empty. {DROP}")
        return value
    messages = checked_messages(value, name, place)
    trained_turns(value, messages, name, place)
    if answer and messages[-1]["role"] != ASSISTANT:
        raise DataError(
            f"{place}: {name}: ends with the {messages[-1]['role']}'s turn; expected the assistant's. {DROP}"
        )
    return messages


def split_pair(record: Any, place: str) -> tuple[Said, Said, Said]:
    """Prompt, chosen and rejected, all text or all lists of messages; what is in the messages is not looked at.

    Raises:
        DataError: If the record has no such parts.
    """
    check_record(record, place)
    if is_openai_pair(record):
        return _openai_pair(record, place)
    for name in ("chosen", "rejected"):
        if name not in record:
            raise DataError(f"{place}: field `{name}` is missing; the rows are preference. {DROP}")
    chosen, rejected = (one_answer(record[name], name, place) for name in ("chosen", "rejected"))
    asked = asked_in(record, place)
    if isinstance(chosen, str) and isinstance(rejected, str) and (told := transcript(chosen)):
        chosen, rejected = told, transcript(rejected) or rejected
    if isinstance(asked, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return asked, chosen, rejected
    if asked is None and isinstance(chosen, str) and isinstance(rejected, str):
        return _text_in_common(chosen, rejected, place)
    answers = as_messages(chosen, ASSISTANT), as_messages(rejected, ASSISTANT)
    if asked is None or all(answer[0].get("role") not in (ASSISTANT, "tool") for answer in answers):
        return _turns_in_common(None if asked is None else as_messages(asked, "user"), *answers, place)
    return as_messages(asked, "user"), *answers


def _openai_pair(record: dict[str, Any], place: str) -> tuple[Said, Said, Said]:
    asked = record.get("input")
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise DataError(f"{place}: input: no messages in it; expected {{messages: [...]}}. {DROP}")
    chosen = one_answer(record["preferred_output"], "preferred_output", place)
    rejected = one_answer(record["non_preferred_output"], "non_preferred_output", place)
    return asked["messages"], as_messages(chosen, ASSISTANT), as_messages(rejected, ASSISTANT)


def _text_in_common(chosen: str, rejected: str, place: str) -> tuple[str, str, str]:
    """A prompt that stands in both texts, cut before a space as trl does."""
    at = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    at = min(len(chosen), len(rejected)) if at is None else at
    if at and chosen[at - 1] == " ":
        at -= 1
    if not chosen[:at].strip():
        raise DataError(f"{place}: no prompt, and chosen and rejected do not begin alike. Give a field `prompt`.")
    return chosen[:at], chosen[at:], rejected[at:]


def _turns_in_common(
    asked: list[dict[str, Any]] | None, chosen: list[dict[str, Any]], rejected: list[dict[str, Any]], place: str
) -> tuple[Said, Said, Said]:
    """A prompt that both conversations repeat."""
    shortest = min(len(chosen), len(rejected)) - 1
    count = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if not count:
        raise DataError(f"{place}: no prompt, and chosen and rejected do not begin alike. Give a field `prompt`.")
    # A text prompt stands for its user turn; a system turn before it may stand in the answers alone.
    if asked and [turn.get("content") for turn in asked] != [
        t.get("content") for t in chosen[count - len(asked) : count]
    ]:
        raise DataError(f"{place}: prompt: other than what chosen and rejected both begin with. {DROP}")
    return chosen[:count], chosen[count:], rejected[count:]


def split_judged(record: Any, place: str) -> tuple[Said, Said, bool]:
    """Prompt, completion and label; both text or both lists of messages, which are not looked at.

    Raises:
        DataError: If the record has no such parts.
    """
    check_record(record, place)
    given = [record[name] for name in LABELS if record.get(name) is not None]
    if not given:
        raise DataError(f"{place}: field `label` is missing; the rows are kto. {DROP}")
    if not all(isinstance(label, bool) for label in given):
        wrong = next(label for label in given if not isinstance(label, bool))
        raise DataError(f"{place}: label: {named_kind(wrong)}; expected true or false. {DROP}")
    if len(set(given)) > 1:
        raise DataError(f"{place}: label and kto_tag differ. Keep one.")
    prompt, completion = divided(record, place, last_answer)
    return prompt, completion, given[0]
