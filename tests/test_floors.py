"""Imports only go down (docs: the floors of the design)."""

import ast
from pathlib import Path

import pytest

FLOORS = {
    "errors": 0,
    "failures": 0,
    "figures": 0,
    "html_page": 0,
    "console": 0,
    "leaks": 0,
    "limits": 0,
    "listening": 0,
    "network": 1,
    "started": 0,
    "storages": 1,
    "recipe_streaming": 1,
    "hostile": 1,
    "engine": 1,
    "engine_checks": 1,
    "offline": 1,
    "upstream": 1,
    "recipe_file": 1,
    "recipe_checks": 1,
    "recipe_method": 1,
    "recipe_sections": 1,
    "recipe_task": 1,
    "preparation": 1,
    "templates": 0,
    "user_cache": 0,
    "recipe": 1,
    "memory": 1,
    "hardware": 2,
    "quantized_cache": 2,
    "models": 3,
    "adapters": 3,
    "data": 3,
    "evaluation": 3,
    "export": 3,
    "checkup": 3,
    "reliability": 3,
    "speed": 3,
    "tasks": 3,
    "preference": 3,
    "rewards": 3,
    "preparing": 4,
    "reinforcement": 4,
    "runs": 4,
}
SCRIPTS = sorted(Path(__file__).parent.parent.glob("scripts/*.py"))
SOURCE = Path(__file__).parent.parent / "src/lorasmith"
MODULES = sorted(SOURCE.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "numpy", "matplotlib"}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports out from lorasmith"
            found |= {
                f"{node.module}.{alias.name}" if node.module == "lorasmith" else str(node.module)
                for alias in node.names
            }
    return found


def rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("lorasmith.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_imports_only_from_floors_below(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not rooms(path)
        return
    for other in rooms(path) - {room}:
        lower = FLOORS[other] < FLOORS[room]
        assert lower or (FLOORS[room] in (0, 1) and FLOORS[other] == FLOORS[room]), f"{room} imports {other}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_imports_no_other_script_and_nothing_heavy_at_its_top(path):
    names = {script.stem for script in SCRIPTS}
    assert not {name.split(".")[0] for name in imported(path)} & names
    top = ast.Module([n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    heads = {(n.names[0].name if isinstance(n, ast.Import) else str(n.module)).split(".")[0] for n in top.body}
    assert not heads & HEAVY


LIGHT = [path for path in MODULES if FLOORS.get(path.relative_to(SOURCE).parts[0].removesuffix(".py"), 9) <= 1]


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_the_lower_floors_import_nothing_heavy(path):
    assert not {name.split(".")[0] for name in imported(path)} & HEAVY - {"numpy"}


def test_no_script_shadows_a_module_of_the_standard_library():
    import sys

    assert not {path.stem for path in SCRIPTS} & set(sys.stdlib_module_names)
