"""A process that makes no progress is ended, with the stacks of its threads, so that no job hangs for a night."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import complain

HUNG = 5  # exit code


class Watchdog(TrainerCallback):
    """End the process with exit code 5 when nothing has moved for a while.

    Args:
        folder: Whose private/ takes the stacks.
        limit: Seconds without a micro-batch, evaluation batch, log or save.
        end: Writes the end of the run for those who look at its folder: (line, exit code).
    """

    def __init__(self, folder: Path, limit: float, end: Callable[[str, int], None]) -> None:
        self.folder, self.limit, self.end = folder, limit, end
        self._last, self._step, self._over = time.monotonic(), 0, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._moved(state)
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._over = True

    def _beat(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._moved(state)

    on_step_begin = on_substep_end = on_step_end = on_prediction_step = on_evaluate = on_log = on_save = _beat

    def _moved(self, state: TrainerState) -> None:
        self._last, self._step = time.monotonic(), state.global_step

    def _watch(self) -> None:
        while not self._over:
            time.sleep(min(1.0, self.limit / 4))
            if time.monotonic() - self._last > self.limit and not self._over:
                self._bark()

    def _bark(self) -> None:
        rank = os.environ.get("RANK", "0")
        stacks = self.folder / "private" / f"stacks-rank-{rank}.txt"
        stacks.parent.mkdir(parents=True, exist_ok=True)
        with stacks.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        line = (
            f"rank {rank} has not moved for {self.limit / 60:g} minutes after step {self._step}; stacks: {stacks}. "
            "The same command goes on from the last checkpoint."
        )
        self.end(f"error: {line}", HUNG)
        complain(f"error: {line}")
        os._exit(HUNG)
