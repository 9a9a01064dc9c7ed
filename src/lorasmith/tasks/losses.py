"""Losses of tasks, each a sum over what an update learns from, so that micro-batches of any size give the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lorasmith.memory.peak import LOGIT_BYTES as CHUNK_BYTES

IGNORED = -100
Loss = Callable[..., torch.Tensor]


def single_label(weights: list[float] | None = None) -> Loss:
    """Cross entropy of each row's label, its class weight times.

    Args:
        weights: One for each label, near 1 on the mean over rows, or None.
    """

    def loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        logits = outputs["logits"].float()
        weight = None if weights is None else torch.tensor(weights, device=logits.device)
        return functional.cross_entropy(logits, labels, weight=weight, reduction="sum")

    return loss


def multi_label(weights: list[float] | None = None) -> Loss:
    """Binary cross entropy of each label of each row; with weights, those of rows that have the label count so much."""

    def loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        logits = outputs["logits"].float()
        weight = None if weights is None else torch.tensor(weights, device=logits.device)
        return functional.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weight, reduction="sum")

    return loss


def regression(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of each row's number."""
    return functional.mse_loss(outputs["logits"].float()[:, 0], labels.float(), reduction="sum")


def token_labels(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each labelled token."""
    logits = outputs["logits"].float()
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def answer_span(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the answer's first token among all of a window, and of its last.

    Args:
        labels: Both positions, int64, shape (windows, 2).
    """
    both = (outputs["start_logits"], outputs["end_logits"])
    parts = [functional.cross_entropy(one.float(), labels[:, at], reduction="sum") for at, one in enumerate(both)]
    return parts[0] + parts[1]


def target_tokens(smoothing: float = 0.0) -> Loss:
    """Cross entropy of each token of a target, some logits in float32 at a time, made again for their gradient.

    Args:
        smoothing: Share of the probability that is wanted evenly from all tokens (arXiv 1512.00567).
    """

    def of_chunk(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"ignore_index": IGNORED, "label_smoothing": smoothing, "reduction": "sum"}
        return functional.cross_entropy(logits.float(), labels, **options)

    def loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        logits, targets = outputs["logits"].flatten(0, 1), labels.flatten()
        rows = max(1, CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cpu"]) // (4 * logits.shape[1]))
        if len(logits) <= rows:
            return of_chunk(logits, targets)
        parts: Any = zip(logits.split(rows), targets.split(rows), strict=True)
        found: torch.Tensor = sum(checkpoint(of_chunk, *part, use_reentrant=False) for part in parts)
        return found

    return loss
