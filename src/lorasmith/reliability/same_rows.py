"""Before the first step: all processes, on all machines, have read the same rows."""

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.errors import DataError


class SameRows(TrainerCallback):
    """Compare the rows' fingerprints of all processes; machines without a common disk may hold other files.

    Args:
        fingerprint: Hash of all ids and labels, as hex.
    """

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        mine = torch.tensor(int(self.fingerprint[:15], 16), device=device)  # 60 bits
        found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(found, mine)
        others = [rank for rank, one in enumerate(found) if int(one) != int(found[0])]
        if others:
            raise DataError(
                f"rank {others[0]} has read other rows than rank 0 ({len(others)} ranks differ). Give all machines the "
                "same files and the same version of Lorasmith."
            )
