"""What memory depends on besides the model's shape."""

from dataclasses import dataclass

from lorasmith.engine import DDP, SINGLE, Engine
from lorasmith.memory.generation import Generation
from lorasmith.memory.shape import Linear, Shape


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
        loss: tiles, score, classes or words, as `methods.Method` has them.
        prompts_scored: Whether all tokens of every other row are in the loss, not the trained ones alone.
        described: Whether the entropy of each scored position is wanted too.
        reference: Whether a reference reads the batch too, without gradients.
        mixed: Tokens of the longest answer behind another row's prompt, where those are read besides; else 0.
        copied: Whether a frozen copy of the adapter is kept, as the reference.
        checkpointing: none, all, offload (layer inputs in the computer's memory), or every N (of the blocks, one in N).
        processes: Over which gradients are averaged, each with rows of its own.
        generation: How the completions that are trained on are made, if they are.
        target: Tokens of the longest target that a decoder learns to write; 0: there is none.
        target_share: Tokens of a mean target for each of a mean source.
        eval_target: Tokens of the longest that is evaluated on, 0 without.
        beams: Targets of a row that an evaluation writes side by side; 0: it writes none.
        decoder_targets: Linear layers of a decoder's block that carry the adapter, in an encoder-decoder.
        outside: Linear layers outside of blocks that carry it.
        head: Weights of the head under its trained copy.
        engine: How processes share the model; None: DDP over `processes`.
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
    target: int = 0
    target_share: float = 0.0
    eval_target: int = 0
    beams: int = 0
    decoder_targets: tuple[Linear, ...] = ()
    outside: tuple[Linear, ...] = ()
    head: int = 0
    engine: Engine | None = None

    @property
    def shared(self) -> Engine:
        """How processes share the model."""
        return self.engine or Engine(DDP if self.processes > 1 else SINGLE, self.processes, cpu=self.device == "cpu")

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
        layer = self._weights(self.targets)
        if self.experts:  # peft gives the fused gate and up projection twice the rank
            inner, hidden = shape.expert_intermediate, shape.hidden
            each = 2 * self.rank * (hidden + 2 * inner) + self.rank * (inner + hidden)
            layer += self.rank * (hidden + shape.experts) + shape.experts * each
        return self.adapted_layers * layer + self._weights(self.outside) + self.decoder_adapter_weights(shape)

    def decoder_adapter_weights(self, shape: Shape) -> int:
        """Those of them that an encoder-decoder has on the blocks that write its target."""
        return 0 if shape.decoder is None else shape.decoder.layers * self._weights(self.decoder_targets)

    def _weights(self, linears: tuple[Linear, ...]) -> int:
        return sum(self.rank * (one.inputs + one.outputs) + self.dora * one.outputs for one in linears)
