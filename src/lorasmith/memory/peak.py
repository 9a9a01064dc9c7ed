"""Peak memory of a run, by part and by moment, in bytes.

The formulas count the tensors that transformers, peft, bitsandbytes and trl's loss hold, as read in their source
(transformers 5.23, peft 0.21, bitsandbytes 0.50, trl 1.16). benchmarks/memory_grid.py compares them with measurements.
"""

from dataclasses import dataclass, field

from lorasmith.memory.generation import Generation, making, prompt_bytes
from lorasmith.memory.shapes import Linear, Shape

GIB = 1 << 30
LOSS_TOKENS, LOSS_WORDS = 4096, 32768  # tile of trl's chunked loss (trl.kernels.chunked_logprob)
LOGIT_BYTES = {"cpu": 160 << 20, "cuda": 256 << 20}  # of logits in float32 that speed.chunked_loss makes at once
CUDA_CONTEXT = GIB // 2  # CUDA's own memory and cuBLAS workspaces, outside of torch's allocator; typical, unmeasured
FRAGMENTATION = 0.03  # of the dynamic memory, lost between blocks of torch's CUDA allocator; assumed until measured
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


@dataclass(frozen=True, slots=True)
class Setting:
    """What memory depends on besides the model's shape.

    Attributes:
        targets: Linear layers of a block that carry the adapter.
        adapted_layers: Blocks that carry it.
        experts: Whether fused experts and their router carry it too, as peft does for all-linear.
        whole: Weights trained whole besides, such as those of a new output layer.
        longest: Tokens of the longest training row.
        supervised: Trained tokens of a row, at most.
        micro_batch: Rows; a pair counts as two.
        eval_longest: Tokens of the longest evaluation row, 0 without.
        eval_batch: Rows of an evaluation batch; 0: as many as of a training one.
        padded: Whether rows of one batch differ in length, so that attention needs a mask.
        packed: Whether rows share a sequence, as trainer.packing has them.
        flat: Whether rows of a micro-batch lie one behind the other, with attention that needs no mask.
        lengths: Of the longest rows, longest first, which make the largest flat micro-batch.
        pairs: Of the longest pairs, what both sequences begin with counted once; empty where that is not known.
        frozen_below: Blocks below the first that carries the adapter.
        states: Bytes of the computer's memory that their kept output takes (speed.frozen_cache).
        fused: Whether linear layers, MLPs and norms are one step each (speed.fused_lora).
        chunked_loss: Whether the loss is speed.chunked_loss, else `loss`.
        loss: tiles or score, as `methods.Method` has them.
        prompts_scored: Whether all tokens of every other row are in the loss, not the trained ones alone.
        described: Whether the entropy of each scored position is wanted too.
        reference: Whether a reference reads the batch too, without gradients.
        mixed: Tokens of the longest answer behind another row's prompt, where those are read besides; else 0.
        copied: Whether a frozen copy of the adapter is kept, as the reference.
        checkpointing: none, all, offload (layer inputs in the computer's memory), or every N (of the blocks, one in N).
        processes: Over which gradients are averaged.
        generation: How the completions that are trained on are made, if they are.
    """

    quantization: str
    dtype: str
    targets: tuple[Linear, ...]
    adapted_layers: int
    rank: int
    longest: int
    supervised: int
    micro_batch: int = 1
    accumulation: int = 1
    experts: bool = False
    dora: bool = False
    dropout: bool = False
    whole: int = 0
    optimizer: str = "adamw_torch_fused"
    eval_longest: int = 0
    eval_batch: int = 0
    padded: bool = False
    packed: bool = False
    flat: bool = False
    lengths: tuple[int, ...] = ()
    pairs: tuple[int, ...] = ()
    frozen_below: int = 0
    states: int = 0
    fused: bool = False
    chunked_loss: bool = False
    loss: str = "tiles"
    prompts_scored: bool = False
    described: bool = False
    reference: bool = False
    mixed: int = 0
    copied: bool = False
    checkpointing: str = "none"
    attention: str = "sdpa"
    device: str = "cuda"
    processes: int = 1
    generation: Generation | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the arithmetic's dtype."""
        return 4 if self.dtype == "float32" else 2

    @property
    def unfused(self) -> tuple[Linear, ...]:
        """Linear layers whose adapter makes a product of its own where nothing is learnt."""
        return () if self.fused else self.targets

    @property
    def tokens(self) -> int:
        """Positions of the largest micro-batch."""
        if not self.flat or self.packed or not self.lengths:
            return self.micro_batch * self.longest
        if self.generation is not None and self.generation.shared:
            prompts = self.generation.prompts(self.micro_batch, self.steps)
            first = sum(min(length, self.longest) for length in self.lengths[:: self.generation.group][:prompts])
            return first + (self.micro_batch - prompts) * (self.generation.completion + 1)
        if self.pairs:
            return sum(min(both, 2 * self.longest) for both in self.pairs[: self.micro_batch // 2])
        return sum(min(length, self.longest) for length in self.lengths[: self.micro_batch])

    @property
    def steps(self) -> int:
        """Micro-batches whose completions are made at once."""
        return 0 if self.generation is None else self.generation.steps or self.accumulation

    @property
    def generated(self) -> int:
        """Completions that are made at once."""
        return self.micro_batch * self.steps

    @property
    def readings(self) -> int:
        """Forward passes without gradients for each that is trained."""
        apart = 0 if self.generation is None else self.generation.readings(self.accumulation, self.steps)
        return self.reference + (1 + self.reference) * bool(self.mixed) + apart

    @property
    def alone(self) -> int:
        """Positions of the largest micro-batch if each sequence lay down its whole prompt."""
        return sum(min(length, self.longest) for length in self.lengths[: self.micro_batch])

    def recomputed(self, layers: int) -> int:
        """Blocks whose activations are computed again."""
        if self.checkpointing == "none":
            return 0
        every = int(self.checkpointing.removeprefix("every ")) if self.checkpointing.startswith("every") else 1
        return -(-layers // every)

    def adapter_weights(self, shape: Shape) -> int:
        """Entries of the adapter's matrices."""
        layer = sum(self.rank * (one.inputs + one.outputs) + self.dora * one.outputs for one in self.targets)
        if self.experts:  # peft gives the fused gate and up projection twice the rank
            inner, hidden = shape.expert_intermediate, shape.hidden
            each = 2 * self.rank * (hidden + 2 * inner) + self.rank * (inner + hidden)
            layer += self.rank * (hidden + shape.experts) + shape.experts * each
        return self.adapted_layers * layer


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part, for each moment of a run. On CUDA, `total` counts what torch's allocator does not see too."""

    moments: dict[str, dict[str, int]] = field(default_factory=dict)
    device: str = "cuda"

    def at(self, moment: str) -> int:
        """Bytes of live tensors at a moment."""
        return sum(self.moments[moment].values())

    @property
    def moment(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=self.at)

    @property
    def tensors(self) -> int:
        """Peak of live tensors, which torch's allocator counts."""
        return self.at(self.moment)

    @property
    def total(self) -> int:
        """What the device must have free."""
        if self.device != "cuda":
            return self.tensors
        fixed = sum(self.moments["loaded"].values())
        return int(self.tensors + FRAGMENTATION * max(0, self.tensors - fixed)) + CUDA_CONTEXT


def plan_memory(shape: Shape, setting: Setting) -> Memory:
    """The peak of a run, by part and moment, from what is loaded to what is saved."""
    s = setting
    base = base_bytes(shape, s)
    trained = s.adapter_weights(shape) + s.whole
    adapter = 4 * trained
    states = int(optimizer_bytes(s.optimizer) * trained)
    gradients = 4 * trained
    if s.processes > 1:
        gradients *= 2  # DDP's buckets
    tokens = s.tokens
    scored = scored_tokens(s, tokens)
    kept = kept_bytes(shape, s) * tokens + mask_bytes(shape, s)
    if s.experts:  # peft adds the adapter to a copy of the experts' weights
        kept += 3 * shape.experts * shape.expert_intermediate * shape.hidden * s.itemsize
    inputs = tokens * shape.hidden * s.itemsize
    recomputed = s.recomputed(shape.layers)
    without = 0 if recomputed else s.frozen_below  # with checkpointing, peft lets gradients reach the embeddings
    held = (2 if s.checkpointing == "offload" else recomputed) * inputs + (shape.layers - recomputed - without) * kept
    again = kept if recomputed == shape.layers else 0  # else the last block is kept, and gone before another is redone
    casts = 2 * trained if s.itemsize == 2 and not s.fused else 0  # autocast's copies of the adapter
    held += head_bytes(shape, s, tokens)
    fixed = {"base": base, "adapter": adapter} | ({"frozen copy": adapter} if s.copied else {})
    fixed |= dict(s.generation.beside) if s.generation is not None else {}
    moments = {"loaded": dict(fixed)}
    running = {**fixed, "optimizer": states}
    if s.states and s.device == "cpu" and not recomputed:
        running["kept states"] = s.states
    earlier = gradients if s.accumulation > 1 else 0  # of the micro-batches before
    if s.generation is not None:
        # Those that follow others of the same update meet the gradients of these.
        before = running | {"gradients": earlier if s.steps < s.accumulation else 0}
        moments["generation"] = before | made_bytes(shape, s, s.generation)
        if s.readings:
            moments["reference"] = before | reading(shape, s, casts, scored)
    if s.reference:
        moments["reference"] = running | {"gradients": earlier} | reading(shape, s, held + casts, scored)
    moments["loss"] = running | {
        "gradients": earlier,
        "activations": held + casts,
        "loss": loss_bytes(shape, s, scored),
    }
    moments["backward"] = running | {
        "gradients": max(earlier, gradients // max(1, shape.layers)),
        "activations": held + again + casts,
        "transient": transient_bytes(shape, s, tokens),
    }
    moments["update"] = running | {"gradients": gradients}
    if s.eval_longest:
        rows = s.eval_batch or s.generated or s.micro_batch
        # Completions are made all at once and read in micro-batches.
        shown = (rows if s.generation is None else min(rows, s.micro_batch)) * s.eval_longest
        block, loss = transient_bytes(shape, s, shown), loss_bytes(shape, s, shown, backward=False)
        if s.generation is not None:
            block = prompt_bytes(shape, rows, s.eval_longest, s.itemsize, s.unfused, unpacked_bytes(shape, s))
        moments["evaluation"] = running | {"activations": shown * shape.hidden * s.itemsize + casts}
        moments["evaluation"] |= {"transient": block} if block > loss else {"loss": loss}
    moments["save"] = running | {"copies": adapter}
    return Memory(moments, s.device)


def made_bytes(shape: Shape, s: Setting, one: Generation) -> dict[str, int]:
    """What is held to make completions, for training or for evaluation."""
    completions = max(s.generated, s.eval_batch if s.eval_longest else 0)
    parts = making(shape, one, completions, s.itemsize, s.unfused, unpacked_bytes(shape, s))
    if s.device == "cpu" and s.itemsize == 2 and one.prompt > 1 and not one.elsewhere:
        # torch's batched product in 16 bit copies the output layer for each row (seen with 2.13, where prompts end).
        parts["output layers"] = completions * shape.vocab * shape.hidden * s.itemsize
    return parts


def scored_tokens(s: Setting, tokens: int) -> int:
    """Positions of so many tokens that go through the output layer."""
    shifted = max(1, tokens - s.micro_batch)  # the last token of a row predicts nothing
    if s.loss == "score":
        return tokens
    if not s.chunked_loss and s.device != "cuda":
        return shifted
    rows = s.micro_batch // 2 if s.prompts_scored else s.micro_batch
    return min(shifted, rows * (s.supervised + s.prompts_scored * s.longest))


def reading(shape: Shape, s: Setting, held: int, scored: int) -> dict[str, int]:
    """What the reference holds at once of a forward pass, besides what the policy holds for its backward.

    Args:
        held: Bytes of the policy's activations.
        scored: Positions in the policy's loss, whose states it keeps a copy of.
    """
    tokens = max(s.tokens, s.micro_batch * s.mixed)
    copied = scored * shape.hidden * s.itemsize * (s.device == "cuda" or s.micro_batch > 1)
    parts = {"activations": held + copied + tokens * shape.hidden * s.itemsize}
    block = transient_bytes(shape, s, tokens) + mask_bytes(shape, s)
    loss = loss_bytes(shape, s, scored_tokens(s, tokens), backward=False)
    return parts | ({"transient": block} if block > loss else {"loss": loss})


def base_bytes(shape: Shape, s: Setting) -> int:
    """The frozen weights."""
    linear = 0.0
    for one in shape.linears:
        if s.quantization == "none":
            linear += one.weights * s.itemsize
        elif s.quantization == "int8":
            linear += one.weights + 4 * one.outputs
        else:
            # Absmax of blocks of 64 in 8 bit, theirs of blocks of 256 in float32, and two code tables (QLoRA).
            blocks = -(-one.weights // 64)
            linear += one.weights / 2 + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
        linear += one.outputs * s.itemsize if one.bias else 0
    # A score stands in the output layer's place, untrained beside the one that peft trains.
    embeddings = (shape.vocab + 1) * shape.hidden if s.loss == "score" else shape.embeddings
    rest = shape.layers * shape.block_other + shape.other + embeddings
    return int(shape.layers * linear + rest * s.itemsize)


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
        # torch has no kernel here that drops: it keeps softmax, mask and what is left, and scaled queries and keys.
        return 4 * (3 * square * shape.heads + 2 * s.micro_batch * s.longest * shape.heads * shape.head_dim)
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


def loss_bytes(shape: Shape, s: Setting, scored: int, backward: bool = True) -> int:
    """The loss: some rows of logits and the hidden states' gradient; trl's: a tile of them with its temporaries."""
    if s.loss == "score":
        return scored * shape.hidden * s.itemsize * backward
    if s.chunked_loss and not shape.capped:
        exponents = 4 * s.described  # beside the logits, where their entropy is asked for
        chunks = -(-scored * (4 + exponents) * shape.vocab // LOGIT_BYTES[s.device])
        rows = min(scored, -(-scored // max(1, chunks)))
        # In 16 bit before, in float32, in 16 bit behind.
        logits = rows * shape.vocab * ((4 if s.itemsize == 4 else 8) + exponents)
        return logits + scored * shape.hidden * s.itemsize * (2 if backward else 1) + rows * shape.hidden * s.itemsize
    rows, words = min(scored, LOSS_TOKENS), min(shape.vocab, LOSS_WORDS)
    tile = rows * LOSS_WORDS * s.itemsize
    states = scored * shape.hidden * (4 + (s.itemsize if s.micro_batch > 1 else 0)) if backward else 0
    if s.device == "cuda":
        return tile + states
    return tile + int(((7.25 if backward else 3.25) + shape.capped) * 4 * rows * words) + states


def transient_bytes(shape: Shape, s: Setting, tokens: int) -> int:
    """The most that a block's backward holds at once besides what forward kept."""
    inner = max(shape.inner, shape.hidden)
    unpacked = unpacked_bytes(shape, s)
    size = tokens * s.itemsize * (inner + 2 * shape.hidden) + max(tokens * s.itemsize * inner, unpacked)
    if s.dora:
        largest = max((one.weights for one in shape.linears), default=0)
        size += 4 * (2 * largest + max((one.inputs**2 for one in s.targets), default=0))
    return size


def unpacked_bytes(shape: Shape, s: Setting) -> int:
    """The largest linear weight in the arithmetic's dtype, where it is quantized."""
    largest = max((one.weights for one in shape.linears), default=0)
    return largest * s.itemsize if s.quantization != "none" else 0
