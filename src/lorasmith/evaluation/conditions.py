"""Conditions under which an evaluation fails, as `--fail-if "exact_match < 0.8"` writes them."""

import difflib
import math
import operator
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lorasmith.errors import LorasmithError

OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
DELTA = "delta:"
_WRITTEN = re.compile(r"\s*(delta:)?([^\s<>=]+)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Condition:
    """A figure that is compared with a number.

    Attributes:
        of_delta: Whether the difference from the base is meant, not the figure itself.
    """

    text: str
    name: str
    of_delta: bool
    sign: str
    limit: float


def parse_condition(text: str) -> Condition:
    """A condition out of `NAME < NUMBER` or `delta:NAME < NUMBER`.

    Raises:
        LorasmithError: If it is written otherwise.
    """
    found = _WRITTEN.fullmatch(text)
    limit = _number(found[4]) if found else None
    if found is None or limit is None:
        raise LorasmithError(
            f"--fail-if is `{text}`; expected a figure, one of {' '.join(OPERATORS)} and a number, "
            "such as `exact_match < 0.8` or `delta:loss > 0`."
        )
    return Condition(text, found[2], bool(found[1]), found[3], limit)


def check_names(conditions: Collection[Condition], known: Collection[str], has_base: bool) -> None:
    """Refuse conditions on figures that this evaluation will not have.

    Args:
        known: Names of figures; one that ends in `:` stands for all that begin with it.
        has_base: Whether there is something to differ from.

    Raises:
        LorasmithError: Naming the figure and the nearest known one.
    """
    for one in conditions:
        if one.name not in known and not any(name.endswith(":") and one.name.startswith(name) for name in known):
            near = difflib.get_close_matches(one.name, known, 1)
            hint = f"Did you mean `{near[0]}`?" if near else f"There are: {', '.join(sorted(known))}."
            raise LorasmithError(f"--fail-if: no figure `{one.name}` in this evaluation. {hint}")
        if one.of_delta and not has_base:
            raise LorasmithError(f"--fail-if: `{one.text}` needs a base; a whole model has none. Leave `delta:` out.")


def that_hold(
    conditions: Collection[Condition], figures: Mapping[str, float], deltas: Mapping[str, float]
) -> list[str]:
    """A sentence for each condition that holds. One on a figure that is no number holds, since nothing vouches for it.

    Raises:
        LorasmithError: If a figure is not there.
    """
    check_names(conditions, [*figures], bool(deltas))
    held = []
    for one in conditions:
        value = (deltas if one.of_delta else figures).get(one.name, math.nan)
        if math.isnan(value) or OPERATORS[one.sign](value, one.limit):
            held.append(f"{one.text} holds: it is {value:.6g}")
    return held


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
