"""From a recipe and the lengths of its rows to what memory depends on."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lorasmith import upstream
from lorasmith.engine import Engine
from lorasmith.errors import ModelError
from lorasmith.memory.beside import models_beside
from lorasmith.memory.conditions import Setting
from lorasmith.memory.fit import CHECKPOINTING, LARGEST_MICRO_BATCH
from lorasmith.memory.generation import generation_of
from lorasmith.memory.methods import SFT, Method
from lorasmith.memory.shape import Shape
from lorasmith.recipe import LORA_METHODS, Recipe

EMBEDDINGS = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out")
LONGEST_ROWS = LARGEST_MICRO_BATCH  # whose lengths a plan knows one by one
PROMPT_METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt")  # rows need padding
STARTED_METHODS = ("pissa", "olora", "loftq")  # whose new adapter is not nothing
EXPERT_LAYERS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj"}


@dataclass(frozen=True, slots=True)
class Rows:
    """Lengths of what is trained on, in sequences, of which a pair has two; of grpo.py's prompts alone.

    Attributes:
        lengths: Tokens of each, or of a sample of them.
        count: Sequences.
        longest: Tokens of the longest.
        supervised: Trained tokens of one, at most.
        eval_longest: Tokens of the longest to evaluate on, 0 without any.
        why: Where the lengths come from.
        prompt: Tokens before the first trained one, at most; 0: not known.
        pairs: Tokens of each pair, what its sequences share counted once; empty: not known.
        targets: Tokens of the target of each row of `lengths`, which are its source's; empty: rows have none.
        target: Tokens of the longest target, 0 without.
        eval_target: Tokens of the longest to evaluate on, 0 without.
        labels: Outputs of a classifier.
    """

    lengths: list[int]
    count: int
    longest: int
    supervised: int
    eval_longest: int
    why: str
    prompt: int = 0
    pairs: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    target: int = 0
    eval_target: int = 0
    labels: int = 2

    @property
    def mean(self) -> float:
        """Tokens of a mean sequence."""
        return sum(self.lengths) / max(1, len(self.lengths))

    def shared(self, context: int) -> "Rows":
        """A process's part of each row, where so many share it."""
        if context == 1:
            return self
        parts = {
            name: -(-getattr(self, name) // context) for name in ("longest", "supervised", "eval_longest", "prompt")
        }
        return replace(self, lengths=[-(-length // context) for length in self.lengths], pairs=(), **parts)

    def completed(self, tokens: int) -> "Rows":
        """Prompts, each with a completion of so many tokens behind it."""
        longer = [length + tokens for length in self.lengths]
        evaluated = self.eval_longest + tokens * (self.eval_longest > 0)
        top, prompt = self.longest + tokens, self.longest
        return replace(self, lengths=longer, longest=top, supervised=tokens, eval_longest=evaluated, prompt=prompt)


def setting_of(
    recipe: Recipe,
    shape: Shape,
    rows: Rows,
    device: str,
    processes: int = 1,
    by: Method = SFT,
    budget: int = 0,
    engine: Engine | None = None,
) -> tuple[Setting, tuple[str, ...]]:
    """What memory depends on, from a recipe, and notes on what the plan does not know.

    Args:
        rows: Those of grpo.py with their completions.
        processes: Those with rows of their own.
        budget: Bytes of the device, of which vLLM takes a share.
        engine: How processes share the model; None: DDP.
    """
    adapter, trainer, notes = recipe.adapter, recipe.trainer, []
    options = dict(adapter.options)
    rank, targets, method = adapter.rank, adapter.target_modules, adapter.method
    if adapter.from_ is not None:
        path = Path(adapter.from_) / "adapter_config.json"
        if not path.is_file():
            raise ModelError(f"{adapter.from_}: no adapter here (adapter_config.json is missing).")
        saved = json.loads(path.read_text(encoding="utf-8"))
        rank, targets = int(saved.get("r") or rank), saved.get("target_modules") or targets
    if method not in LORA_METHODS:
        notes.append(f"adapter.method {method} is planned as LoRA of rank {rank}")
    excluded = options.get("exclude_modules")
    chosen = shape.targets(targets, excluded)
    layers = options.get("layers_to_transform")
    adapted = shape.layers if layers is None else len(layers) if isinstance(layers, list) else 1
    below = 0 if layers is None else min(layers) if isinstance(layers, list) else int(layers)
    tokens = len(recipe.model.add_tokens) + (2 if recipe.model.chat_template == "chatml" else 0)
    whole = tokens * shape.hidden * (1 if shape.tied else 2)
    for name in options.get("modules_to_save") or []:
        whole += shape.vocab * shape.hidden if name in EMBEDDINGS else 0
    referred = by.reference or (by.generates and bool(trainer.get("beta")))
    copied = referred and (whole > 0 or keeps_copy(recipe))
    whole += shape.hidden * (by.loss == "score")
    head = shape.head_weights(rows.labels, by.of_rows) if by.loss == "classes" else 0
    whole += head
    optimizer = str(trainer.get("optim", upstream.trainer_fields("sft")["optim"].default))
    packing = bool(trainer.get("packing"))
    longest = rows.longest
    if packing:
        longest = int(trainer.get("max_length") or longest)
    per_process = by.sequences * max(1, recipe.run.effective_batch // processes)
    micro = per_process if recipe.run.micro_batch == "auto" else by.sequences * int(recipe.run.micro_batch)
    dtype = recipe.model.dtype if recipe.model.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    attention = shape.attention if recipe.model.attention == "auto" else recipe.model.attention
    apart = attention == "sdpa" or attention.startswith("flash_attention")
    flat = recipe.speed.padding_free and apart and method not in PROMPT_METHODS and not by.padded
    keeps_states = (
        below > 0
        and flat
        and recipe.speed.frozen_cache
        and by.frozen_cache
        and processes == 1
        and (engine is None or engine.processes == 1)
    )
    mixed = by.mixed and trainer.get("loss_type", "kto") == "kto"
    lengths, made = sorted(rows.lengths, reverse=True)[:LONGEST_ROWS], None
    if by.generates:
        shared = flat and recipe.speed.shared_prompts
        prompt = max(rows.longest, rows.eval_longest) - rows.supervised
        made = generation_of(recipe, prompt, rows.supervised, processes, shared)
        beside, unknown = models_beside(recipe, dtype, budget)
        made, notes = replace(made, beside=beside), [*notes, *unknown]
        lengths = [length for length in lengths for _ in range(made.group)]
    setting = Setting(
        quantization=recipe.model.quantization,
        dtype=dtype,
        targets=chosen,
        adapted_layers=adapted,
        rank=rank,
        longest=longest,
        supervised=longest if packing else rows.supervised,
        micro_batch=micro,
        accumulation=max(1, per_process // micro),
        experts=bool(shape.experts) and adapts_experts(targets),
        dora=method == "dora",
        dropout=adapter.dropout > 0,
        whole=whole,
        optimizer=optimizer,
        eval_longest=rows.eval_longest,
        eval_batch=by.sequences * int(trainer.get("per_device_eval_batch_size", 0)),
        padded=not flat and not packing and len(set(rows.lengths)) > 1,
        packed=packing,
        flat=flat,
        lengths=tuple(lengths),
        pairs=tuple(sorted(rows.pairs, reverse=True)[:LONGEST_ROWS]) if recipe.speed.shared_prompts else (),
        frozen_below=below,
        states=round(rows.count * rows.mean * shape.hidden * (4 if dtype == "float32" else 2)) if keeps_states else 0,
        fused=recipe.speed.fused_lora and method in LORA_METHODS and method != "dora" and adapter.dropout == 0,
        # Experts' router has a loss too.
        chunked_loss=by.chunked_loss and recipe.speed.chunked_loss and not whole and not shape.experts,
        loss=by.loss,
        prompts_scored=by.prompts_scored,
        described=by.reads != "rows",
        reference=by.reference and not trainer.get("precompute_ref_log_probs"),
        mixed=max(longest, rows.prompt + rows.supervised if rows.prompt else 0) if mixed else 0,
        copied=copied,
        checkpointing=CHECKPOINTING.get(recipe.run.gradient_checkpointing, "none"),
        attention=attention,
        device=device,
        processes=processes,
        generation=made,
        target=rows.target,
        target_share=sum(rows.targets) / len(rows.targets) / max(1.0, rows.mean) if rows.targets else 0.0,
        eval_target=rows.eval_target,
        beams=_beams(recipe) if rows.eval_target else 0,
        decoder_targets=shape.decoder.targets(targets, excluded) if shape.decoder is not None else (),
        outside=shape.outside if targets == "all-linear" else (),
        head=head,
        engine=engine,
    )
    return setting, tuple(notes)


def _beams(recipe: Recipe) -> int:
    """Targets of a row that seq2seq.py's evaluation writes side by side; 0: it writes none."""
    if recipe.task.answered_rows == 0:
        return 0
    return int(recipe.trainer.get("generation_num_beams") or 1)


def keeps_copy(recipe: Recipe) -> bool:
    """Whether trl's reference is a frozen copy of the adapter, since the base alone is not where training begins."""
    adapter = recipe.adapter
    return adapter.from_ is not None or adapter.method not in LORA_METHODS or adapter.method in STARTED_METHODS


def adapts_experts(targets: str | list[str]) -> bool:
    """Whether peft puts an adapter on fused experts too."""
    return targets == "all-linear" or bool(EXPERT_LAYERS & set([targets] if isinstance(targets, str) else targets))
