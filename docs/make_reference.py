"""Write docs/reference.md: every key of the recipe and every option of the scripts, from the programs themselves.

python docs/make_reference.py > docs/reference.md
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from lorasmith.preparation import Preparation
from lorasmith.recipe import Recipe
from lorasmith.recipe_checks import OWNED

SCRIPTS = (
    "prepare", "sft", "dpo", "orpo", "cpo", "kto", "reward", "grpo", "text_classification",
    "token_classification", "question_answering", "seq2seq", "predict", "plan", "doctor", "launch", "eval", "chat",
    "merge", "quantize", "adapter",
)  # fmt: skip


def main() -> None:
    print("# Reference\n\nMade by `make reference`; a test keeps it current.\n\n## The recipe")
    print_keys(Recipe)
    print("\nUnder `trainer:` stands any field of the script's own config (sft.py: trl's `SFTConfig`; those of tasks:")
    print("transformers' `TrainingArguments`), but for these, which have another owner:\n")
    print("| key | instead |\n|---|---|")
    for name, instead in OWNED.items():
        print(f"| `{name}` | {instead} |")
    print("\n## The recipe of a preparation\n\nFor `scripts/prepare.py`; how it works: `prepare.md`.")
    print_keys(Preparation)
    for script in SCRIPTS:
        command = [sys.executable, f"scripts/{script}.py", "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "100"}).stdout
        print(f"\n## scripts/{script}.py\n\n```\n{shown.rstrip()}\n```")


def print_keys(recipe: Any) -> None:
    """Every key of a recipe, section by section, and behind them those that stand in none."""
    alone = []
    for name, field in recipe.model_fields.items():
        section = field.annotation
        if not hasattr(section, "model_fields"):
            alone.append((name, field))
            continue
        print(f"\n### {name}:\n\n{section.__doc__}\n\n| key | default | |\n|---|---|---|")
        for key, inner in section.model_fields.items():
            print(f"| `{inner.alias or key}` | {default(inner)} | {inner.description or limits(inner)} |")
    print("\n### Beside the sections\n\n| key | default | |\n|---|---|---|")
    for name, field in alone:
        print(f"| `{name}` | {default(field)} | {field.description or limits(field)} |")


def default(field: Any) -> str:
    """A key's default as YAML, or that it has none."""
    if field.is_required():
        return "required"
    value = field.default
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def limits(field: Any) -> str:
    """The bounds of a number, from its constraints."""
    signs = {"Ge": ("ge", "at least"), "Gt": ("gt", "above"), "Le": ("le", "at most"), "Lt": ("lt", "below")}
    found = [
        f"{word} {getattr(rule, key)}"
        for rule in field.metadata
        for key, word in [signs.get(type(rule).__name__, ("", ""))]
        if key
    ]
    return ", ".join(found)


if __name__ == "__main__":
    assert Path("scripts/sft.py").exists(), "run this from the repository's root"
    main()
