"""Losses and greedy answers of a causal model, in flat memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.console import track
from lorasmith.evaluation.answering import answers

IGNORED = -100
BATCH_TOKENS = 4096  # of a batch, padding counted; beyond, a CPU gains nothing
BATCH_LOGITS = 1 << 28  # numbers, 1 GiB in float32


@dataclass(frozen=True, slots=True)
class RowLoss:
    """One row's negative log-likelihood, in nats, summed over its supervised tokens."""

    nats: float
    tokens: int


def row_losses(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], pad_id: int, batch: int | None = None
) -> list[RowLoss]:
    """Loss of each row on its supervised tokens; the arguments are `losses_as_read`'s."""
    found = dict(track(losses_as_read(model, rows, pad_id, batch), "rows scored", total=len(rows)))
    return [found[i] for i in range(len(rows))]


@torch.no_grad()
def losses_as_read(
    model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, batch: int | None = None
) -> Iterator[tuple[int, RowLoss]]:
    """Loss of each row on its supervised tokens, batch by batch, the longest rows first.

    Logits are computed only at positions that predict a supervised token, one batch at a time, and never gathered.

    Args:
        rows: (input ids, labels) of each row; labels are IGNORED where unsupervised.
        batch: Rows per forward pass; None: as many as BATCH_TOKENS and BATCH_LOGITS have room for.

    Yields:
        The index of a row and its loss.
    """
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    vocabulary = int(model.config.get_text_config().vocab_size)
    start = 0
    while start < len(order):
        longest = len(rows[order[start]][0])
        most = min(BATCH_TOKENS, BATCH_LOGITS // vocabulary) // longest
        chosen = order[start : start + (batch or max(1, most))]
        start += len(chosen)
        ids = torch.full((len(chosen), longest), pad_id)
        labels = torch.full((len(chosen), longest), IGNORED)
        mask = torch.zeros((len(chosen), longest), dtype=torch.long)
        for at, index in enumerate(chosen):
            length = len(rows[index][0])
            ids[at, :length] = torch.tensor(rows[index][0])
            labels[at, :length] = torch.tensor(rows[index][1])
            mask[at, :length] = 1
        targets = labels[:, 1:]
        positions = (targets != IGNORED).any(dim=0).nonzero().flatten()
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            logits_to_keep=positions.to(model.device),
            use_cache=False,
        ).logits
        kept = targets[:, positions].to(logits.device)
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), kept.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(kept.shape)
        sums, counts = nats.double().sum(1).tolist(), (kept != IGNORED).sum(1).tolist()
        yield from ((index, RowLoss(sums[at], counts[at])) for at, index in enumerate(chosen))


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch: int | None = None,
) -> list[str]:
    """What the model answers to each prompt, in their order; the arguments are `answering.answers`'."""
    found = answers(model, tokenizer, prompts, max_new_tokens, batch)
    by_index = dict(track(found, "rows answered", total=len(prompts)))
    return [by_index[i] for i in range(len(prompts))]
