"""The resume contract: what must be the same for a run to be continued, and where to continue it."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lorasmith.errors import RunError
from lorasmith.recipe import Recipe
from lorasmith.reliability import checkpoints

# Keys that change how a run is stored, watched or stopped, and not what it learns.
FREE = {
    "output_dir", "data.train", "data.eval", "data.on_bad_row", "run.keep_checkpoints", "run.max_minutes",
    "run.save_minutes", "run.hang_minutes", "speed.weight_cache", "trainer.report_to", "trainer.run_name",
    "trainer.save_strategy", "trainer.save_steps", "trainer.save_total_limit", "trainer.project",
}  # fmt: skip
FREE_PREFIXES = ("proof.", "trainer.logging_", "trainer.log_", "trainer.include_", "trainer.dataloader_")
TRAINABLE = "trainable parameters"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a run goes on.

    Attributes:
        checkpoint: The newest whole one, or None to begin anew.
        notes: What was found on the way, a line each.
    """

    checkpoint: Path | None
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The last update done."""
        return checkpoints.step_of(self.checkpoint) if self.checkpoint else 0

    @property
    def is_done(self) -> bool:
        """Whether training was over at the checkpoint: by its last step, or stopped early on purpose."""
        if self.checkpoint is None:
            return False
        state = json.loads((self.checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
        early = bool(control.get("should_training_stop")) and not (self.checkpoint / checkpoints.INTERRUPTED).exists()
        return int(state["global_step"]) >= int(state["max_steps"]) or early


def contract(
    recipe: Recipe,
    rows: str,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    base: dict[str, Any],
    versions: dict[str, str],
    device: str,
) -> dict[str, Any]:
    """Everything that decides what a run learns, by field name.

    Args:
        recipe: Resolved.
        rows: Fingerprint of all ids and labels.
        template: Hash of the chat template.
    """
    fields = {
        key: value
        for key, value in _flat(recipe.model_dump(by_alias=True)).items()
        if key not in FREE and not key.startswith(FREE_PREFIXES)
    }
    fast = getattr(tokenizer, "backend_tokenizer", None)
    held = fast.to_str() if fast is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    vocabulary = hashlib.sha256(held.encode()).hexdigest()
    fields |= {"rows": rows, "tokenizer": vocabulary, "template": template, "base weights": base["fingerprint"]}
    fields |= {f"version of {name}": versions.get(name) for name in PACKAGES}
    return fields | {"device": device}


def trainable(model: torch.nn.Module) -> str:
    """How many parameters are trained, and a hash of their names and shapes."""
    found = [(name, tuple(weight.shape)) for name, weight in model.named_parameters() if weight.requires_grad]
    count = sum(math.prod(shape) for _, shape in found)
    return f"{count} {hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:12]}"


def check_trainable(found: Resume, now: str, allowed: list[str]) -> None:
    """Refuse to go on where other parameters would be trained than those that the checkpoint holds.

    Raises:
        RunError: Naming both.
    """
    if found.checkpoint is None or TRAINABLE in allowed:
        return
    then = json.loads((found.checkpoint / checkpoints.CONTRACT).read_text(encoding="utf-8")).get(TRAINABLE, now)
    if then != now:
        raise RunError(
            f"{found.checkpoint.parent} holds another unfinished run: {TRAINABLE} was {then}, is {now}. Go back to the "
            "libraries that it was begun with, or begin anew with --overwrite."
        )


def differences(then: dict[str, Any], now: dict[str, Any], allowed: list[str]) -> list[str]:
    """The fields in which two contracts differ, each with both values, but for those allowed to."""
    missing = object()
    lines = []
    for key in [one for one in dict.fromkeys([*then, *now]) if one != TRAINABLE]:  # known when there is a model
        before, after = then.get(key, missing), now.get(key, missing)
        if before != after and key not in allowed:
            texts = ["nothing" if one is missing else _short(one) for one in (before, after)]
            lines.append(f"{key} was {texts[0]}, is {texts[1]}")
    return lines


def find(output: Path, now: dict[str, Any], allowed: list[str], demanded: bool) -> Resume:
    """Where to go on with an unfinished run in its folder.

    Args:
        now: This run's contract.
        allowed: Fields that may differ.
        demanded: Whether the user asked to resume, so that beginning anew would be wrong.

    Raises:
        RunError: If another run is in the folder, or nothing that can be resumed although it was demanded.
    """
    then = _written(output)
    unknown = [field for field in allowed if field not in now and field not in (then or {})]
    if unknown:
        known = ", ".join(sorted(now))
        raise RunError(f"--allow-change {unknown[0]}: no such field. Fields: {known}")
    if then is None:
        if demanded:
            raise RunError(f"--resume: {output} holds no checkpoint. Start without --resume.")
        return Resume(None)
    lines = differences(then, now, allowed)
    if lines:
        raise RunError(
            f"{output} holds another unfinished run: {'; '.join(lines)}. Go back, choose another output_dir, allow it "
            "with --allow-change FIELD, or begin anew with --overwrite."
        )
    checkpoint, notes = checkpoints.newest_good(output)
    if checkpoint is None and demanded:
        raise RunError(f"--resume: no checkpoint in {output} is whole ({'; '.join(notes)}). Start without --resume.")
    return Resume(checkpoint, tuple(notes))


def records_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The records of a log, one a line, up to a step; a line that was cut off as it was written ends them."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] <= step:
            found.append(record)
    return found


def _written(output: Path) -> dict[str, Any] | None:
    """The contract in the newest checkpoint that has a readable one."""
    for folder in checkpoints.checkpoints(output):
        try:
            found = json.loads((folder / checkpoints.CONTRACT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
