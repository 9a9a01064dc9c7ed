"""Before the first step a preference says nothing yet: the policy is its reference, and the loss is ln 2."""

import copy
import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.errors import ModelError

NEAR = 1e-4  # nats
PAIRS = 4


class StartsAtReference(TrainerCallback):
    """Refuse a run whose policy and reference differ before any step (catalogue F31: a wrong reference, or dropout)."""

    def __init__(self) -> None:
        self.trainer: Any = None

    @torch.no_grad()
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        if state.global_step or list(trainer.loss_types) != ["sigmoid"] or list(trainer.loss_weights) != [1.0]:
            return
        metrics, seen = copy.deepcopy(trainer._metrics), trainer._total_train_tokens
        rows = [trainer.train_dataset[i] for i in range(min(PAIRS, len(trainer.train_dataset)))]
        inputs = trainer._prepare_inputs(trainer.data_collator(rows))
        loss = float(trainer.compute_loss(trainer.model_wrapped, inputs))
        trainer._metrics, trainer._total_train_tokens = metrics, seen
        if not abs(loss - math.log(2)) <= NEAR:
            raise ModelError(
                f"before the first step the loss is {loss:.6f} where ln 2 = {math.log(2):.6f} was due: the policy is "
                "not its reference. Set adapter.dropout: 0, and look at adapter.from."
            )
