"""Before the first step: the worst batch, one evaluation and one save, so that what must fail fails in a minute."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import is_first_process
from lorasmith.errors import FitError, StoppedError
from lorasmith.reliability.guarded import is_full_disk, is_out_of_memory
from lorasmith.reliability.sharded import reshard


class Rehearsal(TrainerCallback):
    """Do once, without effect on the run, what the run will do at its largest.

    Args:
        mend: Gives the smallest change that makes the run fit, as the plan says; or nothing.
    """

    def __init__(self, mend: Callable[[], str]) -> None:
        self.mend = mend
        self.trainer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        random, counters = random_state(), {name: copy.deepcopy(getattr(trainer, name)) for name in _counters(trainer)}
        seen, doing = state.num_input_tokens_seen, "the worst batch"
        try:
            if hasattr(trainer, "rehearse"):
                trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # set by each update
                trainer.rehearse()
            else:
                self._train_on_the_worst(args)
            if not hasattr(trainer, "rehearse") and trainer.eval_dataset is not None:
                doing = "an evaluation of the longest rows"
                self._evaluate_the_longest(args)
            doing = "a save"
            self._save(args)
        except Exception as error:  # torch tells memory and disk in many ways
            if is_full_disk(error):
                line = f"{doing}, rehearsed: the disk is full. Free some space; the same command goes on."
                raise StoppedError(line) from error
            if is_out_of_memory(error):
                mend = self.mend() or "run.micro_batch=1 run.gradient_checkpointing=true"
                raise FitError(f"{doing}, rehearsed, is out of memory. Make it fit with: {mend}.") from error
            raise
        finally:
            reshard(trainer.model)  # else the gradients of a sharded model's outermost part would stay
            trainer.model.zero_grad()
            state.num_input_tokens_seen = seen
            trainer.done, trainer.losses = [], []
            for name, value in counters.items():
                setattr(trainer, name, value)
            set_random_state(random)

    def _train_on_the_worst(self, args: TrainingArguments) -> None:
        batch = self._batch(self.trainer.train_dataset, args.per_device_train_batch_size)
        self.trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # set by each update
        labels = batch.get("labels")
        count = None if labels is None else torch.tensor(int((labels != -100).sum()), device=args.device)
        self.trainer.training_step(self.trainer.model_wrapped, batch, count)

    def _evaluate_the_longest(self, args: TrainingArguments) -> None:
        batch = self._batch(self.trainer.eval_dataset, args.per_device_eval_batch_size)
        self.trainer.model.eval()
        self.trainer.prediction_step(self.trainer.model_wrapped, batch, prediction_loss_only=True)
        self.trainer.model.train()

    def _batch(self, rows: Any, size: int) -> Any:
        """The longest rows, as many as a batch holds; of a stream, rows as long as any may be."""
        rows = getattr(rows, "longest", rows)
        lengths = [len(ids) for ids in rows["input_ids"]]
        if "labels" in rows.column_names:  # of an encoder-decoder's rows, targets
            targets = [len(one) if isinstance(one, list) else 0 for one in rows["labels"]]
            lengths = [sum(both) for both in zip(lengths, targets, strict=True)]
        worst = sorted(range(len(lengths)), key=lambda row: -lengths[row])[:size]
        return self.trainer.data_collator([rows[row] for row in worst])

    def _save(self, args: TrainingArguments) -> None:
        """The adapter and room for its optimizer's states, written and removed."""
        if not is_first_process():
            return
        folder = Path(args.output_dir or ".") / "rehearsal"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            weights = {n: w.detach() for n, w in self.trainer.model.named_parameters() if w.requires_grad}
            for part in ("adapter", "states", "more-states"):  # Adam holds two numbers for each weight
                torch.save(weights, folder / part)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _counters(trainer: Any) -> list[str]:
    names = ("_metrics", "_stored_metrics", "_total_train_tokens", "sums", "_logs", "_step", "_current_train_step_time")
    return [name for name in names if hasattr(trainer, name)]


def random_state() -> tuple[Any, ...]:
    """The states of all generators of random numbers."""
    import random

    import numpy as np

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_state(states: tuple[Any, ...]) -> None:
    """Put back what `random_state` gave."""
    import random

    import numpy as np

    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])
