"""Padded micro-batches of tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows filled up on the right to the longest of a micro-batch.

    Attributes:
        pad_id: The token that fills up; the attention mask hides it.
        labels: What `labels` are: float numbers, int64 indices, or `tokens`, filled up with IGNORED.
    """

    pad_id: int
    labels: torch.dtype | str

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors of shape (rows, longest), and `labels` of shape (rows,), (rows, labels) or (rows, longest)."""
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }
        if "token_type_ids" in rows[0]:
            types = [torch.tensor(row["token_type_ids"]) for row in rows]
            batch["token_type_ids"] = pad_sequence(types, batch_first=True)
        if "labels" in rows[0]:
            batch["labels"] = self._labels([row["labels"] for row in rows])
        return batch

    def _labels(self, labels: list[Any]) -> torch.Tensor:
        if isinstance(self.labels, torch.dtype):
            return torch.tensor(labels, dtype=self.labels)
        return pad_sequence([torch.tensor(one) for one in labels], batch_first=True, padding_value=IGNORED)


@dataclass(frozen=True, slots=True)
class WithDecoderInputs:
    """Padded sources and targets with what the decoder reads, which is the target shifted to the right.

    A loss of one's own takes `labels` away from the model, which would make it itself.

    Attributes:
        padded: With `labels` of tokens.
        shifted: The model's own prepare_decoder_input_ids_from_labels.
    """

    padded: Padded
    shifted: Callable[..., torch.Tensor]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Tensors of shape (rows, longest source), `labels` and `decoder_input_ids` of (rows, longest target)."""
        batch: dict[str, Any] = self.padded(rows)
        return batch | {"decoder_input_ids": self.shifted(labels=batch["labels"]), "use_cache": False}
