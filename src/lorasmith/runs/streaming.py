"""Where a stream of rows stands, kept in each checkpoint, so that a resumed run reads on from there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from lorasmith.data.streaming import RowStream, Start
from lorasmith.data.streams import Position


class StreamPosition(TrainerCallback, ExportableState):
    """Writes into trainer_state.json where the buffer of the next row begins, and finds it there again.

    Args:
        checkpoint: That the run goes on from, or None.
    """

    def __init__(self, stream: RowStream, rows_per_update: int, checkpoint: Path | None) -> None:
        self.stream, self.rows_per_update = stream, rows_per_update
        self.updates = 0
        self.trainer: Any = None
        if checkpoint is not None:
            stream.go_on(_position_in(checkpoint))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.updates = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.updates = state.global_step

    def state(self) -> dict[str, Any]:
        """What transformers puts into trainer_state.json."""
        start = self.stream.start_of(self.updates * self.rows_per_update)
        return {"args": {}, "attributes": {"row": start.row, "position": asdict(start.position)}}


def _position_in(checkpoint: Path) -> Start:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    found = state["stateful_callbacks"][StreamPosition.__name__]["attributes"]
    return Start(found["row"], Position(**found["position"]))
