"""What the plan knows of a model: its blocks' linear layers, and what else it holds and keeps."""

import re
from dataclasses import dataclass

from lorasmith.errors import ModelError


class UnknownArchitectureError(ModelError):
    """The plan does not know this architecture; a run goes on without a plan."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer of a block.

    Attributes:
        name: Path inside the block, such as self_attn.q_proj.
        reads: What it reads; layers that read the same share the tensor that autograd keeps.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    reads: str

    @property
    def leaf(self) -> str:
        """The last part of the name, which `target_modules` matches."""
        return self.name.rpartition(".")[2]

    @property
    def weights(self) -> int:
        """Entries of the weight matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Shape:
    """A model; of an encoder-decoder its encoder, with what is not of a block and with its decoder's blocks besides.

    Attributes:
        path: Where the blocks lie, such as model.layers.
        linears: The linear layers of one block, which adapters reach and bitsandbytes quantizes.
        block_other: Parameters of one block outside of them: norms, biases, routers, fused experts.
        other: Parameters outside of blocks and embeddings: the last norm, learned positions.
        kept_norms: Block-wide tensors of `hidden` that norms keep for backward, in float32 unless `plain_norms`.
        head_norms: Heads whose queries and keys go through a norm, counted per token: 0 without.
        sliced: Whether queries, keys and values are rotated slices of one projection, which is kept whole besides.
        gated: Whether the MLP multiplies a gate with a projection; else it applies a plain activation.
        activation_kept: Tensors as wide as the MLP that a plain activation keeps for backward.
        dropped_attention: Whether attention weights are dropped at random while training.
        dropped_hidden: Dropouts of a block's `hidden`-wide tensors.
        window: Sliding attention window of some layers, or None.
        active_experts: Experts a token goes through, 0 for a dense MLP.
        causal: Whether tokens see those before them alone.
        embedding: Width of the input embedding where it is another than `hidden`, else 0.
        dropped_inner: Dropouts of tensors as wide as the MLP.
        whole_projection: Whether queries and keys are made of slices of one projection, in which values stay.
        position_bias: Whether a number for each pair of positions is added to each head's scores.
        relative: Positions that each block projects for DeBERTa's scores, 0 without.
        relative_scores: Kinds of these scores, content to position and back.
        outside: Linear layers outside of blocks that adapters reach and bitsandbytes quantizes.
        pooled: Weights between the last block and the classifier of whole rows.
        pooled_tokens: Whether classifiers of tokens have them too.
        without_sdpa: Whether transformers has eager attention alone.
        never_quantized: Leaf names of linear layers that transformers leaves out of quantization.
        decoder: The blocks that write the target and read the source too; None but for an encoder-decoder.
    """

    kind: str
    path: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    positions: int | None
    linears: tuple[Linear, ...]
    block_other: int
    other: int
    kept_norms: int = 2
    head_norms: int = 0
    sliced: bool = False
    gated: bool = True
    plain_norms: bool = False
    activation_kept: int = 1
    dropped_attention: bool = False
    dropped_hidden: int = 0
    window: int | None = None
    experts: int = 0
    active_experts: int = 0
    expert_intermediate: int = 0
    causal: bool = True
    embedding: int = 0
    dropped_inner: int = 0
    whole_projection: bool = False
    position_bias: bool = False
    relative: int = 0
    relative_scores: int = 0
    outside: tuple[Linear, ...] = ()
    pooled: int = 0
    pooled_tokens: bool = False
    without_sdpa: bool = False
    never_quantized: tuple[str, ...] = ()
    decoder: "Shape | None" = None

    @property
    def attention(self) -> str:
        """The kernel that auto takes: sdpa, but for the architectures that have none in transformers."""
        return "eager" if self.capped or self.without_sdpa else "sdpa"

    @property
    def language_model(self) -> bool:
        """Whether it is a decoder alone."""
        return self.causal and self.decoder is None

    @property
    def capped(self) -> bool:
        """Whether attention scores and logits go through a soft cap."""
        return self.kind == "gemma2"

    @property
    def inner(self) -> int:
        """Width that a token has inside of the MLP, over all of its experts."""
        return max(self.intermediate, self.active_experts * self.expert_intermediate)

    @property
    def block_weights(self) -> int:
        """Entries of one block's linear weights."""
        return sum(linear.weights for linear in self.linears)

    @property
    def embeddings(self) -> int:
        """Entries of the input embedding, and of the output one where it is not tied."""
        return self.vocab * ((self.embedding or self.hidden) + (0 if self.tied else self.hidden))

    @property
    def blocks(self) -> int:
        """Parameters of all blocks, the decoder's included."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        own = self.layers * (self.block_weights + biases + self.block_other)
        return own + (self.decoder.blocks if self.decoder is not None else 0)

    @property
    def parameters(self) -> int:
        """All of them; of an encoder those below a task's head."""
        outside = sum(one.weights + one.bias * one.outputs for one in self.outside)
        return self.blocks + outside + self.embeddings + self.other

    def head_weights(self, labels: int, of_rows: bool) -> int:
        """Parameters of a classifier, with what stands between it and the last block.

        Args:
            of_rows: Whether it classifies whole rows, else tokens.
        """
        return self.hidden * labels + labels + self.pooled * (of_rows or self.pooled_tokens)

    @property
    def used_weights(self) -> int:
        """Entries of the linear weights that one token is multiplied with, the output layer left out."""
        active = self.active_experts * 3 * self.hidden * self.expert_intermediate
        return self.layers * (self.block_weights + active)

    def targets(self, wanted: str | list[str], excluded: str | list[str] | None = None) -> tuple[Linear, ...]:
        """The linear layers of a block that an adapter's `target_modules` name, by peft's rules."""

        def named(linear: Linear, patterns: str | list[str]) -> bool:
            full = f"{self.path}.0.{linear.name}"
            if isinstance(patterns, str):
                return patterns == "all-linear" or bool(re.fullmatch(patterns, full))
            return any(full == one or full.endswith(f".{one}") for one in patterns)

        kept = (linear for linear in self.linears if named(linear, wanted))
        return tuple(linear for linear in kept if not (excluded and named(linear, excluded)))


def activation_kept(name: str, gated: bool, dropped: bool) -> int:
    """Tensors as wide as the MLP that an activation keeps for backward, besides what its reader does.

    Args:
        name: transformers' name of it.
        gated: Whether a product with another tensor reads what it gives.
        dropped: Whether a dropout reads that, or the product.
    """
    if name == "relu":  # keeps what it gives
        return int(dropped and not gated)
    # transformers writes gelu_new out in steps, each of which is kept; the others are one operation.
    return 4 if name == "gelu_new" else 1
