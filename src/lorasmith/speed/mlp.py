"""A gated MLP and its LoRAs as one step of autograd: the gate's activation and the product are computed again.

transformers keeps four tensors as wide as the MLP (gate, its activation, projection, product); here two are kept.
"""

import types
from typing import Any

import torch
from torch import Tensor

from lorasmith.speed.lora import ADAPTER, Frozen, arithmetic, can_fuse, is_trained, lora_gradients

LAYERS = ("gate_proj", "up_proj", "down_proj")


def _silu(gate: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate)


def _silu_gradient(gradient: Tensor, gate: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward.grad_input(gradient, gate, grad_input=gradient)


def _gelu(gate: Tensor) -> Tensor:
    return torch.nn.functional.gelu(gate, approximate="tanh")


def _gelu_gradient(gradient: Tensor, gate: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward.grad_input(gradient, gate, approximate="tanh", grad_input=gradient)


# By the name of transformers' module, which has changed its class between versions; `_is_plain` tries each.
ACTIVATIONS = {
    "SiLU": (_silu, _silu_gradient),
    "SiLUActivation": (_silu, _silu_gradient),
    "GELUTanh": (_gelu, _gelu_gradient),
}


class GatedMlp(torch.autograd.Function):
    """down(act(gate(x)) * up(x)) with a LoRA on each of the three, as transformers' gated MLPs compute it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bases: tuple[Frozen, ...], scalings: tuple[float, ...], activation: Any, *adapters: Tensor
    ) -> Tensor:
        """Shapes: x (..., hidden); adapters are A and B of gate, up and down, each (rank, inputs), (outputs, rank)."""
        flat = x.reshape(-1, x.shape[-1])
        gate, gate_narrow = _linear(flat, bases[0], adapters[0:2], scalings[0])
        up, up_narrow = _linear(flat, bases[1], adapters[2:4], scalings[1])
        product = activation[0](gate).mul_(up)
        out, down_narrow = _linear(product, bases[2], adapters[4:6], scalings[2])
        ctx.save_for_backward(x, gate, up, gate_narrow, up_narrow, down_narrow, *adapters)
        ctx.bases, ctx.scalings, ctx.activation = bases, scalings, activation
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, gate_narrow, up_narrow, down_narrow, *adapters = ctx.saved_tensors
        flat, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        activated = ctx.activation[0](gate)
        down = lora_gradients(gradient, activated * up, down_narrow, adapters[5], ctx.scalings[2])
        inner = ctx.bases[2].transposed_product(gradient)
        inner.addmm_(down[2], adapters[4].to(inner.dtype))
        up_gradient = activated.mul_(inner)
        gate_gradient = ctx.activation[1](inner.mul_(up), gate)  # in place, as wide tensors are what memory goes to
        del activated, inner
        ups = lora_gradients(up_gradient, flat, up_narrow, adapters[3], ctx.scalings[1])
        gates = lora_gradients(gate_gradient, flat, gate_narrow, adapters[1], ctx.scalings[0])
        back = None
        if ctx.needs_input_grad[0]:
            back = ctx.bases[1].transposed_product(up_gradient)
            back.addmm_(gate_gradient, ctx.bases[0].weight(back.dtype))
            back.addmm_(ups[2], adapters[2].to(back.dtype)).addmm_(gates[2], adapters[0].to(back.dtype))
            back = back.view_as(x)
        found = (gates[0], gates[1], ups[0], ups[1], down[0], down[1])
        return back, None, None, None, *(g.to(a.dtype) for g, a in zip(found, adapters, strict=True))


def _linear(x: Tensor, base: Frozen, adapter: tuple[Tensor, ...], scaling: float) -> tuple[Tensor, Tensor]:
    """Output of a linear layer with its adapter (A, B), and x A'."""
    down, up = adapter
    narrow = x @ down.to(x.dtype).T
    out = base.product(x)
    return out.addmm_(narrow, up.to(x.dtype).T, alpha=scaling), narrow


def fuse_mlps(model: torch.nn.Module) -> int:
    """Give every gated MLP whose three layers carry plain LoRAs the fused step; the others keep transformers'.

    Returns:
        How many have it.
    """
    mlps = [module for module in model.modules() if _can_fuse(module)]
    for mlp in mlps:
        mlp.forward = types.MethodType(_forward, mlp)
    return len(mlps)


def _can_fuse(module: torch.nn.Module) -> bool:
    layers = [getattr(module, name, None) for name in LAYERS]
    if not all(isinstance(layer, torch.nn.Module) and can_fuse(layer) for layer in layers):
        return False
    return _name(module) in ACTIVATIONS and _is_plain(module)


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Whether the module computes down(act(gate(x)) * up(x)) and nothing else, by trying it on bases alone."""
    base = [getattr(module, name).get_base_layer() for name in LAYERS]
    weight = base[2].bias if base[2].bias is not None else getattr(module, LAYERS[0]).lora_A[ADAPTER].weight
    hidden = getattr(module, LAYERS[0]).in_features
    dtype = base[0].weight.dtype if base[0].weight.dtype.is_floating_point and not _packed(base[0]) else weight.dtype
    x = torch.linspace(-1, 1, 2 * hidden, device=weight.device).view(2, hidden).to(dtype)
    layers = [getattr(module, name) for name in LAYERS]
    expected = layers[2](ACTIVATIONS[_name(module)][0](layers[0](x)) * layers[1](x))
    found = type(module).forward(module, x)
    return bool(torch.allclose(expected, found, rtol=1e-3, atol=1e-5))


def _name(module: Any) -> str:
    return type(getattr(module, "act_fn", None)).__name__


def _packed(layer: Any) -> bool:
    return getattr(layer.weight, "quant_state", None) is not None


def _forward(mlp: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layers = [getattr(mlp, name) for name in LAYERS]
    ready = None
    if not args and not kwargs and torch.is_grad_enabled() and all(is_trained(layer) for layer in layers):
        ready = arithmetic(x, layers[0])
    if ready is None:
        out: Tensor = type(mlp).forward(mlp, x, *args, **kwargs)
        return out
    adapters = [matrix[ADAPTER].weight for layer in layers for matrix in (layer.lora_A, layer.lora_B)]
    bases = tuple(Frozen(layer.get_base_layer()) for layer in layers)
    scalings = tuple(layer.scaling[ADAPTER] for layer in layers)
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = GatedMlp.apply(ready, bases, scalings, ACTIVATIONS[_name(mlp)], *adapters)
    return found
