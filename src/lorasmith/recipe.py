"""The recipe: every parameter of one run, checked strictly before anything slow. Imports no torch."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lorasmith import limits, upstream
from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import OWNED, check_groups, check_keys, check_losses, check_offload, check_order, place_of
from lorasmith.recipe_file import Places, read_recipe, show
from lorasmith.recipe_sections import Name, Section, Sources, validated, weighted
from lorasmith.recipe_streaming import check_streaming
from lorasmith.recipe_task import Task, check_task
from lorasmith.templates import TEMPLATE_TOKENS

LORA_METHODS = ("lora", "rslora", "dora", "pissa", "olora", "loftq", "eva")


def _whole_or_auto(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("expected a whole number above 0, or auto")
    return value


def _text_or_texts(value: Any) -> Any:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("expected a name or a list of names")
    return value


Auto = Annotated[int | Literal["auto"], BeforeValidator(_whole_or_auto)]


def _rewards(value: Any) -> Any:
    for one in value if isinstance(value, list) else [None]:
        named = [one.get(key) for key in ("function", "model")] if isinstance(one, dict) else [one, None]
        if sum(isinstance(name, str) and bool(name) for name in named) != 1:
            raise ValueError(
                "expected a list, each path/file.py:function, or {function: ...} or {model: ...} with more"
            )
    return value


class Model(Section):
    """The base model and how it is loaded."""

    name: Name = Field(description="A hub id or local folder.")
    revision: Name = Field("main", description="Branch, tag or commit on the hub.")
    quantization: Literal["none", "int8", "nf4", "fp4"] = Field("none", description="Bits of the frozen weights.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Arithmetic; auto: the fastest this machine does well."
    )
    attention: Name = Field("auto", description="Attention kernel, by transformers' name; auto: sdpa.")
    chat_template: Name | None = Field(
        None, description="chatml, or a .jinja file; by default the tokenizer's own template."
    )
    add_tokens: list[Name] = Field([], description="New tokens; exactly their rows are trained.")
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")


class Adapter(Section):
    """What is trained."""

    method: Name = Field("lora", description="lora, rslora, dora, pissa, olora, loftq, eva, or a peft method.")
    rank: int = Field(16, ge=1, le=4096)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Annotated[str | list[str], BeforeValidator(_text_or_texts)] = Field(
        "all-linear", description="all-linear, a list of module names, or one regular expression."
    )
    loraplus_lr_ratio: float | None = Field(None, ge=1, description="LoRA+: learning rate of B over that of A.")
    options: dict[str, Any] = Field({}, description="Other fields of the method's peft config, by their own names.")
    from_: Name | None = Field(None, alias="from", description="Continue the adapter in this folder.")


class Data(Section):
    """The rows."""

    train: Sources = Field(
        description="A file (jsonl, json, csv, tsv, parquet; .gz, .zst), folder, hub id, or address of a storage "
        "(s3://, gs://, https://, ...; * matches), or a list of them, each a name or {path, weight}."
    )
    eval: Name | None = Field(None, description="Rows to evaluate on: file, folder or hub id.")
    eval_fraction: float = Field(0.0, ge=0, le=0.5, description="Share of the training rows held out instead.")
    subset: Name | None = Field(None, description="Configuration of a hub data set.")
    split: Name = Field("train", description="Split of a hub data set.")
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "prompt+completion",
        "source+target",
        "instruction+output",
        "question+answer",
        "marked-text",
        "text",
    ] = Field("auto", description="The rows' shape; auto: recognised over all rows.")
    columns: dict[str, str] = Field({}, description="Our column names to the file's, such as {question: problem}.")
    on_bad_row: Literal["error", "drop"] = Field(
        "error", description="A broken row ends the run, or is left out and listed."
    )
    train_on: Literal["assistant", "all"] = Field("assistant", description="Whose tokens are trained.")
    on_too_long: Literal["error", "drop", "truncate"] = Field(
        "error", description="Rows over max_length: an error above 1 % of rows, drop them, or cut the prompt's start."
    )
    system: Name | None = Field(None, description="grpo: a system turn for prompts that have none.")
    streaming: bool = Field(
        False, description="sft: read jsonl files as training needs their rows, for more than memory or disk holds."
    )
    shuffle_buffer: int = Field(
        10_000, ge=1, description="Rows of a stream that are read ahead and shuffled among themselves; 1: in order."
    )
    max_prompt_length: int | None = Field(
        None, ge=1, description="grpo: tokens of the longest prompt; by default what completions leave of the model's."
    )

    @property
    def sources(self) -> list[tuple[str, float]]:
        """Each training source with its weight."""
        return weighted(self.train)


class Run(Section):
    """How it runs on this machine."""

    effective_batch: int = Field(16, ge=1, description="Rows per update over all devices; in grpo.py completions.")
    micro_batch: Auto = Field(
        "auto", description="Rows per forward pass on one device; auto: the fastest that the plan says fits."
    )
    gradient_checkpointing: Literal["auto", "offload", 2, 3, 4] | bool = Field(
        "auto",
        description="Recompute activations for memory: of all blocks, or of one in 2, 3 or 4; offload: keep even the "
        "rest in the computer's memory; auto: as little as fits.",
    )
    max_minutes: float | None = Field(None, gt=0, description="Stop then, with a checkpoint that the run goes on from.")
    save_minutes: float | None = Field(10, gt=0, description="Write a checkpoint when the last one is this old.")
    hang_minutes: float = Field(30, gt=0, description="End a process that has not moved for so long.")
    keep_checkpoints: bool = Field(False, description="Keep checkpoint-N folders of a finished run.")
    early_stopping: int | None = Field(None, ge=1, description="Stop after this many evaluations without progress.")


class Speed(Section):
    """What makes a step fast; none of it changes what is learned, but for rounding."""

    padding_free: bool = Field(
        True, description="Rows of a micro-batch lie one behind the other, each seeing itself alone; false: padded."
    )
    shared_prompts: bool = Field(
        True, description="What rows of a micro-batch begin with in common is computed once (with padding_free)."
    )
    chunked_loss: bool = Field(
        True, description="Loss of trained tokens alone, its gradient computed with it; false: trl's."
    )
    frozen_cache: bool = Field(
        True,
        description="Where lower blocks carry no adapter and rows come again, keep what those blocks give for them.",
    )
    fused_lora: bool = Field(
        True, description="Linear layers, gated MLPs and norms as one step each; false: peft's and transformers'."
    )
    liger: bool = Field(True, description="On a GPU with liger-kernel installed: its norms and rotary embeddings.")
    weight_cache: bool = Field(True, description="Keep quantized weights in the user's cache for the next start.")


def _known_kinds(value: Any) -> Any:
    names = set(limits.Limits.__dataclass_fields__)
    for kind, bounds in value.items() if isinstance(value, dict) else ():
        if kind not in limits.LIMITS:
            raise ValueError(f"expected kinds of export: {', '.join(limits.LIMITS)}")
        if not isinstance(bounds, dict) or set(bounds) - names:
            raise ValueError(f"expected for each kind of export some of {', '.join(sorted(names))}")
    return value


class Proof(Section):
    """How far an export may drift from the live adapter."""

    rows: int = Field(limits.ROWS, ge=1, le=1024, description="Evaluation rows kept in private/ to prove exports with.")
    limits: Annotated[dict[str, dict[str, float]], BeforeValidator(_known_kinds)] = Field(
        {}, description="By kind of export (merged, bnb-nf4, gguf:q8_0, ...): least top1, most kl, most loss."
    )


class Recipe(Section):
    """Every parameter of one run."""

    model: Model
    adapter: Adapter = Adapter()
    data: Data
    task: Task = Task()
    rewards: Annotated[list[str | dict[str, Any]], BeforeValidator(_rewards)] = Field(
        [],
        description="grpo: what completions are rewarded by, each path/file.py:function, {function, weight, "
        "parameters...}, or {model: folder of a reward model, weight}.",
    )
    run: Run = Run()
    speed: Speed = Speed()
    proof: Proof = Proof()
    output_dir: Name = Field(description="A folder such as adapters/my-run.")
    seed: int = Field(42, ge=0, lt=2**32)
    trainer: dict[str, Any] = Field(
        {}, description="Fields of the script's config, trl's or transformers', by their own names."
    )


def load_recipe(path: Path, overrides: list[str], method: str = "sft") -> Recipe:
    """Read and check one recipe.

    Args:
        overrides: `section.key=value` texts from the command line, later ones win.
        method: The training script, which decides the trl config that `trainer:` is checked against.

    Raises:
        RecipeError: At the first thing wrong, in the order of the file.
    """
    values, places = read_recipe(path, overrides)
    recipe = validated(Recipe, values, places)
    check_keys("trainer", recipe.trainer, upstream.trainer_fields(method), OWNED, places, method)
    check_offload(method, recipe.run, places)
    if method == "dpo" and "loss_type" in recipe.trainer:
        check_losses(recipe.trainer["loss_type"], places)
    if method == "kto":
        check_order(recipe.trainer, recipe.run, places)
    check_groups(method, recipe, places)
    check_task(method, recipe, places)
    _check_adapter(recipe.adapter, places)
    _check_together(recipe, places)
    check_streaming(method, recipe, places)
    return recipe


def json_schema(method: str = "sft") -> dict[str, Any]:
    """JSON schema of a recipe, for editors, with the trl keys of one script."""
    schema = Recipe.model_json_schema(by_alias=True)
    kinds = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "None": "null"}
    kinds |= {"list": "array", "dict": "object"}
    properties = {}
    for name, field in sorted(upstream.trainer_fields(method).items()):
        if name not in OWNED:
            types = sorted({kinds[kind] for kind in field.types if kind in kinds})
            properties[name] = {"type": types} if types else {}
            if field.choices:
                properties[name] = {"enum": list(field.choices)}
    schema["properties"]["trainer"] |= {"properties": properties, "additionalProperties": False}
    return schema


def _check_adapter(adapter: Adapter, places: Places) -> None:
    if adapter.method not in LORA_METHODS and adapter.method not in (methods := upstream.peft_methods()):
        known = [*LORA_METHODS, *sorted(set(methods) - {"lora"})]
        place = place_of(places, ("adapter", "method"))
        close = difflib.get_close_matches(adapter.method, known, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(known)}."
        raise RecipeError(f"{place}: adapter.method is {show(adapter.method)}; no such method. {hint}")
    is_lora = adapter.method in LORA_METHODS
    owned = {"target_modules": "Set adapter.target_modules."}
    if is_lora:
        owned |= {"r": "Set adapter.rank.", "lora_alpha": "Set adapter.alpha.", "lora_dropout": "Set adapter.dropout."}
        owned |= dict.fromkeys(("use_dora", "use_rslora", "init_lora_weights"), "Set adapter.method.")
    fields = upstream.peft_fields("lora" if is_lora else adapter.method)
    check_keys("adapter.options", adapter.options, fields, owned, places)
    if adapter.loraplus_lr_ratio is not None and not is_lora:
        place = place_of(places, ("adapter", "loraplus_lr_ratio"))
        raise RecipeError(f"{place}: adapter.loraplus_lr_ratio needs a LoRA method, not {adapter.method}.")


def _check_together(recipe: Recipe, places: Places) -> None:
    """What no single key shows."""
    model, data, run, trainer = recipe.model, recipe.data, recipe.run, recipe.trainer
    template = model.chat_template
    if template is not None and template not in TEMPLATE_TOKENS and not template.endswith((".jinja", ".j2")):
        place = place_of(places, ("model", "chat_template"))
        raise RecipeError(f"{place}: model.chat_template is {show(template)}; expected chatml or a .jinja file.")
    if model.trust_remote_code and not Path(model.name).is_dir() and not re.fullmatch(r"[0-9a-f]{40}", model.revision):
        place = place_of(places, ("model", "trust_remote_code"))
        raise RecipeError(
            f"{place}: model.trust_remote_code runs code from the hub, and model.revision is {show(model.revision)}, "
            "which can change. Set model.revision to the commit (40 hex digits) that you have read."
        )
    if "/" in model.attention and not model.trust_remote_code:
        place = place_of(places, ("model", "attention"))
        raise RecipeError(
            f"{place}: model.attention is {show(model.attention)}, code from the hub. If you trust it, set "
            "model.trust_remote_code: true."
        )
    if data.eval is not None and data.eval_fraction > 0:
        place = place_of(places, ("data", "eval_fraction"))
        raise RecipeError(f"{place}: data.eval and data.eval_fraction are both given; keep one.")
    if isinstance(run.micro_batch, int) and run.effective_batch % run.micro_batch:
        place = place_of(places, ("run", "micro_batch"))
        raise RecipeError(
            f"{place}: run.micro_batch is {show(run.micro_batch)}; expected a divisor of run.effective_batch "
            f"({run.effective_batch})."
        )
    if recipe.adapter.method == "loftq" and model.quantization not in ("nf4", "fp4"):
        place = place_of(places, ("adapter", "method"))
        raise RecipeError(f"{place}: adapter.method is `loftq`; it needs model.quantization nf4 or fp4.")
    if recipe.adapter.method == "pissa" and model.quantization != "none":
        place = place_of(places, ("adapter", "method"))
        raise RecipeError(f"{place}: adapter.method is `pissa`; it needs model.quantization none.")
    if data.eval is None and data.eval_fraction == 0:
        wanting = [("run", "early_stopping")] if run.early_stopping else []
        wanting += [("trainer", "eval_strategy")] if trainer.get("eval_strategy", "no") != "no" else []
        wanting += [("trainer", "load_best_model_at_end")] if trainer.get("load_best_model_at_end") else []
        for key in wanting:
            wants = f"{'.'.join(key)} needs rows to evaluate on"
            raise RecipeError(f"{place_of(places, key)}: {wants}. Set data.eval or data.eval_fraction.")
    if run.early_stopping and trainer.get("eval_strategy", "no") == "no":
        place = place_of(places, ("run", "early_stopping"))
        raise RecipeError(f"{place}: run.early_stopping needs trainer.eval_strategy: steps or epoch.")
    if trainer.get("train_sampling_strategy") == "batch_rebalance":
        place = place_of(places, ("trainer", "train_sampling_strategy"))
        raise RecipeError(
            f"{place}: trainer.train_sampling_strategy is `batch_rebalance`, whose order is not repeated by a resumed "
            "run. Use random, sequential or group_by_length."
        )
    if trainer.get("packing") and trainer.get("packing_strategy", "bfd") == "wrapped":
        place = place_of(places, ("trainer", "packing_strategy"))
        raise RecipeError(f"{place}: trainer.packing_strategy is `wrapped`; it mixes rows. Use bfd.")
