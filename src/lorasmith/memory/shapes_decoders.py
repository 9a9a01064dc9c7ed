"""The shapes of decoders, from the values of their config.json."""

from typing import Any

from lorasmith.memory.shape import Linear, Shape, UnknownArchitectureError

# Whose four attention layers carry biases when `attention_bias` is set.
BIASED_ATTENTION = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "granite", "olmo2", "qwen3_moe")


def gated(kind: str, values: dict[str, Any]) -> Shape:
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


def gpt(kind: str, values: dict[str, Any]) -> Shape:
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
