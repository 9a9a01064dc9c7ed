"""What a task's model gives for rows, batched by length, in flat memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lorasmith.console import track
from lorasmith.tasks.batches import Padded

NUMBERS = ("logits", "start_logits", "end_logits")
TOKENS = {"cpu": 2048, "cuda": 65536}  # of a batch, padding included
Output = dict[str, np.ndarray]


def batches_by_length(lengths: Sequence[int], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Indices of rows, the longest first, each batch with up to so many rows and tokens, at least one row."""
    found: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        full = found and (len(found[-1]) >= most_rows or (len(found[-1]) + 1) * longest > most_tokens)
        if not found or full:
            found.append([])
            longest = lengths[index]
        found[-1].append(index)
    return found


def outputs(
    model: Any, rows: Sequence[dict[str, list[int]]], pad_id: int, most_rows: int
) -> Iterator[tuple[int, Output]]:
    """Index and outputs of each row, in the order in which they are done.

    Args:
        rows: `input_ids`, and `token_type_ids` where the model was trained with them.
        most_rows: Of a batch.

    Yields:
        Float32 arrays by name: logits of shape (labels,) or (tokens, labels), start_logits and end_logits (tokens,).
    """
    model.eval()
    collate = Padded(pad_id, "none")
    lengths = [len(row["input_ids"]) for row in rows]
    chosen = batches_by_length(lengths, most_rows, TOKENS.get(model.device.type, TOKENS["cpu"]))
    for batch in track(chosen, "batches done"):
        inputs = {name: value.to(model.device) for name, value in collate([rows[i] for i in batch]).items()}
        with torch.inference_mode():
            found = model(**inputs, use_cache=False)
        numbers = {name: found[name].float().cpu().numpy() for name in NUMBERS if name in found}
        width = inputs["input_ids"].shape[1]
        for at, index in enumerate(batch):
            per_token = {name for name, value in numbers.items() if value.ndim > 1 and value.shape[1] == width}
            one = {name: value[at] for name, value in numbers.items()}
            if "start_logits" in one or one["logits"].ndim == 2:
                one = {name: value[: lengths[index]] if name in per_token else value for name, value in one.items()}
            yield index, one


def probabilities(logits: np.ndarray, problem: str) -> np.ndarray:
    """Softmax over labels, each label's sigmoid where there are several, the number itself for a regression.

    Args:
        logits: Shape (..., labels).
        problem: transformers' problem_type.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if problem == "regression":
        return logits
    if problem == "multi_label_classification":
        return np.exp(-np.logaddexp(0, -logits))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(-1, keepdims=True)
    return found
