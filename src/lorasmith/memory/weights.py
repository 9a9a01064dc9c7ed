"""Bytes of a model's frozen weights and of an optimizer's states, as bitsandbytes and torch store them."""

from lorasmith.memory.conditions import Setting
from lorasmith.memory.shape import Linear, Shape

GIB = 1 << 30
# Bytes of optimizer state for each trainable parameter. 8-bit states carry a float32 scale per 256.
OPTIMIZER_BYTES = {
    "adamw": 8.0,
    "adam": 8.0,
    "8bit": 2 + 8 / 256,
    "paged_32bit": 0.0,
    "lion": 4.0,
    "lion_8bit": 1 + 4 / 256,
    "adagrad": 4.0,
    "rmsprop": 4.0,
    "sgd": 0.0,
    "adafactor": 0.1,
    "ademamix": 12.0,
    "ademamix_8bit": 3 + 12 / 256,
}


def base_bytes(shape: Shape, s: Setting) -> int:
    """The frozen weights."""
    # A score stands in the output layer's place, untrained beside the one that peft trains; so do other heads.
    embeddings = shape.embeddings
    if s.loss in ("score", "classes"):
        embeddings = shape.vocab * (shape.embedding or shape.hidden)
        embeddings += shape.hidden if s.loss == "score" else s.head
    rest = shape.other + embeddings
    linear = sum(linear_bytes(one, s, shape.never_quantized) for one in shape.outside)
    for stack in (shape, shape.decoder):
        if stack is not None:
            linear += stack.layers * sum(linear_bytes(one, s, stack.never_quantized) for one in stack.linears)
            rest += stack.layers * stack.block_other
    return int(linear + rest * s.itemsize)


def linear_bytes(one: Linear, s: Setting, never_quantized: tuple[str, ...]) -> float:
    """A frozen linear layer with its bias."""
    return sum(linear_parts(one, s, never_quantized))


def linear_parts(one: Linear, s: Setting, never_quantized: tuple[str, ...]) -> tuple[float, float]:
    """A frozen linear layer's parameters, and the constants of its quantization, which are none."""
    bias = one.outputs * s.itemsize if one.bias else 0
    if s.quantization == "none" or one.leaf in never_quantized:
        return bias + one.weights * s.itemsize, 0
    if s.quantization == "int8":
        return bias + one.weights, 4 * one.outputs
    # Absmax of blocks of 64 in 8 bit, theirs of blocks of 256 in float32, and two code tables (QLoRA).
    blocks = -(-one.weights // 64)
    return bias + one.weights / 2, blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


def optimizer_bytes(name: str) -> float:
    """Bytes of state for each trainable parameter, of an optimizer by transformers' name."""
    if "paged" in name:
        return OPTIMIZER_BYTES["paged_32bit"]
    eight = "8bit" in name
    if "ademamix" in name:
        return OPTIMIZER_BYTES["ademamix_8bit" if eight else "ademamix"]
    if "lion" in name:
        return OPTIMIZER_BYTES["lion_8bit" if eight else "lion"]
    if eight:
        return OPTIMIZER_BYTES["8bit"]
    return next((size for key, size in OPTIMIZER_BYTES.items() if name.startswith(key)), OPTIMIZER_BYTES["adamw"])
