"""Failures of the libraries underneath: what happened and what mends it, from the table in failures.yaml."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry of the table.

    Attributes:
        text: Regular expression, searched in the message put on one line; its named groups fill `cause` and `mend`.
        exception: Regular expression for the whole name of the class that is raised, or of one it inherits from.
    """

    id: str
    text: str
    cause: str
    mend: str
    exit_code: int
    example: str
    source: str
    exception: str = ".*"

    def told(self, kinds: list[str], message: str) -> "Failure | None":
        """This failure with cause and mend filled in, or None for a message or classes that are not its own."""
        found = re.search(self.text, " ".join(message.split()))
        if found is None or not any(re.fullmatch(self.exception, kind) for kind in kinds):
            return None
        return replace(self, cause=self.cause.format(**found.groupdict()), mend=self.mend.format(**found.groupdict()))


@cache
def known_failures() -> tuple[Failure, ...]:
    """The table, in the order in which it is searched; read only now, since most runs never need it."""
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tuple(Failure(**entry) for entry in entries)


def explain(error: BaseException) -> Failure | None:
    """The first known failure that an error, or one that it came from, is; None leaves it our bug."""
    raised = [([kind.__name__ for kind in type(one).__mro__], str(one)) for one in _came_from(error)]
    told = (failure.told(*one) for failure in known_failures() for one in raised)
    return next((failure for failure in told if failure is not None), None)


def _came_from(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
