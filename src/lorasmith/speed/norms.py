"""RMS norms as one step of autograd that keeps its input and one number a token.

transformers writes the norm out in steps, which keep the input in float32, its normed copy, and the root. Llama and
most others multiply with the weight behind the cast to the input's dtype; Gemma adds one to it, in front of the cast.
"""

import functools
from typing import Any

import torch
from torch import Tensor


class RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight over the last dimension, for a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, gemma: bool) -> Tensor:
        wide = x.float()
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, root, weight)
        ctx.gemma = gemma
        normed = wide * root
        return normed.mul_(1 + weight.float()).to(x.dtype) if gemma else normed.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, root, weight = ctx.saved_tensors
        wide = x.float()
        inner = gradient.float() * (1 + weight.float()) if ctx.gemma else (gradient * weight).float()
        along = (inner * wide).sum(-1, keepdim=True).mul_(root * root).div_(-x.shape[-1])
        return inner.addcmul_(wide, along).mul_(root).to(x.dtype), None, None, None


def fuse_norms(model: torch.nn.Module) -> int:
    """Give every frozen RMS norm the fused step; what computes anything else keeps its own.

    Returns:
        How many have it.
    """
    fused = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and "forward" not in vars(module):
            gemma = _kind(module)
            if gemma is not None:
                module.forward = functools.partial(_forward, module, gemma=gemma)
                fused += 1
    return fused


@torch.no_grad()
def _kind(module: Any) -> bool | None:
    """Whether a norm is Gemma's (True), Llama's (False), or neither (None), by trying it."""
    weight, eps = getattr(module, "weight", None), _eps(module)
    if weight is None or eps is None or weight.requires_grad or weight.dim() != 1:
        return None
    x = torch.linspace(-2, 3, 2 * len(weight), device=weight.device).view(2, -1).to(weight.dtype)
    expected = type(module).forward(module, x)
    for gemma in (False, True):
        found = RmsNorm.apply(x, weight, eps, gemma)
        if expected.shape == found.shape and torch.allclose(expected.float(), found.float(), rtol=1e-2, atol=1e-5):
            return gemma
    return None


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _forward(norm: Any, x: Tensor, *, gemma: bool) -> Tensor:
    if not torch.is_grad_enabled() or x.dtype != norm.weight.dtype:
        out: Tensor = type(norm).forward(norm, x)
        return out
    found: Tensor = RmsNorm.apply(x, norm.weight, _eps(norm), gemma)
    return found
