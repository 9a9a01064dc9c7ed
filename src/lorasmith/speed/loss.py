"""The loss over supervised tokens alone, its gradient computed in the forward pass, some rows of logits at a time.

The output layer is frozen, so the gradient of the hidden states is all that backward needs: it is known as soon as the
logits of a token are, and no (tokens x vocabulary) matrix is kept. trl 1.16 projects a second time in backward, and on
a CPU it also projects the tokens that are not trained (trl.kernels.chunked_logprob).
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lorasmith.memory.peak import LOGIT_BYTES as CHUNK_BYTES
from lorasmith.speed.batches import IGNORED


class TokenLosses(torch.autograd.Function):
    """The negative log-likelihood of each target under softmax(scale * (hidden W' + b)), and its place described."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, described: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Shapes: hidden (tokens, width), weight (vocabulary, width), bias (vocabulary,), targets (tokens,).

        Returns:
            For each token: its loss in nats, float32; whether it is the most likely one; and, where `described`, the
            entropy of what was expected there and the mean of its logits.
        """
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        first = torch.empty_like(losses, dtype=torch.bool)
        entropy, mean = (torch.empty_like(losses), torch.empty_like(losses)) if described else (None, None)
        rows = max(1, CHUNK_BYTES[hidden.device.type] // (4 * weight.shape[0] * (2 if described else 1)))
        rows = -(-len(hidden) // -(-len(hidden) // rows)) if len(hidden) else rows  # chunks of like size
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            target = targets[part].unsqueeze(1)
            logits = hidden[part] @ weight.T
            if bias is not None:
                logits += bias
            narrow = logits.dtype != torch.float32
            scores = logits.float() if narrow else logits
            if scale != 1:
                scores.mul_(scale)
            top = scores.amax(1, keepdim=True)
            chosen = scores.gather(1, target)
            first[part] = (chosen >= top).squeeze(1)
            if mean is not None:
                mean[part] = scores.mean(1)
            scores.sub_(top)
            # The entropy needs scores and their exponents side by side.
            exponents = scores.exp() if described else scores.exp_()
            sums = exponents.sum(1, keepdim=True)
            losses[part] = (sums.log() + top - chosen).squeeze(1)
            if entropy is not None:
                expected = torch.bmm(exponents.unsqueeze(1), scores.unsqueeze(2)).flatten() / sums.squeeze(1)
                entropy[part] = sums.log().squeeze(1) - expected
            if gradient is not None:
                # Softmax minus the target's one; the division by the sum waits for the narrow product.
                if narrow:
                    exponents.div_(sums).scatter_add_(1, target, exponents.new_full((len(target), 1), -1.0))
                    gradient[part] = (exponents.to(weight.dtype) @ weight).mul_(scale)
                else:
                    exponents.scatter_add_(1, target, -sums)
                    gradient[part] = (exponents @ weight).mul_(scale / sums)
            del logits, scores, exponents  # else two chunks would be held at once
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(first, *(one for one in (entropy, mean) if one is not None))
        return losses, first, entropy, mean

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.unsqueeze(1).to(gradient.dtype), None, None, None, None, None


def token_losses(
    hidden: Tensor, targets: Tensor, head: Any, scale: float, described: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`TokenLosses` under a frozen output layer, in the arithmetic of the hidden states or of autocast.

    Args:
        hidden: The last norm's output where a token is predicted, (tokens, width).
        targets: The tokens, (tokens,).
        scale: What the logits are multiplied with.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    found: tuple[Tensor, Tensor, Tensor | None, Tensor | None]

    def compute(head: Any, hidden: Tensor) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if getattr(head, "bias", None) is None else head.bias.to(hidden.dtype)
            return TokenLosses.apply(hidden, head.weight.to(hidden.dtype), bias, targets, scale, described)

    if not isinstance(head, FSDPModule):
        found = compute(head, hidden)
        return found
    # A sharded weight is whole between the hooks of its module's own call.
    gathered: Any = head
    gathered.forward = types.MethodType(compute, head)
    try:
        found = gathered(hidden)
    finally:
        del gathered.forward
    return found


@dataclass(frozen=True, slots=True)
class Scored:
    """The loss of a micro-batch.

    Attributes:
        total: Sum over trained tokens, differentiable.
        tokens: How many were trained.
        correct: Of how many the model's first choice was right.
    """

    total: Tensor
    tokens: Tensor
    correct: Tensor


def supervised_loss(hidden: Tensor, labels: Tensor, head: Any, scale: float) -> Scored:
    """The loss of predicting each next token.

    Args:
        hidden: The last norm's output, (rows, tokens, width).
        labels: (rows, tokens), IGNORED where nothing is trained.
        head: The output layer, frozen.
        scale: What the logits are multiplied with.
    """
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    supervised = targets != IGNORED
    losses, first, _, _ = token_losses(hidden[supervised], targets[supervised], head, scale)
    return Scored(losses.sum(), supervised.sum(), first.sum())
