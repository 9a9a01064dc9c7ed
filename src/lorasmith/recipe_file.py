"""Recipe text to plain values that remember their lines.

YAML by its 1.2 core schema: `1e-4` is a number, `no` and `2024-01-01` are text, duplicate keys are refused. PyYAML
follows 1.1, where each of these bites (`eval_strategy: no` becomes False), so its nodes are read here.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from lorasmith.errors import RecipeError

LONGEST = 1 << 20  # bytes of a recipe file
MOST_VALUES = 10_000

SCHEMA_LINE = "# yaml-language-server: $schema="  # by which editors know a recipe's keys, and we its script

Key = tuple[str, ...]
Places = dict[Key, str]

_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp")


def read_recipe(
    path: Path | None, overrides: list[str], given: dict[str, Any] | None = None
) -> tuple[dict[str, Any], Places]:
    """Values of a recipe file with `section.key=value` overrides laid over it.

    Args:
        given: Plain values of the command line, laid over the file's, or, with no path, all there are.

    Returns:
        The nested values, and for each key path the place to name in an error: `file:line` or `command line`.

    Raises:
        RecipeError: If the file cannot be read, is not YAML, repeats a key, or an override is not `key=value`.
    """
    values, places = _read_file(path) if path is not None else ({}, {})
    for key, value in (given or {}).items():
        values[key], places[(key,)] = value, "command line"
    for override in overrides:
        _apply(override, values, places)
    return values, places


def _read_file(path: Path) -> tuple[dict[str, Any], Places]:
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; expected a recipe file (.yaml).")
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Recipes to start from are in recipes/.") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text. Save the recipe as UTF-8.") from None
    if len(data) > LONGEST:
        raise RecipeError(f"{path}: more than {LONGEST >> 20} MiB; expected a recipe, a file of some lines.")
    places: Places = {}
    values = _read_yaml(text, str(path), (), places)
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"is {show(values)}"
        raise RecipeError(f"{path}:1: the recipe {found}; expected sections such as `model:` and `data:`.")
    return values, places


def schema_named(path: Path) -> str | None:
    """The schema in a recipe's first line, `dpo` of `# yaml-language-server: $schema=../dpo.schema.json`."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(LONGEST)
    named = re.fullmatch(rf"{re.escape(SCHEMA_LINE)}\S*?(\w+)\.schema\.json", first.strip())
    return named[1] if named else None


def rewrite(path: Path, changes: dict[str, str]) -> None:
    """Set `section.key` texts in a recipe file, in place, its comments and order kept.

    A recipe in a form that cannot be edited by lines (flow style, anchors) is written anew, without comments but for
    the one that names its schema.
    """
    wanted, _ = read_recipe(path, [f"{key}={value}" for key, value in changes.items()])
    text = before = path.read_text(encoding="utf-8-sig")
    try:
        for key, value in changes.items():
            text = _with_line(text, tuple(key.split(".")), value)
        same = _read_yaml(text, str(path), (), {}) == wanted
    except RecipeError:
        same = False
    if not same:
        first = [line + "\n" for line in before.splitlines()[:1] if line.startswith(SCHEMA_LINE)]
        text = "".join(first) + yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _with_line(text: str, keys: Key, value: str) -> str:
    """The text with one key's line changed or added."""
    places: Places = {}
    _read_yaml(text, "recipe", (), places)
    lines = text.splitlines()
    if keys in places:
        at = int(places[keys].rpartition(":")[2]) - 1
        found = re.fullmatch(r"(\s*[\w.]+\s*:\s*)([^#]*?)(\s*#.*)?", lines[at])
        if found:
            lines[at] = f"{found[1]}{value}{found[3] or ''}"
    elif len(keys) == 1:
        lines.append(f"{keys[0]}: {value}")
    elif keys[:-1] in places:
        inside = [place for path, place in places.items() if path[:-1] == keys[:-1] and path[:-1]]
        at = min((int(place.rpartition(":")[2]) - 1 for place in inside), default=len(lines))
        margin = re.match(r"\s*", lines[at])[0] if at < len(lines) else "  "  # type: ignore[index]
        lines.insert(at, f"{margin}{keys[-1]}: {value}")
    else:
        return _with_line(text, keys[:-1], f"{{{keys[-1]}: {value}}}")
    return "\n".join(lines) + "\n"


def show(value: Any) -> str:
    """A value as it is quoted in an error: in backticks, short, text in quotes only if it looks like something else."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = value if isinstance(_plain(value), str) and value else repr(value)
    else:
        text = str(value)
    return f"`{text[:57] + '...' if len(text) > 60 else text}`".replace("\n", " ")


def _read_yaml(text: str, source: str, at: Key, places: Places) -> Any:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _value(node, source, at, places, ())
    except RecursionError:
        raise RecipeError(f"{source}: nested too deep; expected sections with values.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{_place(source, mark)}: not valid YAML ({error.problem or error.context}).") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML ({str(error).splitlines()[0]}).") from None


def _place(source: str, mark: yaml.Mark | None) -> str:
    return source if mark is None or source == "command line" else f"{source}:{mark.line + 1}"


def _value(node: yaml.Node, source: str, at: Key, places: Places, inside: tuple[int, ...]) -> Any:
    place = _place(source, node.start_mark)
    places.setdefault(at, place)
    if len(places) > MOST_VALUES:  # aliases of aliases make billions of a few lines
        raise RecipeError(f"{source}: more than {MOST_VALUES:,} values; expected a recipe.")
    if id(node) in inside:
        raise RecipeError(f"{place}: an alias that contains itself. Write the values out.")
    inside = (*inside, id(node))
    if node.tag.rpartition(":")[2] not in _CORE_TAGS:
        if node.tag == "tag:yaml.org,2002:merge":
            return node.value
        raise RecipeError(f"{place}: tag `{node.tag}` is not allowed. Write a plain value.")
    if isinstance(node, yaml.ScalarNode):
        return _plain(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source, (*at, str(i)), places, inside) for i, item in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key_place = _place(source, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{key_place}: a key must be a word.")
        key = key_node.value
        if key == "<<":
            raise RecipeError(f"{key_place}: merge keys (`<<`) are not allowed. Write the keys out.")
        if key in mapping:
            first = places[(*at, key)].rpartition(":")[2]
            raise RecipeError(f"{key_place}: `{'.'.join((*at, key))}` is given twice (first on line {first}).")
        places[(*at, key)] = key_place
        mapping[key] = _value(value_node, source, (*at, key), places, inside)
    return mapping


def _plain(text: str) -> Any:
    """An unquoted scalar by YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _WHOLE.fullmatch(text) and len(text) <= 100:
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return math.nan if text[-3:].lower() == "nan" else -math.inf if text.startswith("-") else math.inf
    return text


def _apply(override: str, values: dict[str, Any], places: Places) -> None:
    name, equals, text = override.partition("=")
    keys = tuple(name.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"command line: `{override}` is not `section.key=value`, such as trainer.learning_rate=1e-4.")
    section = values
    for depth, key in enumerate(keys[:-1]):
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
            places[keys[: depth + 1]] = "command line"
        if not isinstance(inner, dict):
            raise RecipeError(f"command line: {name}: `{'.'.join(keys[: depth + 1])}` is a value, not a section.")
        section = inner
    for stale in [path for path in places if path[: len(keys)] == keys]:
        del places[stale]
    section[keys[-1]] = _read_yaml(text, "command line", keys, places)
    places[keys] = "command line"
