"""The shapes of a decoder, from its config.json: every linear layer, norm, expert and embedding, exactly."""

import re
from dataclasses import dataclass
from typing import Any

from lorasmith import upstream
from lorasmith.errors import ModelError

# transformers' folder and config class of each architecture that the plan knows.
KNOWN = {
    "llama": ("llama", "LlamaConfig"),
    "mistral": ("mistral", "MistralConfig"),
    "ministral": ("ministral", "MinistralConfig"),
    "qwen2": ("qwen2", "Qwen2Config"),
    "qwen3": ("qwen3", "Qwen3Config"),
    "gemma": ("gemma", "GemmaConfig"),
    "gemma2": ("gemma2", "Gemma2Config"),
    "gemma3_text": ("gemma3", "Gemma3TextConfig"),
    "smollm3": ("smollm3", "SmolLM3Config"),
    "phi3": ("phi3", "Phi3Config"),
    "granite": ("granite", "GraniteConfig"),
    "olmo2": ("olmo2", "Olmo2Config"),
    "starcoder2": ("starcoder2", "Starcoder2Config"),
    "gpt2": ("gpt2", "GPT2Config"),
    "gpt_neox": ("gpt_neox", "GPTNeoXConfig"),
    "mixtral": ("mixtral", "MixtralConfig"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeConfig"),
}
# Whose four attention layers carry biases when `attention_bias` is set.
BIASED_ATTENTION = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "olmo2", "qwen3_moe")


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
    """A decoder.

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

    @property
    def attention(self) -> str:
        """The kernel that auto takes: sdpa, but for the architecture that has none in transformers."""
        return "eager" if self.capped else "sdpa"

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
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        return self.layers * (self.block_weights + biases + self.block_other) + self.embeddings + self.other

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


def read_shape(config: dict[str, Any], source: str = "") -> Shape:
    """The shapes that a config.json stands for.

    Args:
        config: The file's content; what it leaves out has transformers' default.
        source: Where it was found, for the reader.

    Raises:
        UnknownArchitectureError: If the plan does not know the architecture.
        ModelError: If the file does not hold together.
    """
    kind = str(config.get("model_type"))
    if kind not in KNOWN:
        raise UnknownArchitectureError(f"{source or 'config.json'}: the plan does not know `{kind}` models.")
    folder, name = KNOWN[kind]
    fields = upstream.config_fields((f"transformers.models.{folder}.configuration_{folder}", name))
    values = {key: one.default for key, one in fields.items()} | config
    # transformers saves this one under a common name, whatever the architecture calls it.
    values["experts"] = config.get("num_local_experts") or config.get("num_experts") or values.get("num_local_experts")
    values["experts"] = values["experts"] or values.get("num_experts") or 0
    try:
        shape = _gpt(kind, values) if kind in ("gpt2", "gpt_neox", "starcoder2") else _gated(kind, values)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{source or 'config.json'}: not a whole {kind} config ({error}).") from error
    if min(shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab) < 1:
        raise ModelError(f"{source or 'config.json'}: sizes below 1 in this {kind} config.")
    return shape


def _gated(kind: str, values: dict[str, Any]) -> Shape:
    """Llama and its many relatives: RMS norms, grouped queries, a gated MLP."""
    hidden, heads, inner = values["hidden_size"], values["num_attention_heads"], values["intermediate_size"]
    kv = values.get("num_key_value_heads") or heads
    dim = values.get("head_dim") or hidden // heads
    experts = int(values["experts"])
    expert_inner = int(values.get("moe_intermediate_size") or inner) if experts else 0
    if experts and (values.get("decoder_sparse_step", 1) != 1 or values.get("mlp_only_layers")):
        raise UnknownArchitectureError(f"the plan does not know `{kind}` models with dense layers between.")
    if kind == "phi3":
        rope_heads = heads + 2 * kv
        linears = [
            Linear("self_attn.qkv_proj", hidden, rope_heads * dim, False, "block"),
            Linear("self_attn.o_proj", heads * dim, hidden, False, "attention"),
            Linear("mlp.gate_up_proj", hidden, 2 * inner, False, "mlp"),
            Linear("mlp.down_proj", inner, hidden, False, "product"),
        ]
    else:
        biased = bool(values.get("attention_bias")) and kind in BIASED_ATTENTION
        ins, out = (True, False) if kind == "qwen2" else (biased, biased)
        linears = [
            Linear("self_attn.q_proj", hidden, heads * dim, ins, "block"),
            Linear("self_attn.k_proj", hidden, kv * dim, ins, "block"),
            Linear("self_attn.v_proj", hidden, kv * dim, ins, "block"),
            Linear("self_attn.o_proj", heads * dim, hidden, out, "attention"),
        ]
        if not experts:
            bias = bool(values.get("mlp_bias"))
            linears += [
                Linear("mlp.gate_proj", hidden, inner, bias, "mlp"),
                Linear("mlp.up_proj", hidden, inner, bias, "mlp"),
                Linear("mlp.down_proj", inner, hidden, bias, "product"),
            ]
    norms = 4 if kind in ("gemma2", "gemma3_text") else 2
    block_other = norms * hidden + experts * hidden + experts * 3 * hidden * expert_inner
    if kind in ("qwen3", "gemma3_text", "qwen3_moe"):
        block_other += 2 * dim
    elif kind == "olmo2":
        block_other += (heads + kv) * dim
    windowed = "sliding_attention" in (values.get("layer_types") or []) or kind in ("gemma2", "gemma3_text")
    windowed = windowed or (kind in ("mistral", "ministral", "mixtral") and "sliding_window" in values)
    return Shape(
        kind=kind,
        path="model.layers",
        layers=values["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=kv,
        head_dim=dim,
        intermediate=0 if experts else inner,
        vocab=values["vocab_size"],
        tied=bool(values.get("tie_word_embeddings")),
        positions=values.get("max_position_embeddings"),
        linears=tuple(linears),
        block_other=block_other,
        other=hidden,
        kept_norms=norms,
        head_norms=heads + kv if kind in ("qwen3", "gemma3_text", "qwen3_moe", "olmo2") else 0,
        window=values.get("sliding_window") if windowed else None,
        sliced=kind == "phi3",
        dropped_attention=bool(values.get("attention_dropout")),
        experts=experts,
        active_experts=int(values.get("num_experts_per_tok") or 0) if experts else 0,
        expert_intermediate=expert_inner,
    )


def _gpt(kind: str, values: dict[str, Any]) -> Shape:
    """GPT-2 and its relatives: layer norms, a plain MLP."""
    attention: tuple[tuple[str, ...], str]
    if kind == "gpt2":
        hidden, heads, layers = values["n_embd"], values["n_head"], values["n_layer"]
        inner, positions = values.get("n_inner") or 4 * hidden, values["n_positions"]
        attention, mlp, path = (("attn.c_attn",), "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj"), "transformer.h"
    else:
        hidden, heads, layers = values["hidden_size"], values["num_attention_heads"], values["num_hidden_layers"]
        inner, positions = values["intermediate_size"], values["max_position_embeddings"]
        if kind == "gpt_neox":
            attention, path = (("attention.query_key_value",), "attention.dense"), "gpt_neox.layers"
            mlp = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        else:
            attention = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj")
            mlp, path = ("mlp.c_fc", "mlp.c_proj"), "model.layers"
    kv = (values.get("num_key_value_heads") or heads) if kind == "starcoder2" else heads
    dim = hidden // heads
    biased = bool(values.get("attention_bias", True) if kind == "gpt_neox" else values.get("use_bias", True))
    mlp_biased = True if kind == "gpt_neox" else biased
    widths = (heads * dim, kv * dim, kv * dim) if len(attention[0]) == 3 else (3 * hidden,)
    linears = [Linear(name, hidden, width, biased, "block") for name, width in zip(attention[0], widths, strict=True)]
    linears.append(Linear(attention[1], hidden, hidden, biased, "attention"))
    linears.append(Linear(mlp[0], hidden, inner, mlp_biased, "mlp"))
    linears.append(Linear(mlp[1], inner, hidden, mlp_biased, "product"))
    return Shape(
        kind=kind,
        path=path,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv,
        head_dim=dim,
        intermediate=inner,
        vocab=values["vocab_size"],
        tied=bool(values.get("tie_word_embeddings")),
        positions=positions,
        linears=tuple(linears),
        block_other=4 * hidden,
        other=2 * hidden + (positions * hidden if kind == "gpt2" else 0),
        kept_norms=1 if kind == "gpt_neox" and values.get("use_parallel_residual", True) else 2,
        sliced=kind == "gpt_neox",
        gated=False,
        plain_norms=True,
        # transformers writes gelu_new out in steps, each of which is kept; the others are one operation.
        activation_kept=4 if (values.get("activation_function") or values.get("hidden_act")) == "gelu_new" else 1,
        dropped_attention=bool(values.get("attn_pdrop") or values.get("attention_dropout")),
        dropped_hidden=2
        * bool(values.get("resid_pdrop") or values.get("hidden_dropout") or values.get("residual_dropout")),
        window=values.get("sliding_window") if kind == "starcoder2" else None,
    )
