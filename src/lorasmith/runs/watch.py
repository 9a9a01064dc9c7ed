"""Watch training: a progress line, metrics.jsonl, and an end to runs that left the finite numbers."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import is_first_process, say
from lorasmith.errors import DivergedError
from lorasmith.hardware import Hardware, memory_gib, peak_memory_gib
from lorasmith.reliability.resume import records_until
from lorasmith.started import process_seconds


def goes_on_counting(trainer: Any) -> bool:
    """Whether the tokens of a checkpoint are among those that a trainer counts behind it."""
    return hasattr(trainer, "rehearse") or getattr(trainer, "goes_on_counting", False)


class Watch(TrainerCallback):
    """Show loss, tokens/s without padding, memory and time left; log them to metrics.jsonl."""

    def __init__(self, folder: Path, hardware: Hardware) -> None:
        self.folder = folder
        self.hardware = hardware
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.tokens = 0
        self.first_step_seconds: float | None = None  # from the start of the process to the end of its first update
        self._start = self._paused = 0.0
        self._tokens_before = 0  # that a checkpoint had seen, where trl counts on from them
        self.trainer: Any = None
        self._bar: Progress | None = None

    def go_on(self, step: int) -> None:
        """Take up the records of an interrupted run as they were at a step; later ones are dropped."""
        path = self.folder / "metrics.jsonl"
        self.history += records_until(path, step)
        if is_first_process():  # another rank, late, would drop what the first has logged since
            path.write_text("".join(json.dumps(record) + "\n" for record in self.history), encoding="utf-8")

    @property
    def tokens_per_second(self) -> float | None:
        """Non-padding tokens trained per second so far, evaluation and saving left out."""
        return self.tokens / self.seconds if self.seconds and self.tokens else None

    @property
    def first_evaluation(self) -> dict[str, Any] | None:
        """The evaluation of the untrained adapter, which is the base's."""
        return next((record for record in self.history if record["step"] == 0 and "eval_loss" in record), None)

    @property
    def last_evaluation(self) -> dict[str, Any] | None:
        """The newest evaluation, with all that was logged of it."""
        return next((record for record in reversed(self.history) if "eval_loss" in record), None)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start, self._paused = time.perf_counter(), 0.0
        self._tokens_before = state.num_input_tokens_seen if goes_on_counting(self.trainer) else 0
        if state.is_world_process_zero and sys.stdout.isatty():
            columns = (
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(bar_width=16),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=Console())
            self._bar.add_task("", total=state.max_steps)
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self._start - self._paused
        if self.first_step_seconds is None:
            if self.hardware.device == "cuda":
                torch.cuda.synchronize()  # once, or the time would be that of asking for the update
            self.first_step_seconds = process_seconds()
            say(f"first step: done {self.first_step_seconds:.1f} s after the start")
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if not math.isfinite(logs.get("eval_loss", 0.0)):
            self._stop_bar()
            raise DivergedError(
                f"the evaluation loss is {logs['eval_loss']} at step {state.global_step}; the last checkpoint stands. "
                "Lower trainer.learning_rate."
            )
        if "loss" in logs:
            self.tokens = int(logs.get("num_tokens", 0)) - self._tokens_before
        memory = round(memory_gib(self.hardware), 3)
        record = {"step": state.global_step, **logs, "seconds": round(self.seconds, 3), "memory_gib": memory}
        if "loss" in logs and self.tokens_per_second:
            record["tokens_per_second"] = round(self.tokens_per_second, 1)
        evaluated = (state.global_step, logs.get("eval_loss"))
        if "eval_loss" in logs and evaluated in [(old["step"], old.get("eval_loss")) for old in self.history]:
            return  # the last evaluation of training and the one behind it are the same
        self.history.append(record)
        if not state.is_world_process_zero:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if "loss" in logs:
            self._show(state, logs)
        elif "eval_loss" in logs and not self._bar:
            when = f"step {state.global_step}/{state.max_steps}" if state.global_step else "before training"
            reward = logs.get("eval_reward")
            said = f"evaluation loss {logs['eval_loss']:.4f}" if reward is None else f"held-out reward {reward:.4f}"
            say(f"{when}  {said}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pause()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pause()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_bar()

    def _pause(self) -> None:
        """Take the time since the last step out of the training time."""
        self._paused = time.perf_counter() - self._start - self.seconds

    def _show(self, state: TrainerState, logs: dict[str, Any]) -> None:
        rate = self.tokens_per_second or 0.0
        left = self.seconds / max(1, state.global_step) * (state.max_steps - state.global_step)
        peak = peak_memory_gib(self.hardware)
        learnt = f"loss {float(logs['loss']):.4f}"
        if logs.get("reward") is not None:  # the loss of a policy gradient says nothing
            learnt = f"reward {logs['reward']:.4f}  {logs['completions/mean_length']:.0f} tokens each"
        text = f"{learnt}  {rate:,.0f} tokens/s  {peak:.2f} GiB  {int(left // 60)}:{int(left % 60):02d} left"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=text)
        else:
            say(f"step {state.global_step}/{state.max_steps}  {text}")

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
