"""Peak memory of a run, by part and by moment, in bytes.

The formulas count the tensors that transformers, peft, bitsandbytes and trl's loss hold, as read in their source
(transformers 5.23, peft 0.21, bitsandbytes 0.50, trl 1.16). benchmarks/memory_grid.py compares them with measurements.
"""

from dataclasses import dataclass, field

from lorasmith.memory.conditions import Setting
from lorasmith.memory.generation import Generation, making, prompt_bytes
from lorasmith.memory.kept import head_bytes, kept_bytes, mask_bytes, transient_bytes, unpacked_bytes
from lorasmith.memory.padded import Batch, eight_bit_inputs, evaluated, padded_moments, reading_bytes
from lorasmith.memory.shape import Linear, Shape

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
    trained = s.adapter_weights(shape) + s.whole
    adapter, gradients = 4 * trained, 4 * trained
    if s.processes > 1:
        gradients *= 2  # DDP's buckets
    fixed = {"base": base_bytes(shape, s), "adapter": adapter} | ({"frozen copy": adapter} if s.copied else {})
    fixed |= dict(s.generation.beside) if s.generation is not None else {}
    running = {**fixed, "optimizer": int(optimizer_bytes(s.optimizer) * trained)}
    if s.states and s.device == "cpu" and not s.recomputed(shape.layers):
        running["kept states"] = s.states
    earlier = gradients if s.accumulation > 1 else 0  # of the micro-batches before
    casts = 2 * trained if s.itemsize == 2 and not s.fused else 0  # autocast's copies of the adapter
    if shape.language_model:
        found = _causal_moments(shape, s, earlier, casts)
    else:
        found = padded_moments(shape, s, unpacked_bytes(shape, s), casts)
        if s.eval_longest:
            parts = evaluated(shape, s, unpacked_bytes(shape, s))
            found["evaluation"] = parts | {"activations": parts.get("activations", 0) + casts}
    of = {"loss": earlier, "backward": max(earlier, gradients // max(1, shape.layers))}
    moments = {"loaded": dict(fixed)}
    for name, parts in found.items():
        moments[name] = running | ({"gradients": of[name]} if name in of else {}) | parts
    last = {"evaluation": moments.pop("evaluation")} if "evaluation" in moments else {}
    moments |= {"update": running | {"gradients": gradients}, **last, "save": running | {"copies": adapter}}
    return Memory(moments, s.device)


def _causal_moments(shape: Shape, s: Setting, earlier: int, casts: int) -> dict[str, dict[str, int]]:
    """What a decoder holds besides weights and optimizer, at each moment.

    Args:
        earlier: Gradients of the micro-batches before.
        casts: Bytes of autocast's copies of the adapter.
    """
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
    held += head_bytes(shape, s, tokens)
    moments: dict[str, dict[str, int]] = {}
    if s.generation is not None:
        # Those that follow others of the same update meet the gradients of these.
        before = {"gradients": earlier if s.steps < s.accumulation else 0}
        moments["generation"] = before | made_bytes(shape, s, s.generation)
        if s.readings:
            moments["reference"] = before | reading(shape, s, casts, scored)
    if s.reference:
        moments["reference"] = {"gradients": earlier} | reading(shape, s, held + casts, scored)
    moments["loss"] = {"activations": held + casts, "loss": loss_bytes(shape, s, scored)}
    gone = head_bytes(shape, s, tokens) if s.loss == "classes" else 0  # a classifier's own part, by then
    again += eight_bit_inputs(shape, s, Batch(1, tokens))
    moments["backward"] = {"activations": held - gone + again + casts, "transient": transient_bytes(shape, s, tokens)}
    if s.eval_longest:
        rows = s.eval_batch or s.generated or s.micro_batch
        # Completions are made all at once and read in micro-batches.
        shown = (rows if s.generation is None else min(rows, s.micro_batch)) * s.eval_longest
        block, loss = transient_bytes(shape, s, shown), loss_bytes(shape, s, shown, backward=False)
        if s.loss == "classes":
            block = reading_bytes(shape, s, Batch(rows, s.eval_longest), unpacked_bytes(shape, s))
        elif s.generation is not None:
            block = prompt_bytes(shape, rows, s.eval_longest, s.itemsize, s.unfused, unpacked_bytes(shape, s))
        moments["evaluation"] = {"activations": shown * shape.hidden * s.itemsize + casts}
        moments["evaluation"] |= {"transient": block} if block > loss else {"loss": loss}
    return moments


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
    if s.loss in ("score", "classes"):
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
    bias = one.outputs * s.itemsize if one.bias else 0
    if s.quantization == "none" or one.leaf in never_quantized:
        return bias + one.weights * s.itemsize
    if s.quantization == "int8":
        return bias + one.weights + 4 * one.outputs
    # Absmax of blocks of 64 in 8 bit, theirs of blocks of 256 in float32, and two code tables (QLoRA).
    blocks = -(-one.weights // 64)
    return bias + one.weights / 2 + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


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


def loss_bytes(shape: Shape, s: Setting, scored: int, backward: bool = True) -> int:
    """The loss: some rows of logits and the hidden states' gradient; trl's: a tile of them with its temporaries."""
    if s.loss in ("score", "classes"):
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
