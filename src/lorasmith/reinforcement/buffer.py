"""Completions that updates behind a checkpoint still learn from, kept in it.

With `num_iterations` or `steps_per_generation` above the accumulation, one generation serves several updates. trl
forgets it in a checkpoint and generates anew from the newer policy, and begins counting at 0 (GRPOTrainer, 1.16).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

NAME = "completions-{rank}.safetensors"
STEP = "step"


def keep(trainer: Any) -> None:
    """Write the completions of a generation that is not used up into the checkpoint that is about to be saved."""
    every = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer._buffered_inputs is None or trainer.taken % every == 0:
        return
    folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}.{name}": value.cpu().contiguous().clone()
        for number, batch in enumerate(trainer._buffered_inputs)
        for name, value in batch.items()
        if torch.is_tensor(value)
    }
    path = folder / NAME.format(rank=trainer.args.process_index)
    save_file(tensors | {STEP: torch.tensor(trainer.taken % every)}, path)


def take_up(trainer: Any, checkpoint: str) -> None:
    """Go on with the completions of a checkpoint, if it has some."""
    path = Path(checkpoint) / NAME.format(rank=trainer.args.process_index)
    if not path.is_file():
        return
    tensors = load_file(path, device=str(trainer.accelerator.device))
    trainer.taken = int(tensors.pop(STEP))
    batches: list[dict[str, Any]] = [{} for _ in range(trainer.args.steps_per_generation)]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        batches[int(number)][name] = value
    trainer._buffered_inputs = batches
