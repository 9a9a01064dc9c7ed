"""Scores of sequences by a model with a scalar head, in flat memory."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lorasmith.console import track


@torch.no_grad()
def sequence_scores(model: PreTrainedModel, sequences: Sequence[list[int]], pad_id: int, batch: int) -> list[float]:
    """The score of each sequence of token ids, read at its last token that is not `pad_id`.

    Args:
        batch: Sequences per forward pass, of like length.
    """
    model.eval()
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    found: dict[int, float] = {}
    for chosen in track([order[i : i + batch] for i in range(0, len(order), batch)], f"batches of {batch} scored"):
        ids = torch.full((len(chosen), len(sequences[chosen[0]])), pad_id)
        mask = torch.zeros_like(ids)
        for at, index in enumerate(chosen):
            length = len(sequences[index])
            ids[at, :length] = torch.tensor(sequences[index])
            mask[at, :length] = 1
        out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        found |= dict(zip(chosen, out.logits[:, 0].float().tolist(), strict=True))
    return [found[i] for i in range(len(sequences))]
