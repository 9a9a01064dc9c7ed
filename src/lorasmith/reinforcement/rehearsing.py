"""The largest generation and the largest micro-batch of a run, before its first update."""

from typing import Any

import torch
from trl.trainer.utils import pad

REHEARSED_TOKENS = 16  # of each completion that is generated; the plan knows the cache of all


def longest_prompts(trainer: Any) -> list[dict[str, Any]]:
    """The rows of the largest generation of this process: whole groups, of the longest prompts."""
    rows, group = trainer.train_dataset, trainer.num_generations
    count = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    lengths = [len(ids) for ids in rows["input_ids"]]
    worst = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    wanted = [row for row in worst for _ in range(group)]
    return [rows[wanted[at % len(wanted)]] for at in range(count)]


def generate_some(trainer: Any) -> None:
    """Some tokens for every completion of the largest generation, rewarded."""
    config = trainer.generation_config
    before = config.max_new_tokens, config.min_new_tokens
    config.max_new_tokens = config.min_new_tokens = min(REHEARSED_TOKENS, trainer.max_completion_length)
    try:
        trainer._generate_and_score_completions(longest_prompts(trainer))
    finally:
        config.max_new_tokens, config.min_new_tokens = before


def worst_batch(trainer: Any) -> dict[str, Any]:
    """A micro-batch of the longest prompts with completions of the greatest length, no two alike."""
    size, length = trainer.args.per_device_train_batch_size, trainer.max_completion_length
    prompts = [torch.tensor(row["input_ids"]) for row in longest_prompts(trainer)[:size]]
    vocabulary = trainer.model.config.get_text_config().vocab_size
    batch = {
        "prompt_ids": pad(prompts, trainer._tokenizer.pad_token_id, "left"),
        "prompt_mask": pad([torch.ones_like(ids) for ids in prompts], 0, "left"),
        "completion_ids": torch.randint(vocabulary, (size, length)),
        "completion_mask": torch.ones(size, length, dtype=torch.long),
        "advantages": torch.linspace(-1, 1, size),
        "num_items_in_batch": torch.tensor(size * length * trainer.args.steps_per_generation),
    }
    if trainer.beta:
        batch["ref_per_token_logps"] = torch.full((size, length), -1.0)
    return {name: value.to(trainer.accelerator.device) for name, value in batch.items()}
