"""What autograd keeps of a decoder's block for backward, and what its backward holds besides, in bytes."""

from lorasmith.memory.conditions import Setting
from lorasmith.memory.padded import mlp_backward
from lorasmith.memory.shape import Shape


def kept_bytes(shape: Shape, s: Setting) -> int:
    """Bytes that autograd keeps for backward of one block, for each token."""
    e, wide = s.itemsize, shape.heads * shape.head_dim
    narrow = shape.kv_heads * shape.head_dim
    norm = e if shape.plain_norms or s.fused else 4
    size = shape.kept_norms * (shape.hidden * norm + 4)
    size += shape.head_norms * ((norm if s.fused else 4) * shape.head_dim + 4)
    inner = shape.inner
    fused_mlp = s.fused and shape.gated and not shape.experts and fuses_mlp(shape, s)
    widths = {"block": shape.hidden, "attention": wide, "mlp": shape.hidden, "product": inner}
    # peft casts a layer's input to the adapter's float32 and autocast casts it back, so each layer keeps a copy of its
    # own; its 4-bit layers leave that out when autocast is on, which they ask of CUDA alone.
    cast = not s.fused and e == 2 and (s.quantization in ("none", "int8") or s.device == "cpu")
    for reads, width in widths.items():
        adapted = [one for one in s.targets if one.reads == reads]
        # bitsandbytes' 8-bit layers keep their input besides.
        plain = not s.fused and s.quantization == "int8" and any(one.reads == reads for one in shape.linears)
        joined = reads == "attention" and s.flat and s.tokens > s.longest  # rows' outputs, laid together anew
        if (reads != "attention" or joined) and not (reads == "product" and fused_mlp):
            size += width * e * (plain or (bool(adapted) and not cast and not s.dropout))
        size += sum(s.rank * e + (s.dora * one.outputs * 2 * e) for one in adapted)
        size += width * e * len(adapted) * cast
        if s.dropout:
            size += len(adapted) * width * (e + (e if s.device == "cpu" else 1))
    keys = wide if not s.flat and (s.padded or s.packed or s.attention == "eager") else narrow
    size += e * (wide + 2 * keys + wide) + 4 * shape.heads
    size += e * (2 * wide + keys) * shape.sliced
    if shape.experts:
        size += e * (shape.active_experts * 2 * shape.hidden + shape.hidden)
    gated = 2 if fused_mlp else 3
    size += inner * e * ((4 if s.experts else 3) if shape.experts else gated if shape.gated else shape.activation_kept)
    size += shape.dropped_hidden * shape.hidden * (e if s.device == "cpu" else 1)
    return size


def fuses_mlp(shape: Shape, s: Setting) -> bool:
    """Whether all three layers of a gated MLP carry the adapter, so that speed.fused_lora makes one step of it."""
    leaves = {one.leaf for one in shape.linears if one.reads in ("mlp", "product")}
    return leaves == {"gate_proj", "up_proj", "down_proj"} <= {one.leaf for one in s.targets}


def mask_bytes(shape: Shape, s: Setting) -> int:
    """Bytes of attention masks and, for eager attention, of its scores, for one block of one micro-batch."""
    square = s.micro_batch * s.longest**2
    if s.attention == "eager":
        # Softmax in float32, its copy in 16 bit, and a soft cap's tanh.
        return square * shape.heads * (4 + (s.itemsize if s.itemsize == 2 else 0) + shape.capped * s.itemsize)
    if shape.dropped_attention and s.device == "cpu":
        # torch has no kernel here that drops: it keeps softmax, mask and what is left, and scaled queries and keys,
        # these in place of the others where there are rows, which its product copies.
        scaled = 2 * s.longest * shape.heads * shape.head_dim * (s.flat or s.micro_batch == 1)
        return 4 * (3 * square * shape.heads + s.micro_batch * scaled)
    if s.flat:
        # A row that sees a prompt laid down once attends with a mask of its own, over keys and values joined anew.
        narrow = shape.kv_heads * shape.head_dim
        joined = 2 * narrow * (s.alone - s.tokens) + s.micro_batch * s.longest * min(s.supervised + 1, s.longest)
        return joined * s.itemsize if s.alone > s.tokens else 0
    windowed = shape.window is not None and s.longest > shape.window
    # torch turns a mask into one of numbers, in every block (aten's convert_boolean_attn_mask).
    return square * s.itemsize if s.padded or s.packed or windowed else 0


def head_bytes(shape: Shape, s: Setting, tokens: int) -> int:
    """What is held around the blocks: embeddings, positions, the last norm's input and output."""
    return tokens * (shape.hidden * (4 + s.itemsize) + 2 * shape.head_dim * s.itemsize)


def transient_bytes(shape: Shape, s: Setting, tokens: int) -> int:
    """The most that a block's backward holds at once besides what forward kept."""
    inner = max(shape.inner, shape.hidden)
    unpacked = unpacked_bytes(shape, s)
    if s.loss == "classes" and not (s.fused and shape.gated):
        size = mlp_backward(shape, s, tokens) + unpacked
    else:
        size = tokens * s.itemsize * (inner + 2 * shape.hidden) + max(tokens * s.itemsize * inner, unpacked)
    if s.dora:
        largest = max((one.weights for one in shape.linears), default=0)
        size += 4 * (2 * largest + max((one.inputs**2 for one in s.targets), default=0))
    return size


def unpacked_bytes(shape: Shape, s: Setting) -> int:
    """The largest linear weight in the arithmetic's dtype, where it is quantized."""
    largest = max((one.weights for one in shape.linears), default=0)
    return largest * s.itemsize if s.quantization != "none" else 0
