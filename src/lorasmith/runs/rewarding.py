"""The rewards of a run: functions of the user's and reward models, loaded, tried on the rows, and known by content."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.data.prepare_prompts import PromptTokens, prompts_as_dataset, restored
from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import nearest
from lorasmith.rewards import checking, loading
from lorasmith.rewards.loading import Reward
from lorasmith.runs.opening import gives_scores, open_scorer

BATCH = 16  # completions that a reward model scores at a time
MODEL = "model"
Entries = Sequence[str | dict[str, Any]]


def load_and_check(entries: Entries, prompts: list[PromptTokens]) -> list[Reward]:
    """The rewards of a recipe, each function tried on some rows, and what they gave said.

    Raises:
        RecipeError: If one cannot be loaded or fails.
    """
    functions = iter(loading.load([one for one in entries if not is_model(one)]))
    found = [model_reward(dict(one)) if is_model(one) else next(functions) for one in entries]  # type: ignore[arg-type]
    some = restored(list(prompts_as_dataset(prompts[: checking.ROWS])))
    for line in checking.check([one for one in found if not one.is_model], some):
        say(line)
    for one in found:
        if one.is_model:
            say(f"reward {one.name} (weight {one.weight:g}): the reward model {one.place}")
    return found


def is_model(entry: str | dict[str, Any]) -> bool:
    """Whether an entry of `rewards:` names a reward model."""
    return isinstance(entry, dict) and MODEL in entry


def model_reward(entry: dict[str, Any]) -> Reward:
    """A reward model as a reward; its weights are read when the first completions are scored.

    Raises:
        RecipeError: If there is no such model, or the entry says more than its weight.
    """
    path, weight = str(entry.pop(MODEL)), entry.pop("weight", 1.0)
    if entry:
        raise RecipeError(f"rewards: {{model: {path}}}: unknown key. {nearest(next(iter(entry)), ['weight'])}")
    weight = loading.checked_weight(path, weight)
    if not gives_scores(path):
        raise RecipeError(f"rewards: {path}: no reward model of ours is there. Train one with scripts/reward.py.")
    return Reward(Path(path).name, weight, path, (), False, scorer(path), is_model=True)


def scorer(path: str) -> Callable[..., list[float | None]]:
    """A function that gives completions the scores of a reward model, as trl calls it."""
    opened: list[Any] = []

    def score(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        from lorasmith.data.pairs import Judged
        from lorasmith.data.scored import tokens_to_score
        from lorasmith.runs.scoring import score_all

        if not opened:
            opened.append(open_scorer(path, None))
        model = opened[0]
        asked = zip(prompts, completions, strict=True)
        rows = [Judged(str(at), prompt, completion, True) for at, (prompt, completion) in enumerate(asked)]
        tokens = tokens_to_score(model.tokenizer, rows)
        found = score_all(model.model, tokens, int(model.tokenizer.pad_token_id), BATCH)
        return [one.scores["score"] for one in found]

    score.__name__ = Path(path).name
    return score


def fingerprints(entries: Entries) -> dict[str, str]:
    """A hash of each file that rewards come from, by name: with another reward, a run is another run."""
    files = {}
    for entry in entries:
        name = str(entry[MODEL]) if is_model(entry) else str(entry if isinstance(entry, str) else entry["function"])  # type: ignore[index]
        path = Path(name if is_model(entry) else name.rpartition(":")[0])
        parts = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        digest = hashlib.sha256(b"".join(hashlib.sha256(part.read_bytes()).digest() for part in parts)).hexdigest()
        files[f"reward {path.name}"] = digest[:16]
    return files
