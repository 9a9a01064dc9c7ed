"""Samples of what the model answers while it learns: private/completions.jsonl."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import is_first_process
from lorasmith.reliability.resume import records_until

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
        kept = records_until(self.path, state.global_step)
        self.path.write_text(_lines(kept), encoding="utf-8")

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
            file.write(_lines(chosen))


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


def _number(value: float) -> float | None:
    return None if value != value else round(value, 6)
