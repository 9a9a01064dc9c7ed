"""Losses and greedy answers of a causal model, in flat memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.console import track

IGNORED = -100


@dataclass(frozen=True, slots=True)
class RowLoss:
    """One row's negative log-likelihood, in nats, summed over its supervised tokens."""

    nats: float
    tokens: int


@torch.no_grad()
def row_losses(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], pad_id: int, batch: int
) -> list[RowLoss]:
    """Loss of each row on its supervised tokens.

    Logits are computed only at positions that predict a supervised token, one batch at a time, and never gathered.

    Args:
        rows: (input ids, labels) of each row; labels are IGNORED where unsupervised.
        batch: Rows per forward pass.
    """
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    found: dict[int, RowLoss] = {}
    for chosen in track([order[i : i + batch] for i in range(0, len(order), batch)], "batches scored"):
        longest = len(rows[chosen[0]][0])
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
        ).logits.cpu()
        kept = targets[:, positions]
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), kept.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(kept.shape)
        for at, index in enumerate(chosen):
            count = int((kept[at] != IGNORED).sum())
            found[index] = RowLoss(float(nats[at].double().sum()), count)
    return [found[i] for i in range(len(rows))]


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    batch: int,
) -> list[str]:
    """What the model answers to each prompt, most likely token first, up to a stop token.

    Args:
        prompts: Token ids of each prompt, the assistant's turn already opened.
        batch: Prompts per generation, padded on the left.
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, str] = {}
    for chosen in track([order[i : i + batch] for i in range(0, len(order), batch)], "batches answered"):
        longest = len(prompts[chosen[0]])
        ids = torch.full((len(chosen), longest), tokenizer.pad_token_id)
        mask = torch.zeros((len(chosen), longest), dtype=torch.long)
        for at, index in enumerate(chosen):
            length = len(prompts[index])
            ids[at, longest - length :] = torch.tensor(prompts[index])
            mask[at, longest - length :] = 1
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        answers |= dict(zip(chosen, texts, strict=True))
    return [answers[i] for i in range(len(prompts))]


def exact_matches(answers: Sequence[str], expected: Sequence[str]) -> list[bool]:
    """Whether each answer is the expected text, white space at both ends aside."""
    return [answer.strip() == wanted.strip() for answer, wanted in zip(answers, expected, strict=True)]
