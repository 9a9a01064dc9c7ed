"""Sections of a recipe: strict models, the one-line refusals of wrong values, and values they share. No torch."""

import difflib
import math
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import nearest, place_of
from lorasmith.recipe_file import Key, Places, show


def _sources(value: Any) -> Any:
    wanted = "expected a path, a hub id, or a list of them, each a name or {path, weight}"
    for one in value if isinstance(value, list) and value else [value]:
        path, weight = (one.get("path"), one.get("weight", 1)) if isinstance(one, dict) else (one, 1)
        if not isinstance(path, str) or not path or (isinstance(one, dict) and set(one) - {"path", "weight"}):
            raise ValueError(wanted)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1000:
            raise ValueError(f"{wanted}, the weight above 0 and below 1000")
    return value


Name = Annotated[str, Field(min_length=1)]
Sources = Annotated[str | list[str | dict[str, Any]], BeforeValidator(_sources)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def weighted(sources: str | list[str | dict[str, Any]]) -> list[tuple[str, float]]:
    """Each source with its weight."""
    listed = sources if isinstance(sources, list) else [sources]
    return [(one, 1.0) if isinstance(one, str) else (one["path"], float(one.get("weight", 1))) for one in listed]


def validated(kind: type[S], values: dict[str, Any], places: Places) -> S:
    """The values as a recipe of a kind.

    Raises:
        RecipeError: At the first thing wrong, in the order of the file.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = sorted((_problem(detail, places, kind) for detail in error.errors()), key=lambda p: p[0])
        raise RecipeError(problems[0][1]) from None


def recipe_text(recipe: Section) -> str:
    """A recipe as YAML with every key spelled out, so that it reruns whatever the defaults become."""
    return yaml.safe_dump(recipe.model_dump(by_alias=True), sort_keys=False, allow_unicode=True)


def _line(place: str) -> float:
    """Sort key: file lines in order, the command line last."""
    number = place.rpartition(":")[2]
    return int(number) if number.isdigit() else math.inf


def _problem(detail: ErrorDetails, places: Places, root: type[Section]) -> tuple[float, str]:
    """One of pydantic's errors as (position, line of text)."""
    # pydantic names the member of a union that refused a value behind the key.
    loc = tuple(str(part) for part in detail["loc"] if not str(part).startswith("literal["))
    kind = detail["type"]
    if kind == "missing":
        place = place_of(places, loc[:-1])
        return _line(place), f"{place}: `{'.'.join(loc)}` is missing; expected {_wanted(loc, root)}"
    place = place_of(places, loc)
    if kind == "extra_forbidden":
        section = f"{loc[0]}: " if len(loc) > 1 else ""
        hint = nearest(loc[-1], _known_keys(loc[:-1], root))
        return _line(place), f"{place}: {section}unknown key `{loc[-1]}`. {hint}"
    found = show(detail["input"])
    return _line(place), f"{place}: {'.'.join(loc)} is {found}; {_expected(detail)}"


def _section_of(loc: Key, root: type[Section]) -> type[Section]:
    kind = root
    for name in loc:
        inner = kind.model_fields[name].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, Section)
        kind = inner
    return kind


def _known_keys(loc: Key, root: type[Section]) -> list[str]:
    return [field.alias or name for name, field in _section_of(loc, root).model_fields.items()]


def _wanted(loc: Key, root: type[Section]) -> str:
    """What a missing key should hold."""
    field = _section_of(loc[:-1], root).model_fields[loc[-1]]
    if field.description:
        return field.description[0].lower() + field.description[1:]
    inner = _section_of(loc, root).model_fields.items()
    return f"keys: {', '.join(name for name, field in inner if field.is_required())}."


def _expected(detail: ErrorDetails) -> str:
    """What a wrong value should have been."""
    kind, context = detail["type"], detail.get("ctx", {})
    plain = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "string_too_short": "text",
        "list_type": "a list",
        "dict_type": "keys and values",
        "model_type": "keys and values",
    }
    bounds = {"greater_than": "above {gt:g}", "greater_than_equal": "of at least {ge:g}"}
    bounds |= {"less_than": "below {lt:g}", "less_than_equal": "of at most {le:g}"}
    if kind in plain:
        return f"expected {plain[kind]}."
    if kind in bounds:
        return f"expected a number {bounds[kind].format(**context)}."
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        close = difflib.get_close_matches(str(detail["input"]), allowed, n=1)
        return f"expected one of {', '.join(allowed)}." + (f" Did you mean `{close[0]}`?" if close else "")
    return f"{context['error']}." if "error" in context else f"{detail['msg']}."
