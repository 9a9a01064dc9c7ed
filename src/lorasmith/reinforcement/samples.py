"""Samples of what the model answers while it learns: private/completions.jsonl, and a page to look at."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import is_first_process

SHOWN = 4  # completions of a log event: the best and the worst
NAME = "completions.jsonl"


class Samples(TrainerCallback):
    """Write the best and the worst of the last generation at each log event.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "private" / NAME
        self.trainer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not is_first_process():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                break  # cut off while it was written
            if record["step"] <= state.global_step:
                kept.append(line)
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if not is_first_process() or not {"loss", "eval_loss"} & logs.keys() or not self.trainer.is_new:
            return
        self.trainer.is_new = False
        found = self.trainer._logs
        rewards = found["rewards"]
        records = [
            {
                "step": state.global_step,
                "rows": "training" if "loss" in logs else "held out",
                "prompt": prompt,
                "completion": completion,
                "rewards": {name: _number(values[at]) for name, values in rewards.items()},
                "advantage": _number(found["advantages"][at]),
            }
            for at, (prompt, completion) in enumerate(zip(found["prompt"], found["completion"], strict=True))
        ]
        weights = dict(zip(self.trainer.reward_func_names, self.trainer.reward_weights.tolist(), strict=True))
        records.sort(key=lambda one: -sum(weights[name] * (value or 0) for name, value in one["rewards"].items()))
        half = SHOWN // 2
        chosen = records[:half] + records[half:][-half:]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in chosen))


def _number(value: float) -> float | None:
    return None if value != value else round(value, 6)
