"""From a recipe to the arguments of a trl config, with what the machine decides filled in and said."""

import importlib.util
from typing import Any

from lorasmith import hardware, upstream
from lorasmith.console import say
from lorasmith.engine import FSDP2, Engine, this_engine
from lorasmith.engine_checks import check_on_cpus
from lorasmith.errors import ModelError, RecipeError
from lorasmith.hardware import Hardware
from lorasmith.memory.lengths import with_length
from lorasmith.models import BaseFacts
from lorasmith.recipe import Recipe
from lorasmith.recipe_checks import group_size


def world_size() -> int:
    """Processes in this job with rows of their own, as the launcher says."""
    return this_engine().replicas


def resolve(
    recipe: Recipe, machine: Hardware, base: BaseFacts, earlier: dict[str, Any], method: str = "sft"
) -> tuple[Recipe, dict[str, str]]:
    """The recipe with dtype, attention and max_length chosen, and the reason of each choice.

    Args:
        earlier: run.json of this very recipe in its output folder, whose measured choice is kept; or empty.

    Raises:
        RecipeError: If the accelerate config does not suit the machine or the model.
        ModelError: If max_length is beyond the model.
    """
    _check_devices(this_engine(), machine)
    _check_blocks(this_engine(), base)
    if recipe.model.dtype == "auto" and earlier.get("hardware", {}).get("name") == machine.name:
        dtype, why = earlier["recipe"]["model"]["dtype"], "as this run chose before"
    else:
        dtype, why = hardware.choose_dtype(recipe.model.dtype, machine)
    attention, why_attention = hardware.choose_attention(recipe.model.attention, base.runs_on_sdpa)
    recipe, why_length = with_length(recipe, base.positions, method)
    if method == "seq2seq":
        recipe = _with_target_length(recipe, base.positions)
    model = recipe.model.model_copy(update={"dtype": dtype, "attention": attention})
    say(f"arithmetic: {dtype} ({why}); attention: {attention} ({why_attention})")
    reasons = {"dtype": why, "attention": why_attention, "max_length": why_length}
    return recipe.model_copy(update={"model": model}), reasons


def _with_target_length(recipe: Recipe, positions: int | None) -> Recipe:
    """The recipe with the lengths of targets settled: what may be learnt, and what may be written.

    Raises:
        ModelError: If either is beyond the model.
    """
    trainer, fields = dict(recipe.trainer), upstream.trainer_fields("seq2seq")
    default = int(fields["max_target_length"].default)
    trainer.setdefault("max_target_length", min(default, positions or default))
    if trainer.get("generation_max_length") is None:
        trainer["generation_max_length"] = trainer["max_target_length"] or positions or default
    trainer.setdefault("generation_num_beams", fields["generation_num_beams"].default)
    for name in ("max_target_length", "generation_max_length"):
        if positions is not None and (trainer[name] or 0) > positions:
            raise ModelError(f"trainer.{name} is `{trainer[name]}`; the model has {positions} positions. Lower it.")
    return recipe.model_copy(update={"trainer": trainer})


def announce_batch(recipe: Recipe, rows: int) -> None:
    """Say how rows become updates; those of a stream are as many as its run takes."""
    micro, processes = int(recipe.run.micro_batch), world_size()
    accumulated = recipe.run.effective_batch // (micro * processes)
    parts = f"{micro} x {accumulated} accumulated" + (f" x {processes} processes" if processes > 1 else "")
    updates = f"{-(-rows // recipe.run.effective_batch)} updates an epoch"
    if recipe.data.streaming:
        updates = f"{recipe.trainer['max_steps']} updates"
    say(f"batch: {recipe.run.effective_batch} rows an update = {parts}; {updates}")


def announce_groups(recipe: Recipe, prompts: int) -> None:
    """Say how prompts become completions and updates.

    Raises:
        RecipeError: If there are too few prompts for one generation.
    """
    micro, processes, group = int(recipe.run.micro_batch), world_size(), group_size(recipe.trainer)
    accumulated = recipe.run.effective_batch // (micro * processes)
    made = int(recipe.trainer.get("generation_batch_size") or 0)
    made = made or micro * processes * int(recipe.trainer.get("steps_per_generation") or accumulated)
    at_once = made // group
    if prompts < at_once:
        raise RecipeError(
            f"run.effective_batch takes {at_once} prompts of {group} completions at a time, and there are {prompts} "
            "prompts. Lower run.effective_batch, or give more rows."
        )
    reused = made * int(recipe.trainer.get("num_iterations", 1)) / recipe.run.effective_batch
    updates = int(prompts // at_once * reused)
    parts = f"{micro} x {accumulated} accumulated" + (f" x {processes} processes" if processes > 1 else "")
    say(
        f"batch: {recipe.run.effective_batch} completions an update = {parts}; {made} are made at a time, "
        f"{group} for each prompt; {updates} updates an epoch"
    )


def trainer_arguments(recipe: Recipe, machine: Hardware, method: str = "sft") -> dict[str, Any]:
    """Keyword arguments for the trl config, from a resolved recipe; what its `trainer:` says wins."""
    micro, trainer = int(recipe.run.micro_batch), recipe.trainer
    arguments: dict[str, Any] = {
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "gradient_checkpointing": bool(recipe.run.gradient_checkpointing),
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
    }
    if upstream.offloads(method):
        arguments["activation_offloading"] = recipe.run.gradient_checkpointing == "offload"
    if recipe.data.eval is not None or recipe.data.eval_fraction:
        # Not trainer.evaluate() before trainer.train(): that marks the model as prepared without wrapping it, and DDP
        # then never averages gradients (seen with transformers 5.23 and accelerate 1.15; tests/test_accelerate.py).
        arguments["eval_on_start"] = True
    if method == "grpo":
        # Dropout would make other probabilities of what is learnt from than it was drawn with.
        arguments |= {"disable_dropout": not recipe.adapter.dropout, "num_generations_eval": 1}
        arguments["per_device_eval_batch_size"] = recipe.run.effective_batch // world_size()
    if recipe.run.early_stopping:
        metric = "eval_reward" if method == "grpo" else "eval_loss"  # a policy's loss says nothing of how good it is
        arguments |= {"load_best_model_at_end": True, "metric_for_best_model": metric}
    if recipe.speed.liger and machine.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        kernels = {"rope": True, "rms_norm": True, "swiglu": not recipe.speed.fused_lora}
        parts = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # speed.chunked_loss needs no logits
        arguments |= {"use_liger_kernel": True, "liger_kernel_config": kernels | parts}
    # Checkpoints are rotated behind their commit (reliability.checkpoints), where the last good one is known.
    owned: dict[str, Any] = {"save_total_limit": None}
    if trainer.get("load_best_model_at_end", recipe.run.early_stopping):
        # Only a saved evaluation can be the best one, so every evaluation is saved; trl refuses what does not divide.
        arguments["save_strategy"] = trainer.get("eval_strategy", "no")
        every = trainer.get("eval_steps")
        if every and trainer.get("save_steps", every) % every == 0:
            owned["save_steps"] = every
    # Rows arrive tokenized, labelled, cut to length and packed; trl's preparation would only walk them again.
    if method == "sft":
        owned |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "eval_packing": False}
    if method in upstream.TASKS:
        arguments |= {"label_names": ["labels"], "include_num_input_tokens_seen": "non_padding"}
        owned["remove_unused_columns"] = False
    known = upstream.trainer_fields(method)
    return {name: value for name, value in (arguments | trainer | owned).items() if name in known}


def make_config(kind: Any, recipe: Recipe, machine: Hardware, method: str = "sft") -> Any:
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
    if recipe.trainer.get("use_vllm") and importlib.util.find_spec("vllm") is None:
        raise RecipeError(
            "trainer.use_vllm is `true`, and vllm is not installed. Install it with: pip install vllm; or leave the "
            "key out: transformers generates then."
        )
    try:
        return kind(**trainer_arguments(recipe, machine, method))
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"trainer: {' '.join(str(error).split())}") from error


def _check_devices(engine: Engine, machine: Hardware) -> None:
    if machine.device == "cpu":
        check_on_cpus(engine)
    here = int(engine.setting("processes of this machine", 1))
    if machine.device == "cuda" and here > machine.count:
        raise RecipeError(
            f"accelerate config: {here} processes on this machine, which has {machine.count} GPUs. Write "
            f"num_processes: {machine.count * engine.machines}."
        )


def _check_blocks(engine: Engine, base: BaseFacts) -> None:
    """A class that the config names as the unit to shard must be the model's own block."""
    named = engine.setting("fsdp_transformer_layer_cls_to_wrap")
    blocks = base.blocks
    if engine.kind == FSDP2 and not blocks:
        raise RecipeError("accelerate config: FSDP2; transformers names no blocks of this architecture to shard.")
    if named and not set(str(named).split(",")) <= set(blocks):
        raise RecipeError(
            f"accelerate config: fsdp_transformer_layer_cls_to_wrap is `{named}`; the model's block is "
            f"{', '.join(blocks)}. Take the line out: it is found by itself."
        )
