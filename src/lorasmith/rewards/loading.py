"""Reward functions by name: from a recipe's `rewards:` to callables for trl's GRPOTrainer."""

import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lorasmith.console import say
from lorasmith.errors import LorasmithError, RecipeError
from lorasmith.recipe_checks import nearest

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
TAKEN = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Reward:
    """One entry of `rewards:`, ready for `reward_funcs` and `reward_weights`.

    Attributes:
        name: What trl logs it under.
        weight: What its rewards are multiplied by before they are summed.
        place: File and line of the function.
        columns: Columns of the rows that it cannot do without.
        takes_all: Whether it takes every column, as `**columns`.
        function: Called as trl does; ends the run in one line if the user's function fails.
        is_model: Whether it is a reward model, which is not tried before its weights are read.
    """

    name: str
    weight: float
    place: str
    columns: tuple[str, ...]
    takes_all: bool
    function: Callable[..., list[float | None]]
    is_model: bool = False


def load(names: Sequence[str | dict[str, Any]]) -> list[Reward]:
    """The rewards of a recipe; each file named is run, as any program of the user's.

    Args:
        names: `path/file.py:function`, or {function: path/file.py:function, weight: 0.5, parameter: value, ...}.

    Raises:
        RecipeError: If a file, function or parameter is not there, a file fails as it is imported, or a function cannot
            be called as trl does.
    """
    found: list[Reward] = []
    modules: dict[Path, ModuleType] = {}
    for name in names:
        entry = {"function": name} if isinstance(name, str) else dict(name)
        target = entry.pop("function", None)
        if not isinstance(target, str):
            raise RecipeError(f"rewards: {name!r} has no `function`. Write {{function: path/file.py:function}}.")
        weight = checked_weight(target, entry.pop("weight", 1.0))
        file, function = find(target, modules)
        alike = sum(reward.name.partition(":")[0] == function.__name__ for reward in found)
        label = f"{function.__name__}:{alike + 1}" if alike else function.__name__
        found.append(reward_of(target, file, function, entry, weight, label))
    return found


def checked_weight(target: str, weight: Any) -> float:
    """The weight of an entry.

    Raises:
        RecipeError: If it is no finite number.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise RecipeError(f"rewards: `{target}`: weight is {weight!r}; expected a number.")
    return float(weight)


def find(target: str, modules: dict[Path, ModuleType]) -> tuple[str, Callable[..., Any]]:
    """The file and the function that `path/file.py:function` names.

    Args:
        modules: The files imported so far; this one is added.

    Raises:
        RecipeError: If there is none.
    """
    file, _, name = target.rpartition(":")
    if not file.endswith(".py") or not name:
        raise RecipeError(f"rewards: `{target}` names no function. Write path/file.py:function.")
    path = Path(file)
    if not path.is_file():
        near = [str(other) for other in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        hint = nearest(file, near) if near else "Paths start at the folder that the command is given in."
        raise RecipeError(f"rewards: `{target}`: there is no file {file}. {hint}")
    if path.resolve() not in modules:
        modules[path.resolve()] = import_file(path)
    module = modules[path.resolve()]
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[:1] != "_"]
        own = [key for key in own if getattr(module, key).__module__ == module.__name__]
        raise RecipeError(f"rewards: {file} has no function `{name}`. {nearest(name, own) if own else 'It has none.'}")
    function = getattr(module, name)
    if not inspect.isfunction(function):
        raise RecipeError(
            f"rewards: `{target}` is of type {type(function).__name__}; expected a function written with `def`."
        )
    return file, function


def import_file(path: Path) -> ModuleType:
    """Run a file as a module of its own; it can import files beside it, if no installed module has their name.

    Raises:
        RecipeError: If it fails.
    """
    say(f"rewards: {path} is run, with all that you may do on this machine")
    name = f"lorasmith_reward_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent.resolve())
    sys.path.append(folder)  # last: a file named like a module of the standard library must not take its place
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = raised_at(error, str(path)) or str(path)
        if isinstance(error, SyntaxError):
            where = f"{error.filename}:{error.lineno}"
        raise RecipeError(f"{where}: importing it raised {told(error)}. Mend the file.") from error
    finally:
        sys.path.remove(folder)
    return module


def reward_of(
    target: str, file: str, function: Callable[..., Any], parameters: dict[str, Any], weight: float, label: str
) -> Reward:
    """The function with its parameters bound.

    Raises:
        RecipeError: If it cannot be called as trl does, or knows a parameter not.
    """
    place = f"{file}:{function.__code__.co_firstlineno}"
    named = inspect.signature(function).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in named.values())
    keys = [key for key, one in named.items() if one.kind in TAKEN]
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise RecipeError(f"{place}: {function.__name__} is async or yields; expected a `def` that returns a list.")
    if not {"completions", "completion_ids"} & set(keys):
        raise RecipeError(
            f"{place}: {function.__name__}{inspect.signature(function)} does not take the completions. "
            f"Write def {function.__name__}(completions, **columns)."
        )
    if any(one.kind is inspect.Parameter.POSITIONAL_ONLY for one in named.values()):
        raise RecipeError(f"{place}: {function.__name__} takes a parameter by position only. Remove the `/`.")
    for key in parameters:
        if key not in keys or key in GIVEN:
            raise RecipeError(
                f"rewards: `{target}` has no parameter `{key}`. {nearest(key, [k for k in keys if k not in GIVEN])}"
            )
    needed = [
        key for key in keys
        if named[key].default is inspect.Parameter.empty and key not in parameters and key not in GIVEN
    ]  # fmt: skip

    def guarded(**given: Any) -> list[float | None]:
        count = len(given["completions"])
        with failing_at(file, place, function.__name__):
            kept = {key: value for key, value in given.items() if takes_all or key in keys}
            result = function(**{**kept, **parameters})
        return numbers_of(result, count, place, function.__name__)

    guarded.__name__ = label  # trl logs a reward under its function's name
    return Reward(label, weight, place, tuple(needed), takes_all, guarded)


@contextmanager
def failing_at(file: str, place: str, name: str) -> Iterator[None]:
    """Turn what a user's function raises into one line with the line of the user's file that raised it.

    Raises:
        RecipeError: If it raises.
    """
    try:
        yield
    except LorasmithError:
        raise
    except (Exception, SystemExit) as error:
        where = raised_at(error, file) or place
        raise RecipeError(f"{where}: the reward {name} raised {told(error)}. A reward must not raise.") from error


def numbers_of(result: Any, count: int, place: str, name: str) -> list[float | None]:
    """A reward function's result, if it is a number or None for each completion.

    Raises:
        RecipeError: If it is anything else.
    """
    if not isinstance(result, (list, tuple)):
        raise RecipeError(f"{place}: the reward {name} returned {kind(result)}; expected a list of {count} numbers.")
    if len(result) != count:
        raise RecipeError(f"{place}: the reward {name} returned {len(result)} numbers for {count} completions.")
    for index, value in enumerate(result):
        if value is not None and not isinstance(value, numbers.Real):
            raise RecipeError(
                f"{place}: the reward {name} returned {kind(value)} for completion {index}; expected a number, or None "
                "where it does not apply."
            )
        if value is not None and not math.isfinite(value):
            raise RecipeError(f"{place}: the reward {name} returned {float(value)} for completion {index}.")
    return [None if value is None else float(value) for value in result]


def kind(value: Any) -> str:
    """A value's type, and the value where it is short."""
    shown = repr(value) if isinstance(value, (str, dict)) else ""
    return f"{type(value).__name__} {shown}" if 0 < len(shown) <= 40 else f"a value of type {type(value).__name__}"


def told(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    text = text if len(text) <= 300 else text[:300] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def raised_at(error: BaseException, file: str) -> str:
    """file:line of the innermost frame in the user's file, if the error came through it."""
    path, line, frame = Path(file).resolve(), 0, error.__traceback__
    while frame:
        if Path(frame.tb_frame.f_code.co_filename).resolve() == path:
            line = frame.tb_lineno
        frame = frame.tb_next
    return f"{file}:{line}" if line else ""
