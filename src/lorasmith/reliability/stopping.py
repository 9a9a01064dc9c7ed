"""A safe stop: signals, a time limit, a low disk or a lost launcher end a run at the next step, with a checkpoint."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import say
from lorasmith.errors import StoppedError, StoppedNow
from lorasmith.listening import listener
from lorasmith.memory.machine import free_disk

ASK_SECONDS = 0.2  # between two looks for a reason to stop while tokens are generated


class EvaluationStopped(Exception):  # not an error: the way out of an evaluation or a generation
    """Leaves an evaluation for the checkpoint behind it, or a generation for the one before."""


class SafeStop(TrainerCallback):
    """Save and stop at the end of a step, on every rank, when one of them has a reason to.

    Args:
        folder: Where checkpoints are written; a disk with less than `room()` bytes free is a reason.
        max_minutes: Of this process; None: no limit.
        save_minutes: A checkpoint is written when the last one is this old.
    """

    def __init__(
        self, folder: Path, max_minutes: float | None, save_minutes: float | None, room: Callable[[], int]
    ) -> None:
        self.folder, self.room = folder, room
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.save_seconds = None if save_minutes is None else 60 * save_minutes
        self.stopped = ""
        self.trainer: Any = None
        self._start = self._saved = self._asked = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # An exception out of a signal's handler is lost where Python ignores exceptions, as in a finalizer.
        if _any_rank(bool(listener.asked)):
            raise StoppedNow(listener.too_early())
        self._saved = time.monotonic()
        listener.phase = "training"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        listener.phase = "finishing"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        reason, save = self._reason(), self._save_is_due()
        if _any_rank(bool(reason)) and state.global_step < state.max_steps:
            self._stop(reason, control)
        elif _any_rank(save):
            control.should_save = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._leave_for_a_reason(state, control)

    def ask_between_tokens(self, state: TrainerState, control: TrainerControl) -> None:
        """Called before each token that is generated; looks for a reason now and then.

        Raises:
            EvaluationStopped: If there is one.
        """
        if time.monotonic() - self._asked > ASK_SECONDS:
            self._asked = time.monotonic()
            self._leave_for_a_reason(state, control)

    def _leave_for_a_reason(self, state: TrainerState, control: TrainerControl) -> None:
        if listener.phase == "finishing":  # the evaluation behind the last step, whose checkpoint is there
            if _any_rank(bool(listener.reason())):
                raise StoppedNow(f"stopped: {self._reason()} after the last step. The same command goes on.")
            return
        reason = self._reason()
        if _any_rank(bool(reason)) and state.global_step < state.max_steps:
            self._stop(reason, control)
            raise EvaluationStopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def _stop(self, reason: str, control: TrainerControl) -> None:
        self.stopped = reason or "another process was asked to stop"
        self.trainer.interrupted = True
        control.should_save = control.should_training_stop = True

    def _reason(self) -> str:
        if self.max_seconds is not None and time.monotonic() - self._start > self.max_seconds:
            return f"the time limit of {self.max_seconds / 60:g} minutes is over"
        if free_disk(self.folder) < self.room():
            return "the disk is nearly full"
        return listener.reason()

    def _save_is_due(self) -> bool:
        return self.save_seconds is not None and time.monotonic() - self._saved > self.save_seconds


def stopped(reason: str, step: int, saved: bool) -> StoppedError:
    """The end of a run that was stopped at a step."""
    where = f"the checkpoint of step {step} is whole" if saved else "no step was done yet"
    say(f"stopping: {reason}")
    return StoppedError(f"stopped at step {step}: {reason}; {where}. The same command goes on.")


def _any_rank(value: bool) -> bool:
    """Whether it holds on any rank; all ranks must ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
