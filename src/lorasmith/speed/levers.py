"""Which levers a run has, from its recipe and its model, and their use on the model."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from lorasmith.console import say
from lorasmith.engine import this_engine
from lorasmith.errors import ModelError
from lorasmith.memory.machine import free_memory
from lorasmith.recipe import Recipe
from lorasmith.speed.attention import INSTEAD_OF, NAME, use_row_attention
from lorasmith.speed.batches import IGNORED, FlatCollator, inputs_of
from lorasmith.speed.frozen import reuse_frozen_blocks
from lorasmith.speed.lora import fuse_lora
from lorasmith.speed.mlp import fuse_mlps
from lorasmith.speed.norms import fuse_norms
from lorasmith.speed.packing import best_fit

TOLERANCE = {torch.float32: 1e-3}  # of a row's hidden states beside others against alone, relative; others: HALF
HALF = 0.05
SHARE_FOR_STATES = 0.25  # of the computer's free memory, that frozen blocks' states may take


def make_batches(model: PeftModel, recipe: Recipe) -> FlatCollator | None:
    """What makes flat micro-batches of rows, attention that keeps them apart being set where it can be; None: padded.

    Raises:
        ModelError: If rows are to be packed and would see each other.
    """
    packed, wanted = bool(recipe.trainer.get("packing")), recipe.speed.padding_free
    if not (packed or wanted) or model.active_peft_config.is_prompt_learning:
        return None
    base: Any = model.get_base_model()
    before = base.config._attn_implementation
    if wanted and before == INSTEAD_OF:
        try:
            use_row_attention(base)
        except (ValueError, ImportError, AttributeError):
            base.set_attn_implementation(before)
    apart = base.config._attn_implementation == NAME
    if not (apart or packed or before.startswith("flash_attention")):
        return None  # transformers would build a mask of all rows together, which costs more than padding
    leak = rows_differ(base)
    if leak and apart:
        base.set_attn_implementation(before)
        apart, leak = False, rows_differ(base) if packed else leak
    if leak and packed:
        raise ModelError(
            f"trainer.packing: in {type(base).__name__} with {before} attention, packed rows see each other ({leak}). "
            "Set trainer.packing: false."
        )
    if leak:
        say(
            f"batches: padded, since in {type(base).__name__} rows without padding between them see each other ({leak})"
        )
        return None
    return FlatCollator(share_prompts=apart and recipe.speed.shared_prompts)


@torch.no_grad()
def rows_differ(model: Any) -> str:
    """What is wrong with a model's rows in a flat batch, or nothing: each must be what it is alone."""
    size = model.config.get_text_config().vocab_size
    common = [one % size for one in range(2, 22)]
    tails = [[(30 * i + j) % size for j in range(7)] for i in range(1, 4)]
    rows: list[dict[str, Any]] = [{"input_ids": [*common, *tail]} for tail in tails[:2]] + [{"input_ids": tails[2]}]
    for row in rows:
        row["labels"] = [IGNORED] * (len(row["input_ids"]) - 2) + row["input_ids"][-2:]
    was_training = model.training
    model.eval()
    try:
        alone = [_hidden(model, FlatCollator(False)([row]))[-5:] for row in rows]
        shared = model.config._attn_implementation == NAME
        batch = FlatCollator(shared)(rows)
        beside = _hidden(model, batch)
    finally:
        model.train(was_training)
    places = [-5 + end for end in _ends(batch, rows)]
    limit = TOLERANCE.get(model.dtype, HALF) if not getattr(model, "is_quantized", False) else HALF
    worst = 0.0
    for expected, start in zip(alone, places, strict=True):
        found = beside[start : start + 5]
        worst = max(worst, ((found - expected).norm() / expected.norm()).item())
    return "" if worst < limit else f"a row's states change by {worst:.1%} beside others"


def _ends(batch: dict[str, Any], rows: list[dict[str, Any]]) -> list[int]:
    """Where each row ends in a flat batch."""
    ids = batch["input_ids"][0].tolist()
    ends = []
    for row in rows:
        tail = row["input_ids"][-7:]
        ends.append(next(i + 7 for i in range(len(ids) - 6) if ids[i : i + 7] == tail))
    return ends


def _hidden(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The last hidden states of a flat batch, (tokens, width), in float32."""
    inputs = inputs_of(batch, model.device)
    hidden: torch.Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state[0].float()
    return hidden


def fuse(model: PeftModel, recipe: Recipe) -> list[str]:
    """Fused steps for what they cover; what was fused, as a sentence."""
    if not recipe.speed.fused_lora:
        return []
    mlps, layers, norms = fuse_mlps(model), fuse_lora(model), fuse_norms(model)
    return [f"fused: LoRA of {layers} linear layers, {mlps} gated MLPs, {norms} norms"] if layers else []


def reuse(model: PeftModel, recipe: Recipe, lengths: Sequence[int], flat: bool) -> list[str]:
    """Keep what frozen blocks give where rows come again (speed.frozen_cache); what is kept, as a sentence."""
    if recipe.data.streaming:  # nobody knows when they come again
        return []
    steps, epochs = int(recipe.trainer.get("max_steps") or -1), float(recipe.trainer.get("num_train_epochs", 3))
    if steps > 0:
        epochs = steps * recipe.run.effective_batch / len(lengths)
    alone = this_engine().processes == 1  # else each epoch brings a process other rows
    if not (recipe.speed.frozen_cache and flat and alone and epochs > 1) or recipe.run.gradient_checkpointing:
        return []
    _, said = reuse_frozen_blocks(model, sum(lengths), int(SHARE_FOR_STATES * free_memory()))
    return [said] if said else []


def compute_natively(config: Any, model: PeftModel) -> None:
    """Take autocast, and its casts of whole activations, out of a bfloat16 run whose every trained weight is fused.

    The adapter's float32 matrices are the optimizer's; the fused step casts these small ones instead of the input.

    Args:
        config: The trl config, not yet given to a trainer.
    """
    fused = [module for module in model.modules() if isinstance(module, LoraLayer) and "forward" in vars(module)]
    covered = {id(weight) for module in fused for weight in module.parameters()}
    if config.bf16 and all(id(weight) in covered for weight in model.parameters() if weight.requires_grad):
        config.bf16, config.mixed_precision = False, "no"


def packed(rows: Dataset, recipe: Recipe) -> Dataset:
    """Sequences of up to `trainer.max_length` tokens, each of whole rows (columns as before, and `seq_lengths`)."""
    size = recipe.trainer["max_length"]
    lengths = [len(ids) for ids in rows["input_ids"]]
    packs = best_fit(lengths, size)
    waste = 1 - sum(lengths) / (len(packs) * size)
    say(f"packing: {len(lengths)} rows in {len(packs)} sequences of up to {size} tokens, {waste:.1%} of them unused")
    columns = {name: rows[name] for name in ("input_ids", "labels")}
    joined = {
        name: [[one for row in pack for one in column[row]] for pack in packs] for name, column in columns.items()
    }
    return Dataset.from_dict(joined | {"seq_lengths": [[lengths[row] for row in pack] for pack in packs]})
