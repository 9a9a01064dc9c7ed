"""From a recipe to the arguments of a trl config, with what the machine decides filled in and said."""

import importlib.util
import os
from typing import Any

from lorasmith import hardware, upstream
from lorasmith.console import say
from lorasmith.errors import ModelError, RecipeError
from lorasmith.hardware import Hardware
from lorasmith.recipe import Recipe

LARGEST_MICRO_BATCH = 8  # rows, until a memory plan chooses


def world_size() -> int:
    """Processes in this job, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def resolve(
    recipe: Recipe, machine: Hardware, base_facts: tuple[int | None, bool], earlier: dict[str, Any]
) -> tuple[Recipe, dict[str, str]]:
    """The recipe with every `auto` replaced by what was chosen, and the reason of each choice.

    Args:
        base_facts: Longest row the base model has positions for, if its config says, and whether it runs on sdpa.
        earlier: run.json of this very recipe in its output folder, whose measured choice is kept; or empty.

    Raises:
        RecipeError: If the effective batch does not divide, or max_length is beyond the model.
    """
    if recipe.model.dtype == "auto" and earlier.get("hardware", {}).get("name") == machine.name:
        dtype, why = earlier["recipe"]["model"]["dtype"], "as this run chose before"
    else:
        dtype, why = hardware.choose_dtype(recipe.model.dtype, machine)
    attention, why_attention = hardware.choose_attention(recipe.model.attention, base_facts[1])
    reasons = {"dtype": why, "attention": why_attention}
    trainer = dict(recipe.trainer)
    trainer["max_length"], reasons["max_length"] = _max_length(trainer, base_facts[0])
    if machine.device == "cpu" and not {"gradient_checkpointing", "activation_checkpointing"} & set(trainer):
        trainer["gradient_checkpointing"] = False
        reasons["gradient_checkpointing"] = "it saves memory, which a CPU rarely lacks, for a third of the speed"
    resolved = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": dtype, "attention": attention}),
            "run": recipe.run.model_copy(update={"micro_batch": _micro_batch(recipe)}),
            "trainer": trainer,
        }
    )
    say(f"arithmetic: {dtype} ({reasons['dtype']}); attention: {attention} ({reasons['attention']})")
    return resolved, reasons


def announce_batch(recipe: Recipe, rows: int) -> None:
    """Say how rows become updates."""
    micro, processes = int(recipe.run.micro_batch), world_size()
    accumulated = recipe.run.effective_batch // (micro * processes)
    parts = f"{micro} x {accumulated} accumulated" + (f" x {processes} processes" if processes > 1 else "")
    updates = -(-rows // recipe.run.effective_batch)
    say(f"batch: {recipe.run.effective_batch} rows an update = {parts}; {updates} updates an epoch")


def trainer_arguments(recipe: Recipe, machine: Hardware) -> dict[str, Any]:
    """Keyword arguments for the trl config, from a resolved recipe; what its `trainer:` says wins."""
    micro, trainer = int(recipe.run.micro_batch), recipe.trainer
    arguments: dict[str, Any] = {
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": recipe.run.effective_batch // (micro * world_size()),
        "bf16": recipe.model.dtype == "bfloat16",
        "fp16": recipe.model.dtype == "float16",
        "use_cpu": machine.device == "cpu",
        "dataloader_pin_memory": machine.device == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "prediction_loss_only": True,
    }
    if recipe.data.eval is not None or recipe.data.eval_fraction:
        # Not trainer.evaluate() before trainer.train(): that marks the model as prepared without wrapping it, and DDP
        # then never averages gradients (seen with transformers 5.23 and accelerate 1.15; tests/test_accelerate.py).
        arguments["eval_on_start"] = True
    if recipe.run.early_stopping:
        arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    if trainer.get("load_best_model_at_end", recipe.run.early_stopping):
        # Only a saved evaluation can be the best one, so saving follows evaluating.
        arguments["save_strategy"] = trainer.get("eval_strategy", "no")
        if "eval_steps" in trainer:
            arguments["save_steps"] = trainer["eval_steps"]
    if not trainer.get("packing"):
        # Rows arrive tokenized, labelled and cut to length; trl's preparation would only walk them again.
        arguments["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return arguments | trainer


def make_config(kind: Any, recipe: Recipe, machine: Hardware) -> Any:
    """The trl config of a resolved recipe.

    Raises:
        RecipeError: If trl refuses the combination.
    """
    trackers = recipe.trainer.get("report_to", "none")
    for name in [trackers] if isinstance(trackers, str) else trackers or []:
        if name not in ("none", "all") and importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"trainer.report_to is `{name}`, which is not installed. Install it with: pip install {name}"
            )
    try:
        return kind(**trainer_arguments(recipe, machine))
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error


def _max_length(trainer: dict[str, Any], positions: int | None) -> tuple[int | None, str]:
    if "max_length" not in trainer:
        default = int(upstream.trainer_fields("sft")["max_length"].default)
        if positions is not None and positions < default:
            return positions, f"the model has {positions} positions"
        return default, "trl's default"
    wanted = trainer["max_length"]
    if positions is not None and wanted is not None and wanted > positions:
        raise ModelError(f"trainer.max_length is `{wanted}`; the model has {positions} positions. Lower it.")
    return wanted, "as the recipe says"


def _micro_batch(recipe: Recipe) -> int:
    effective, processes, wanted = recipe.run.effective_batch, world_size(), recipe.run.micro_batch
    if effective % processes or (wanted != "auto" and effective % (wanted * processes)):
        raise RecipeError(
            f"run.effective_batch is `{effective}`; expected a multiple of {processes} processes x {wanted}."
        )
    if wanted != "auto":
        return wanted
    per_process = effective // processes
    return max(size for size in range(1, min(per_process, LARGEST_MICRO_BATCH) + 1) if per_process % size == 0)
