"""Which training script a recipe is for."""

import json
from pathlib import Path

from lorasmith import upstream
from lorasmith.errors import LorasmithError
from lorasmith.recipe import load_recipe
from lorasmith.recipe_file import schema_named


def method_of(path: Path) -> str | None:
    """The script that a recipe is for, by its first line or, in a run's folder, by its run.json; None: not said.

    A file that cannot be read says nothing; `load_recipe` tells what is wrong with it.
    """
    try:
        named = schema_named(path)
        beside = path.with_name("run.json")
        if named is None and beside.is_file():
            record = json.loads(beside.read_text(encoding="utf-8"))
            named = record.get("method") if isinstance(record, dict) else None
    except (OSError, ValueError):
        return None
    return named if named in upstream.CONFIGS else None


def methods_taking(path: Path, overrides: list[str]) -> list[str]:
    """The training scripts that a recipe is right for."""
    found = []
    for method in upstream.CONFIGS:
        try:
            load_recipe(path, overrides, method)
        except LorasmithError:
            continue
        found.append(method)
    return found
