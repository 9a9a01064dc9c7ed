"""Checks of recipe keys that upstream's configs own: known, rightly typed, in range."""

import difflib
import math
from typing import Any

from lorasmith import upstream
from lorasmith.errors import RecipeError
from lorasmith.recipe_file import Key, Places, show
from lorasmith.upstream import Field

# trl keys that a section owns, or that would quietly change what is trained, and what to write in their place.
OWNED = {
    "output_dir": "Set the recipe's output_dir.",
    "seed": "Set the recipe's seed.",
    "per_device_train_batch_size": "Set run.micro_batch and run.effective_batch.",
    "gradient_accumulation_steps": "It follows from run.effective_batch and run.micro_batch.",
    "gradient_checkpointing": "Set run.gradient_checkpointing.",
    "activation_checkpointing": "Set run.gradient_checkpointing.",
    "activation_offloading": "Set run.gradient_checkpointing: offload.",
    "auto_find_batch_size": "Set run.micro_batch; the effective batch must not change.",
    "model_init_kwargs": "Use the keys of `model:`.",
    "trust_remote_code": "Set model.trust_remote_code.",
    "chat_template_path": "Set model.chat_template.",
    "eos_token": "The chat template's own stop token is used.",
    "pad_token": "The tokenizer's own is used.",
    "assistant_only_loss": "Set data.train_on.",
    "completion_only_loss": "Set data.train_on.",
    "dataset_text_field": "Name the column `text`.",
    "dataset_kwargs": "Rows are prepared by Lorasmith.",
    "padding_free": "Set speed.padding_free.",
    "dataset_num_proc": "Rows are prepared by Lorasmith.",
    "truncation_mode": "Set data.on_too_long.",
    "chat_template_kwargs": "Write what it sets into a template and name that in model.chat_template.",
    "reward_weights": "Give each of `rewards:` its weight.",
    "log_completions": "Samples of completions are written into the run's private/.",
    "log_completions_hub_repo": "Nothing is uploaded while training.",
    "push_to_hub": "Nothing is uploaded while training; upload the adapter's folder without private/ afterwards.",
    "hub_token": "Secrets do not belong in a recipe. Log in with: hf auth login.",
    "resume_from_checkpoint": "The same command goes on with an unfinished run; --resume demands it.",
    "remove_unused_columns": "Rows are prepared by Lorasmith.",
    "fsdp": "Name it in the accelerate config (accelerate_configs/).",
    "fsdp_config": "Name it in the accelerate config (accelerate_configs/).",
    "deepspeed": "Name it in the accelerate config (accelerate_configs/).",
    "parallelism_config": "Name it in the accelerate config (accelerate_configs/).",
    "ddp_backend": "Name it in the accelerate config (accelerate_configs/).",
    "disable_tqdm": "Progress is shown by Lorasmith.",
    "logging_nan_inf_filter": "A loss that is not finite stops the run.",
}

# Lowest and highest legal value of common trl keys; "(" excludes the bound.
RANGES: dict[str, tuple[str, float, float]] = {
    "learning_rate": ("(", 0, 1),
    "num_train_epochs": ("(", 0, 10_000),
    "warmup_steps": ("[", 0, math.inf),
    "weight_decay": ("[", 0, 1),
    "adam_beta1": ("[", 0, 1),
    "adam_beta2": ("[", 0, 1),
    "adam_epsilon": ("(", 0, 1),
    "max_grad_norm": ("[", 0, math.inf),
    "label_smoothing_factor": ("[", 0, 1),
    "max_length": ("[", 2, math.inf),
    "max_target_length": ("[", 2, math.inf),
    "generation_num_beams": ("[", 1, 256),
    "generation_max_length": ("[", 1, math.inf),
    "logging_steps": ("(", 0, math.inf),
    "eval_steps": ("(", 0, math.inf),
    "save_steps": ("(", 0, math.inf),
    "save_total_limit": ("[", 1, math.inf),
    "per_device_eval_batch_size": ("[", 1, math.inf),
    "dataloader_num_workers": ("[", 0, 256),
    "neftune_noise_alpha": ("[", 0, math.inf),
    "num_generations": ("[", 2, math.inf),
    "num_generations_eval": ("[", 1, math.inf),
    "max_completion_length": ("[", 1, math.inf),
    "temperature": ("(", 0, math.inf),
    "top_p": ("(", 0, 1),
    "num_iterations": ("[", 1, math.inf),
}


# trl's DPOTrainer (1.16) meets a name it does not know only in the first step.
DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


def check_losses(wanted: Any, places: Places) -> None:
    """Check `trainer.loss_type` of dpo.py, one name or several, against the losses that trl has.

    Raises:
        RecipeError: At the first that it has not.
    """
    for name in wanted if isinstance(wanted, list) else [wanted]:
        if name not in DPO_LOSSES:
            place = place_of(places, ("trainer", "loss_type"))
            close = difflib.get_close_matches(str(name), DPO_LOSSES, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise RecipeError(
                f"{place}: trainer.loss_type is {show(name)}; expected some of {', '.join(DPO_LOSSES)}.{hint}"
            )


def check_order(trainer: dict[str, Any], run: Any, places: Places) -> None:
    """Check what kto.py needs of its batches, since trl makes its estimate of a whole micro-batch in the rows' order.

    Raises:
        RecipeError: If micro-batches have one row, or rows are drawn in another order.
    """
    if trainer.get("loss_type", "kto") != "kto":
        return
    for key in ("effective_batch", "micro_batch"):
        if getattr(run, key) == 1:
            place = place_of(places, ("run", key))
            raise RecipeError(f"{place}: run.{key} is `1`; kto compares the rows of a micro-batch. Set 2 or more.")
    if trainer.get("train_sampling_strategy", "sequential") != "sequential":
        place = place_of(places, ("trainer", "train_sampling_strategy"))
        raise RecipeError(
            f"{place}: trainer.train_sampling_strategy is {show(trainer['train_sampling_strategy'])}; kto needs "
            "sequential. Shuffle the rows before."
        )


# trl's GRPOTrainer (1.16) meets these only when it has generated.
GRPO_CHOICES = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


def check_groups(method: str, recipe: Any, places: Places) -> None:
    """Check what only grpo.py takes, and that its updates are whole groups of completions.

    Raises:
        RecipeError: At the first thing wrong.
    """
    if method != "grpo":
        given: dict[Key, Any] = {("rewards",): recipe.rewards, ("data", "system"): recipe.data.system}
        for key, value in (given | {("data", "max_prompt_length"): recipe.data.max_prompt_length}).items():
            if value:
                raise RecipeError(f"{place_of(places, key)}: {'.'.join(key)} is for grpo.py, not {method}.py. Drop it.")
        return
    if not recipe.rewards:
        raise RecipeError(
            f"{place_of(places, ('rewards',))}: `rewards` is missing; expected a list such as [rewards/match.py:exact]."
        )
    trainer, data = recipe.trainer, recipe.data
    for owned, allowed in (("format", "auto"), ("train_on", "assistant")):
        if getattr(data, owned) != allowed:
            place = place_of(places, ("data", owned))
            raise RecipeError(f"{place}: data.{owned} is for sft.py; grpo.py writes the answers itself. Drop it.")
    if data.on_too_long == "truncate":
        place = place_of(places, ("data", "on_too_long"))
        raise RecipeError(f"{place}: data.on_too_long is `truncate`; a prompt is not cut. Use error or drop.")
    for name, choices in GRPO_CHOICES.items():
        if name in trainer and trainer[name] not in choices:
            close = difflib.get_close_matches(str(trainer[name]), [str(one) for one in choices], n=1)
            raise RecipeError(
                f"{place_of(places, ('trainer', name))}: trainer.{name} is {show(trainer[name])}; expected one of "
                f"{', '.join(map(str, choices))}." + (f" Did you mean `{close[0]}`?" if close else "")
            )
    size, together = recipe.run.effective_batch, group_size(trainer)
    if size % together:
        raise RecipeError(
            f"{place_of(places, ('run', 'effective_batch'))}: run.effective_batch is `{size}` completions; expected a "
            f"multiple of trainer.num_generations ({together}), whose completions are compared with each other."
        )


def group_size(trainer: dict[str, Any]) -> int:
    """Completions of one prompt in grpo.py."""
    return int(trainer.get("num_generations") or upstream.trainer_fields("grpo")["num_generations"].default)


def check_offload(method: str, run: Any, places: Places) -> None:
    """Check that a method whose recipe offloads activations can.

    Raises:
        RecipeError: If its trl config cannot.
    """
    if run.gradient_checkpointing == "offload" and not upstream.offloads(method):
        place = place_of(places, ("run", "gradient_checkpointing"))
        raise RecipeError(
            f"{place}: run.gradient_checkpointing is `offload`, which {method}.py cannot. Use auto, true or false."
        )


def place_of(places: Places, key: Key) -> str:
    """Where a key stands: its own place, or that of the nearest section around it."""
    while key not in places and key:
        key = key[:-1]
    return places.get(key, "command line")


def nearest(word: str, known: list[str], method: str = "sft") -> str:
    """The end of an unknown-key message: the nearest known one, or all if there are few, or where all stand."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known here: {', '.join(known)}." if len(known) <= 12 else f"All are in recipes/{method}.schema.json."


def check_keys(
    section: str,
    values: dict[str, Any],
    fields: dict[str, Field],
    owned: dict[str, str],
    places: Places,
    method: str = "sft",
) -> None:
    """Check a section of upstream keys against the installed config's own fields.

    Args:
        section: Dotted name of the section, such as "trainer".
        owned: Keys that are set elsewhere in the recipe, with what to write instead.
        method: The training script, whose schema is named where no known key is near.

    Raises:
        RecipeError: At the first key that is unknown, owned, mistyped or out of range.
    """
    known = sorted(set(fields) - set(owned))
    for name, value in values.items():
        place = place_of(places, (*section.split("."), name))
        if name in owned:
            raise RecipeError(f"{place}: {section}.{name} is not set here. {owned[name]}")
        if name not in fields:
            raise RecipeError(f"{place}: {section}: unknown key `{name}`. {nearest(name, known, method)}")
        _check_value(f"{section}.{name}", value, fields[name], place)


def _check_value(name: str, value: Any, field: Field, place: str) -> None:
    """Check one value against an upstream field: its type, its choices, and its range where one is known."""
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        "int": (int, "a whole number"),
        "float": ((int, float), "a number"),
        "bool": (bool, "true or false"),
        "str": (str, "text"),
        "list": (list, "a list"),
        "dict": (dict, "keys and values"),
        "None": (type(None), "null"),
    }
    checkable = [kinds[kind] for kind in field.types if kind in kinds]
    fits = any(isinstance(value, kind) and (kind is bool) == isinstance(value, bool) for kind, _ in checkable)
    if field.choices and not (value is None and fits):
        if value not in field.choices:
            close = difflib.get_close_matches(str(value), field.choices, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            allowed = (
                f"one of {', '.join(field.choices)}" if len(field.choices) <= 12 else "a name that transformers knows"
            )
            raise RecipeError(f"{place}: {name} is {show(value)}; expected {allowed}.{hint}")
    elif not fits and len(checkable) == len(field.types):
        wanted = " or ".join(dict.fromkeys(word for kind, word in checkable if kind is not type(None)))
        raise RecipeError(f"{place}: {name} is {show(value)}; expected {wanted}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{place}: {name} is {show(value)}; expected a finite number.")
    short = name.rpartition(".")[2]
    if short in RANGES and isinstance(value, (int, float)):
        edge, low, high = RANGES[short]
        if value < low or value > high or (edge == "(" and value == low):
            bound = f"above {low:g}" if edge == "(" else f"of at least {low:g}"
            upper = "" if high == math.inf else f" and at most {high:g}"
            raise RecipeError(f"{place}: {name} is {show(value)}; expected a number {bound}{upper}.")
