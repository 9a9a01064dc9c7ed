"""Activations of one block in N computed again instead of kept, for runs that need some memory back but not all."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer


class RecomputeOneIn(TrainerCallback):
    """Switch checkpointing off again in all blocks but every N-th, once the trainer has switched it on in all.

    transformers has `activation_checkpointing_kwargs: {every_n_layers: N}` for this from 5.23 on.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.trainer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        blocks = [one for one in self.trainer.model.modules() if isinstance(one, GradientCheckpointingLayer)]
        for index, block in enumerate(blocks):
            block.gradient_checkpointing = block.gradient_checkpointing and index % self.every == 0
