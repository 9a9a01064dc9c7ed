"""Rows of the recipe: read, checked, weighted, split without leakage."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

from lorasmith.errors import DataError

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Row:
    """One row in one of three shapes: a conversation, a plain prompt with its completion, or plain text.

    Attributes:
        place: `file:line`, to name in errors.
        messages: The conversation, or empty.
        trained: For each message, whether it is to be trained; only assistant messages can be.
        tools: Tool definitions for the chat template.
    """

    place: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    trained: tuple[bool, ...] = ()
    tools: list[Any] | None = None
    prompt: str = ""
    completion: str = ""
    text: str = ""

    @cached_property
    def prompt_key(self) -> str:
        """What the model is shown before it must answer; equal for rows that must not straddle a split."""
        if self.messages:
            return json.dumps([self.tools, *self.messages[: self.answer_start]], sort_keys=True)
        return self.prompt or self.text

    @property
    def answer_start(self) -> int:
        """Index of the last assistant message; past the end if there is none."""
        spoken = [i for i, message in enumerate(self.messages) if message["role"] == ASSISTANT]
        return spoken[-1] if spoken else len(self.messages)

    @property
    def answer(self) -> str:
        """The last assistant message, the completion, or the text."""
        return str(self.messages[self.answer_start]["content"]) if self.messages else self.completion or self.text

    @cached_property
    def digest(self) -> str:
        """Hash of the content, wherever the row stands."""
        content = [self.messages, self.trained, self.tools, self.prompt, self.completion, self.text]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class Keyed(Protocol):
    """A row, or a pair, that is known by where it stands, by what it shows the model, and by all that it holds."""

    @property
    def place(self) -> str: ...
    @property
    def prompt_key(self) -> str: ...
    @property
    def digest(self) -> str: ...


R = TypeVar("R", bound=Keyed)


class Read(NamedTuple):
    """What came out of one or more sources: the rows, their format, and the refusals of dropped rows."""

    rows: list[Row]
    kind: str
    rejected: list[str]


def conversation(
    place: str, messages: list[dict[str, Any]], trained: Sequence[bool] | None = None, tools: list[Any] | None = None
) -> Row:
    """A conversation row; by default every assistant message is trained."""
    chosen = tuple(trained) if trained is not None else tuple(m["role"] == ASSISTANT for m in messages)
    return Row(place, messages=messages, trained=chosen, tools=tools)


def weigh(rows: list[R], weight: float, seed: int) -> list[R]:
    """`weight` times the rows: whole times over, the rest drawn without replacement, the same for the same seed."""
    whole, part = int(weight), weight - int(weight)
    drawn = sorted(random.Random(seed).sample(range(len(rows)), round(part * len(rows))))
    return rows * whole + [rows[i] for i in drawn]


def split_rows(rows: list[R], fraction: float, seed: int) -> tuple[list[R], list[R]]:
    """Hold out about `fraction` of the rows, the same for the same seed; rows with one prompt stay on one side.

    Raises:
        DataError: If nothing would be left on one of the sides.
    """
    groups: dict[str, list[R]] = {}
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


def check_no_overlap(train: Sequence[Keyed], held_out: Sequence[Keyed]) -> None:
    """Refuse evaluation rows that are also trained on.

    Raises:
        DataError: Naming both lines of the first such row.
    """
    places = {row.digest: row.place for row in reversed(train)}
    shared = [row for row in held_out if row.digest in places]
    if shared:
        more = f" ({len(shared)} such rows)" if len(shared) > 1 else ""
        raise DataError(
            f"{shared[0].place}: the same row is trained on ({places[shared[0].digest]}){more}. "
            "Remove it from one of the files."
        )
