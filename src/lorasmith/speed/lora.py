"""A linear layer and its LoRA as one step of autograd: no copy of the input, no temporary as wide as the output.

peft computes `base(x) + B(A(x)) * scaling` in separate steps, each of which keeps or makes tensors of its own, and
casts the whole input to the adapter's dtype. Here the small matrices are cast to the input's dtype instead (the float32
ones stay the optimizer's), the adapter's product is added into the base's output, and backward adds into one gradient.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Frozen:
    """The base layer under an adapter, for products with it and its transpose.

    Attributes:
        layer: torch's Linear, transformers' Conv1D, or bitsandbytes' 4-bit or 8-bit layer.
    """

    layer: torch.nn.Module

    def product(self, x: Tensor) -> Tensor:
        """The layer's own output, shape (..., outputs), by its own kernel."""
        with torch.no_grad():
            out: Tensor = self.layer(x)
        return out

    def transposed_product(self, gradient: Tensor) -> Tensor:
        """Gradient of the input, shape (tokens, inputs), from that of the output, shape (tokens, outputs)."""
        return gradient @ self.weight(gradient.dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, shape (outputs, inputs), unpacked where it is quantized."""
        weight: Any = self.layer.weight
        # A weight that FSDP2 has gathered is a plain tensor; its layer knows how it is packed.
        state = getattr(weight, "quant_state", None) or getattr(self.layer, "quant_state", None)
        if state is not None:
            from bitsandbytes.functional import dequantize_4bit

            return dequantize_4bit(weight.data.view(-1, 1), state).to(dtype)
        if weight.dtype == torch.int8:
            codes, scales = _int8_parts(self.layer)
            return codes.to(dtype).mul_(scales.to(dtype).unsqueeze(1) / 127)
        return weight.T if type(self.layer).__name__ == "Conv1D" else weight


def _int8_parts(layer: Any) -> tuple[Tensor, Tensor]:
    """Codes and the largest size of each output, which bitsandbytes moves from the weight to its state when used."""
    if layer.state.CB is not None:
        return layer.state.CB, layer.state.SCB
    return layer.weight.CB, layer.weight.SCB


class LoraLinear(torch.autograd.Function):
    """y = base(x) + scaling * x A' B', keeping x and x A' for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, frozen: Frozen, scaling: float) -> Tensor:
        """Shapes: x (..., inputs), down A (rank, inputs), up B (outputs, rank)."""
        flat = x.reshape(-1, x.shape[-1])
        narrow = flat @ down.to(x.dtype).T
        out = frozen.product(x)
        _add_product(out, narrow, up, scaling)
        ctx.save_for_backward(x, narrow, down, up)
        ctx.frozen, ctx.scaling = frozen, scaling
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, down, up = ctx.saved_tensors
        flat_gradient = gradient.reshape(-1, gradient.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        down_gradient, up_gradient, through = lora_gradients(flat_gradient, flat, narrow, up, ctx.scaling)
        back = None
        if ctx.needs_input_grad[0]:
            back = ctx.frozen.transposed_product(flat_gradient)
            back.addmm_(through, down.to(x.dtype))
            back = back.view_as(x)
        return back, down_gradient.to(down.dtype), up_gradient.to(up.dtype), None, None


def lora_gradients(
    gradient: Tensor, x: Tensor, narrow: Tensor, up: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A and B, and of x A', given that of the output.

    Shapes: gradient (tokens, outputs), x (tokens, inputs), narrow x A' (tokens, rank), up B (outputs, rank).
    """
    up_gradient = (gradient.T @ narrow).mul_(scaling)
    through = (gradient @ up.to(gradient.dtype)).mul_(scaling)
    return through.T @ x, up_gradient, through


def _add_product(out: Tensor, narrow: Tensor, up: Tensor, scaling: float) -> None:
    """out += scaling * narrow B', in place."""
    out.view(-1, out.shape[-1]).addmm_(narrow, up.to(out.dtype).T, alpha=scaling)


def fuse_lora(model: torch.nn.Module) -> int:
    """Give every LoRA layer that this covers the fused step; the others keep peft's.

    Returns:
        How many layers have it.
    """
    layers = [module for module in model.modules() if can_fuse(module)]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def can_fuse(module: torch.nn.Module) -> bool:
    """Whether a layer is a plain LoRA on a linear base: one adapter, no dropout, no bias of its own, no variant."""
    if not isinstance(module, LoraLayer) or list(getattr(module, "lora_A", ())) != [ADAPTER]:
        return False
    if (
        module.lora_variant
        or module.lora_embedding_A
        or not isinstance(module.lora_dropout[ADAPTER], torch.nn.Identity)
    ):
        return False
    kind = type(module.get_base_layer()).__name__
    plain = kind in ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt") and hasattr(module, "get_delta_weight")
    return plain and module.lora_A[ADAPTER].bias is None and module.lora_B[ADAPTER].bias is None


def is_trained(layer: Any) -> bool:
    """Whether the adapter acts beside its base right now: neither switched off nor merged."""
    return not layer.disable_adapters and not layer.merged and layer.active_adapters == [ADAPTER]


def arithmetic(x: Tensor, layer: Any) -> Tensor | None:
    """The input in the dtype that is computed in, or None where the base's weights have another."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight = layer.get_base_layer().weight
    quantized = getattr(weight, "quant_state", None) is not None or weight.dtype == torch.int8
    return x if quantized or weight.dtype == x.dtype else None


def _without_gradient(layer: Any, x: Tensor) -> Tensor:
    """The layer's output where nothing is learnt from it, as in each step of a generation."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = layer.base_layer(x)
        narrow = x.reshape(-1, x.shape[-1]) @ layer.lora_A[ADAPTER].weight.to(x.dtype).T
        _add_product(out, narrow, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER])
    return out


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    ready = arithmetic(x, layer) if not args and not kwargs and is_trained(layer) else None
    if ready is None:
        out: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return out
    if not torch.is_grad_enabled():
        return _without_gradient(layer, ready)
    with torch.autocast(x.device.type, enabled=False):
        base = Frozen(layer.get_base_layer())
        found: Tensor = LoraLinear.apply(
            ready, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, base, layer.scaling[ADAPTER]
        )
    return found
