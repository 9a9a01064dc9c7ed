"""Memory of encoders and of encoder-decoders over padded rows, in bytes.

Counted as read in transformers 5.23 and peft 0.21, and as torch's saved tensors on a CPU (benchmarks/task_memory.py
compares whole trainings). A stack is the blocks of an encoder, or of the decoder that writes a target.
"""

from dataclasses import dataclass

from lorasmith.memory.conditions import Setting
from lorasmith.memory.shape import Linear, Shape


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that a stack reads, all as long as the longest.

    Attributes:
        length: Tokens of each.
        source: Tokens of each row that the encoder read, for a stack that reads them too; else 0.
    """

    rows: int
    length: int
    source: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def block_bytes(shape: Shape, s: Setting, targets: tuple[Linear, ...], batch: Batch) -> int:
    """What autograd keeps of one block for backward."""
    e, hidden, inner = s.itemsize, shape.hidden, shape.inner
    wide = shape.heads * shape.head_dim
    noise = e if s.device == "cpu" else 1  # what a dropout keeps of each number
    # A layer norm keeps its input with its mean and spread; T5's is written out in steps, in float32.
    norm = hidden * e + 8 if shape.plain_norms else hidden * (e + 4 * (e == 2)) + 4
    size = shape.kept_norms * norm + shape.dropped_hidden * hidden * noise + shape.dropped_inner * inner * noise
    size += inner * e * (shape.activation_kept + 2 * shape.gated)
    for reads, width in (("block", hidden), ("cross", hidden), ("mlp", hidden), ("product", inner)):
        size += read_bytes(shape, s, targets, reads, width)
    for reads in ("attention", "crossed") if batch.source else ("attention",):
        # A kernel keeps what it gives, whoever reads it.
        own = 0 if _written_out(shape, s) else wide * e
        size += max(read_bytes(shape, s, targets, reads, wide), own)
    size *= batch.tokens
    size += attention_bytes(shape, s, batch.rows, batch.length, batch.length)
    if batch.source:
        size += read_bytes(shape, s, targets, "source", 0) * batch.rows * batch.source
        size += attention_bytes(shape, s, batch.rows, batch.length, batch.source)
    if shape.relative_scores:
        size += relative_bytes(shape, s, targets, batch)
    return size


def read_bytes(shape: Shape, s: Setting, targets: tuple[Linear, ...], reads: str, width: int) -> int:
    """What the linear layers that read the same tensor keep for each token, the tensor included once.

    Args:
        width: Of the tensor; 0 where others keep it.
    """
    e = s.itemsize
    adapted = [one for one in targets if one.reads == reads]
    # As in kept.kept_bytes: copies of peft's casts, and the inputs of bitsandbytes' 8-bit layers.
    cast = not s.fused and e == 2 and (s.quantization in ("none", "int8") or s.device == "cpu")
    eight = not s.fused and s.quantization == "int8"
    plain = eight and any(one.reads == reads and one.leaf not in shape.never_quantized for one in shape.linears)
    size = width * e * (plain or (bool(adapted) and not cast and not s.dropout))
    size += sum(s.rank * e + (s.dora * one.outputs * 2 * e) for one in adapted)
    size += width * e * len(adapted) * cast
    return size + s.dropout * len(adapted) * width * (e + (e if s.device == "cpu" else 1))


def eight_bit_inputs(shape: Shape, s: Setting, batch: Batch) -> int:
    """Inputs that bitsandbytes' 8-bit layers keep of recomputed blocks, in spite of checkpointing.

    They are attributes of its autograd functions, not saved tensors (bitsandbytes 0.50).
    """
    if s.quantization != "int8" or s.fused:
        return 0
    left_out = {one.reads for one in shape.linears if one.leaf in shape.never_quantized}
    widths = {one.reads: one.inputs for one in shape.linears if one.reads not in left_out}
    source = widths.pop("source", 0) * batch.rows * batch.source
    # What a block reads first is kept by checkpointing too.
    tokens = batch.tokens * (sum(widths.values()) - widths.get("block", 0))
    return s.recomputed(shape.layers) * tokens * s.itemsize + bool(s.recomputed(shape.layers)) * source * s.itemsize


def _written_out(shape: Shape, s: Setting) -> bool:
    """Whether attention is made in steps, each of which is kept: eager, or torch's own way of dropping on a CPU."""
    return s.attention == "eager" or (shape.dropped_attention and s.device == "cpu")


def attention_bytes(shape: Shape, s: Setting, rows: int, queries: int, keys: int) -> int:
    """What one attention keeps besides its output: queries, keys, values, and scores or a mask.

    Args:
        queries, keys: Tokens of a row on each side.
    """
    e, wide = s.itemsize, shape.heads * shape.head_dim
    # Values that are a slice keep the whole projection.
    size = rows * e * wide * (queries + 2 * keys + (2 * keys if shape.whole_projection else 0))
    square = rows * queries * keys
    if _written_out(shape, s):
        noise = e if s.device == "cpu" else 1
        return size + shape.heads * square * (e + shape.dropped_attention * (e + noise))
    size += 4 * shape.heads * rows * queries
    if shape.position_bias:
        return size + shape.heads * square * e
    # Each block makes numbers of the mask; a decoder's own needs none, since targets are filled up at their ends.
    masked = s.padded and rows > 1 and not (shape.causal and queries == keys)
    windowed = shape.window is not None and keys > shape.window // 2
    return size + square * e * (masked or windowed)


def relative_bytes(shape: Shape, s: Setting, targets: tuple[Linear, ...], batch: Batch) -> int:
    """What DeBERTa's scores by relative position keep in one block."""
    e, wide, ways = s.itemsize, shape.heads * shape.head_dim, shape.relative_scores
    size = wide * batch.tokens * e * (ways > 1)  # keys, unscaled
    # Positions are projected for each row again; scores of all of them, from which those of each pair are picked.
    size += ways * shape.relative * e * (batch.rows * wide + batch.tokens * shape.heads)
    size += ways * 8 * batch.length**2 + batch.rows * batch.length**2
    own = any(one.reads == "positions" for one in shape.linears)
    projected = sum(one.reads == ("positions" if own else "block") for one in targets)
    return size + shape.relative * e * (shape.hidden + min(projected, ways) * s.rank)


def mlp_backward(shape: Shape, s: Setting, tokens: int) -> int:
    """What the backward of a block's MLP holds of gradients, in place of the tensors that it is through with."""
    # The product's gradient beside some of the block's, or those of a gate and of what it is multiplied with.
    product = shape.inner + shape.hidden * (1 if s.fused else 3)
    return tokens * s.itemsize * max(product, (1 + shape.gated) * shape.inner + shape.hidden)


def transient_bytes(shape: Shape, s: Setting, batch: Batch, unpacked: int) -> int:
    """The most that the backward of a stack's last block holds at once, besides what forward kept.

    Args:
        unpacked: Bytes of the largest weight in the arithmetic's dtype, where it is quantized.
    """
    e, hidden, tokens = s.itemsize, shape.hidden, batch.tokens
    mlp = mlp_backward(shape, s, tokens) + unpacked
    # By then the MLP's part is gone.
    keys = batch.source or batch.length
    square = batch.rows * batch.length * keys * shape.heads * e if _written_out(shape, s) else 0
    gone = tokens * e * (shape.inner * (1 + shape.activation_kept + 2 * shape.gated) + 3 * hidden)
    scores = square + tokens * e * 5 * hidden - gone
    return max(mlp, scores)


def _stack_bytes(shape: Shape, s: Setting, targets: tuple[Linear, ...], batch: Batch, below: int) -> int:
    recomputed = s.recomputed(shape.layers)
    held = 2 if s.checkpointing == "offload" else recomputed
    # With checkpointing, peft lets gradients reach the embeddings, whose norm and dropout then keep something too.
    held += (recomputed > 0) * (shape.plain_norms + (shape.dropped_hidden > 0))
    inputs = held * batch.tokens * shape.hidden * s.itemsize
    whole = shape.layers - recomputed - (0 if recomputed else below)
    return inputs + whole * block_bytes(shape, s, targets, batch)


def _end_bytes(shape: Shape, s: Setting, batch: Batch) -> int:
    """What a head keeps: its input, what its dropout does, and what comes before."""
    return batch.tokens * shape.hidden * s.itemsize * (5 if shape.pooled_tokens else 2)


def padded_moments(shape: Shape, s: Setting, unpacked: int, casts: int) -> dict[str, dict[str, int]]:
    """Activations and what comes besides, at the loss and at the worst of backward.

    Args:
        unpacked: Bytes of the largest weight in the arithmetic's dtype, where it is quantized.
        casts: Bytes of autocast's copies of the adapter.
    """
    source = Batch(s.micro_batch, s.longest)
    hidden = shape.hidden * s.itemsize
    read = _stack_bytes(shape, s, s.targets, source, s.frozen_below) + casts
    transient = transient_bytes(shape, s, source, unpacked) + _again(shape, s, s.targets, source)
    transient += eight_bit_inputs(shape, s, source)
    backward = {"activations": read, "transient": transient}
    if shape.decoder is None:
        return {"loss": {"activations": read + _end_bytes(shape, s, source), "loss": 0}, "backward": backward}
    target = Batch(s.micro_batch, s.target, s.longest)
    # What the source is read as, the last norm of each stack, and what its dropout keeps.
    each = 2 if shape.position_bias else int(shape.kind == "mbart")
    read += (1 + each) * source.tokens * hidden
    read += _stack_bytes(shape.decoder, s, s.decoder_targets, target, 0)
    later = transient_bytes(shape.decoder, s, target, unpacked) + source.tokens * hidden
    # What the blocks of either stack keep in 8 bit goes with the whole graph.
    later += _again(shape.decoder, s, s.decoder_targets, target) + eight_bit_inputs(shape.decoder, s, target)
    backward["transient"] += eight_bit_inputs(shape.decoder, s, target)
    if read + later > sum(backward.values()):
        backward = {"activations": read, "transient": later}
    read += (1 + each) * target.tokens * hidden
    return {"loss": {"activations": read, "loss": words_bytes(shape, s, target.tokens)}, "backward": backward}


def _again(shape: Shape, s: Setting, targets: tuple[Linear, ...], batch: Batch) -> int:
    """What a block keeps that is read again for its backward; else the last is kept, and gone before another is."""
    return block_bytes(shape, s, targets, batch) if s.recomputed(shape.layers) == shape.layers else 0


def words_bytes(shape: Shape, s: Setting, tokens: int, backward: bool = True) -> int:
    """Logits of so many tokens over the whole vocabulary with their loss, and, for backward, their gradient."""
    e = s.itemsize
    return tokens * shape.vocab * (e + 4 + (4 if e == 2 else 0) + 4 * backward)


def reading_bytes(shape: Shape, s: Setting, batch: Batch, unpacked: int) -> int:
    """The most that a stack holds as it reads rows without gradients, its input included."""
    e, wide = s.itemsize, shape.heads * shape.head_dim
    # Unfused, what a layer gives, what its adapter does, and the product of that with the scaling lie side by side.
    widest = max((one.outputs for one in shape.linears if one.reads in ("block", "mlp")), default=0)
    widest = (2 if s.fused else 3) * widest + shape.inner * (shape.gated and not shape.whole_projection)
    widest = max(widest, shape.activation_kept * shape.inner)
    square = batch.rows * batch.length * (batch.source or batch.length)
    eager = s.attention == "eager"
    scores = shape.heads * square * (4 + (shape.relative_scores > 0) if eager else 2 * shape.position_bias)
    scores += shape.relative_scores * batch.rows * shape.heads * batch.length * shape.relative
    linear = batch.tokens * (widest + 4 * shape.hidden) + unpacked // e
    attention = batch.tokens * (4 * wide + 3 * shape.hidden) + scores + square * (not eager)
    # Where some blocks have windows, the masks of both kinds and what they are made of.
    return e * max(linear, attention) + 4 * square * (shape.window is not None)


def evaluated(shape: Shape, s: Setting, unpacked: int) -> dict[str, int]:
    """What an evaluation holds: of an encoder, of an encoder-decoder's loss, or of the targets that it writes.

    Args:
        unpacked: Bytes of the largest weight in the arithmetic's dtype, where it is quantized.
    """
    rows = s.eval_batch or s.micro_batch
    source = Batch(rows, s.eval_longest)
    read = reading_bytes(shape, s, source, unpacked)
    if shape.decoder is None:
        return {"transient": read}
    states = source.tokens * shape.hidden * s.itemsize
    if s.beams:
        return max(written(shape, s, rows), {"transient": read}, key=lambda parts: sum(parts.values()))
    target = Batch(rows, s.eval_target, s.eval_longest)
    loss = {"activations": states, "loss": words_bytes(shape, s, target.tokens, backward=False)}
    block = {"activations": states, "transient": reading_bytes(shape.decoder, s, target, unpacked)}
    return max(loss, block, {"transient": read}, key=lambda parts: sum(parts.values()))


def written(shape: Shape, s: Setting, rows: int) -> dict[str, int]:
    """What is held to write the targets of so many rows: as keys of the source are made, or at the last token.

    transformers reads the source once, and lays down what the decoder needs of it again for each beam.
    """
    decoder, e = shape.decoder, s.itemsize
    assert decoder is not None
    targets = rows * s.beams
    wide = decoder.heads * decoder.head_dim * e
    keys = targets * s.eval_longest * wide  # of one block, and as much for its values
    crossed = 2 * decoder.layers * keys
    held = (targets + rows * (s.beams > 1)) * s.eval_longest * shape.hidden * e
    made = {"activations": held, "cache": crossed, "transient": 2 * keys}
    own = 2 * decoder.layers * targets * s.eval_target * wide
    # Of a logit: itself, in float32, its likelihood, that of the beam, and what the best are chosen from.
    logits = targets * shape.vocab * (5 * 4 + e)
    ended = {"activations": held, "cache": crossed + own, "sampling": max(keys * (s.beams > 1), logits)}
    return max(made, ended, key=lambda parts: sum(parts.values()))
