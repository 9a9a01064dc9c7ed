"""Peak memory of a run, by part and by moment, in bytes.

The formulas count the tensors that transformers, peft, bitsandbytes and trl's loss hold, as read in their source
(transformers 5.23, peft 0.21, bitsandbytes 0.50, trl 1.16). benchmarks/memory_grid.py compares them with measurements.
"""

from dataclasses import dataclass, field

from lorasmith.memory.conditions import Setting
from lorasmith.memory.generation import Generation, making, prompt_bytes
from lorasmith.memory.kept import head_bytes, kept_bytes, mask_bytes, transient_bytes, unpacked_bytes
from lorasmith.memory.padded import Batch, eight_bit_inputs, evaluated, padded_moments, reading_bytes
from lorasmith.memory.shape import Shape
from lorasmith.memory.shares import Share, share_of
from lorasmith.memory.weights import GIB

LOSS_TOKENS, LOSS_WORDS = 4096, 32768  # tile of trl's chunked loss (trl.kernels.chunked_logprob)
LOGIT_BYTES = {"cpu": 160 << 20, "cuda": 256 << 20}  # of logits in float32 that speed.chunked_loss makes at once
CUDA_CONTEXT = GIB // 2  # CUDA's own memory and cuBLAS workspaces, outside of torch's allocator; typical, unmeasured
FRAGMENTATION = 0.03  # of the dynamic memory, lost between blocks of torch's CUDA allocator; assumed until measured


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part, for each moment of a run. On CUDA, `total` counts what torch's allocator does not see too.

    Attributes:
        outside: Bytes of a card that communication takes outside of the allocator.
        host: Bytes of the computer's memory that one process takes while it trains, by part; its device has its own.
        host_loading: Of it, what weights take while they are read.
    """

    moments: dict[str, dict[str, int]] = field(default_factory=dict)
    device: str = "cuda"
    outside: int = 0
    host: dict[str, int] = field(default_factory=dict)
    host_loading: int = 0

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
        return int(self.tensors + FRAGMENTATION * max(0, self.tensors - fixed)) + CUDA_CONTEXT + self.outside

    @property
    def host_total(self) -> int:
        """The computer's memory that one process takes at its worst."""
        process = self.host.get("process", 0)
        return max(sum(self.host.values()), process + self.host_loading)


def plan_memory(shape: Shape, setting: Setting) -> Memory:
    """The peak of a run, by part and moment, from what is loaded to what is saved."""
    s = setting
    share = share_of(shape, s)
    trained = s.adapter_weights(shape) + s.whole
    fixed = {"base": share.base, "adapter": share.adapter} | ({"frozen copy": share.adapter} if s.copied else {})
    fixed |= dict(s.generation.beside) if s.generation is not None else {}
    running = {**fixed, "optimizer": share.optimizer, **share.always}
    if s.states and s.device == "cpu" and not s.recomputed(shape.layers):
        running["kept states"] = s.states
    earlier = share.accumulated if s.accumulation > 1 else 0  # of the micro-batches before
    # Autocast's copies of the adapter; FSDP2 gathers it in 16 bit.
    casts = 2 * trained if s.itemsize == 2 and not s.fused and not share.gathered else 0
    if shape.language_model:
        found = _causal_moments(shape, s, earlier, casts)
    else:
        found = padded_moments(shape, s, unpacked_bytes(shape, s), casts)
        if s.eval_longest:
            parts = evaluated(shape, s, unpacked_bytes(shape, s))
            found["evaluation"] = parts | {"activations": parts.get("activations", 0) + casts}
    of = {"loss": earlier, "backward": max(earlier, share.gradients // max(1, shape.layers)) + share.backward}
    moments = {"loading": {"base": share.loading}} if share.loading > share.base else {}
    moments["loaded"] = dict(fixed)
    for name, parts in found.items():
        moments[name] = running | ({"gradients": of[name]} if name in of else {}) | parts
    if share.gathered:
        moments = _with_gathered(moments, share, running, earlier)
    last = {"evaluation": moments.pop("evaluation")} if "evaluation" in moments else {}
    moments |= {"update": running | {"gradients": share.gradients}, **last, "save": running | {"copies": 4 * trained}}
    return Memory(moments, s.device, share.outside, share.host, share.host_loading)


def _with_gathered(
    moments: dict[str, dict[str, int]], share: Share, running: dict[str, int], earlier: int
) -> dict[str, dict[str, int]]:
    """The moments with the weights of other processes, and that of the worst fetch of them."""
    full = moments["loss"].get("activations", 0)
    before, behind = share.gathered["start"], share.gathered["gather"]
    held = (0, before) if before > full + behind else (full, behind)
    parts = {"gradients": earlier, "activations": held[0], "gathered": held[1]}
    found = {}
    for name, one in moments.items():
        if name == "loss":
            found["gather"] = running | parts
        fetched = share.gathered.get(name, max(share.gathered["loss"], share.gathered["backward"]))
        found[name] = one if name in ("loading", "loaded") else one | {"gathered": fetched}
    return found


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
