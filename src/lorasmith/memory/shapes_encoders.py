"""The shapes of encoders, from the values of their config.json."""

from typing import Any

from lorasmith.memory.shape import Linear, Shape, UnknownArchitectureError, activation_kept

# Their names of queries, keys, values, the attention's output, and the MLP's two layers.
NAMES = {
    "bert": ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense", "intermediate.dense", "output.dense"),
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
                   "ffn.lin1", "ffn.lin2"),
    "deberta-v2": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj",
                   "attention.output.dense", "intermediate.dense", "output.dense"),
}  # fmt: skip
PATHS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "xlm-roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "deberta-v2": "deberta.encoder.layer",
    "modernbert": "model.layers",
}
# What DistilBERT calls what the others call so.
DISTILBERT = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
}


def encoder(kind: str, values: dict[str, Any]) -> Shape:
    """BERT and its relatives: every token sees all others."""
    if kind == "modernbert":
        return _modernbert(values)
    if kind == "distilbert":
        values = values | {name: values[own] for name, own in DISTILBERT.items()} | {"type_vocab_size": 0}
    return _bert(kind, values)


def _bert(kind: str, values: dict[str, Any]) -> Shape:
    """Norms behind sums, learned positions, a plain MLP, biases everywhere."""
    hidden, heads, inner = values["hidden_size"], values["num_attention_heads"], values["intermediate_size"]
    dim = hidden // heads
    wide, narrow = heads * dim, values.get("embedding_size") or hidden
    names = NAMES.get(kind, NAMES["bert"])
    linears = [Linear(name, hidden, wide, True, "block") for name in names[:3]]
    linears.append(Linear(names[3], wide, hidden, True, "attention"))
    linears += [Linear(names[4], hidden, inner, True, "mlp"), Linear(names[5], inner, hidden, True, "product")]
    rows = positions = values["max_position_embeddings"]
    relative, scores, other = 0, 0, 2 * narrow
    outside: tuple[Linear, ...] = ()
    if kind == "deberta-v2":
        rows = positions if values["position_biased_input"] else 0
        relative, scores, more = _relative(values, linears)
        other = 2 * hidden + more + _convolution(values)
    if narrow != hidden:
        name, biased = ("embeddings.embed_proj", False) if kind == "deberta-v2" else ("embeddings_project", True)
        outside = (Linear(name, narrow, hidden, biased, "embedding"),)
    # RoBERTa counts positions from behind its padding id.
    skipped = int(values["pad_token_id"] or 0) + 1 if kind in ("roberta", "xlm-roberta") else 0
    return Shape(
        kind=kind,
        path=PATHS[kind],
        layers=values["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        intermediate=inner,
        vocab=values["vocab_size"],
        tied=True,
        positions=positions - skipped,
        linears=tuple(linears),
        block_other=4 * hidden,
        other=other + (rows + values["type_vocab_size"]) * narrow,
        gated=False,
        plain_norms=True,
        activation_kept=activation_kept(values["hidden_act"], False, False),
        dropped_attention=bool(values["attention_probs_dropout_prob"]),
        dropped_hidden=(1 if kind == "distilbert" else 2) * bool(values["hidden_dropout_prob"]),
        causal=False,
        embedding=narrow if narrow != hidden else 0,
        relative=relative,
        relative_scores=scores,
        outside=outside,
        pooled=hidden * hidden + hidden,
        without_sdpa=kind == "deberta-v2",
    )


def _relative(values: dict[str, Any], linears: list[Linear]) -> tuple[int, int, int]:
    """DeBERTa's relative positions: how many each block projects, in how many kinds of scores, and their weights.

    Projections of their own, where they are not shared with the tokens' keys and queries, are added to `linears`.
    """
    if not values["relative_attention"]:
        return 0, 0, 0
    hidden = values["hidden_size"]
    furthest = values["max_relative_positions"]
    furthest = furthest if furthest >= 1 else values["max_position_embeddings"]
    buckets = int(values.get("position_buckets") or -1)
    positions = 2 * (buckets if buckets > 0 else furthest)
    kinds = values["pos_att_type"] or []
    kinds = [one.strip() for one in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    if not values.get("share_att_key"):
        own = {"c2p": "attention.self.pos_key_proj", "p2c": "attention.self.pos_query_proj"}
        linears += [Linear(own[one], hidden, hidden, True, "positions") for one in own if one in kinds]
    normed = "layer_norm" in str(values.get("norm_rel_ebd", "none")).lower()
    # The table has two positions for each of the furthest, or of the buckets.
    return positions, len(kinds), positions * hidden + 2 * hidden * normed


def _convolution(values: dict[str, Any]) -> int:
    """Parameters of the convolution beside DeBERTa's first block, if it has one, with its norm."""
    hidden, width = values["hidden_size"], int(values.get("conv_kernel_size") or 0)
    return width and hidden * (hidden // int(values.get("conv_groups") or 1)) * width + 3 * hidden


def _modernbert(values: dict[str, Any]) -> Shape:
    """Norms before, rotated positions, a gated MLP, windows in most blocks."""
    hidden, heads, inner = values["hidden_size"], values["num_attention_heads"], values["intermediate_size"]
    biased, mlp = bool(values["attention_bias"]), bool(values["mlp_bias"])
    if hidden % heads:
        raise UnknownArchitectureError(f"the plan does not know a `modernbert` of {heads} heads of {hidden}.")
    norm = hidden * (2 if values["norm_bias"] else 1)
    linears = (
        Linear("attn.Wqkv", hidden, 3 * hidden, biased, "block"),
        Linear("attn.Wo", hidden, hidden, biased, "attention"),
        Linear("mlp.Wi", hidden, 2 * inner, mlp, "mlp"),
        Linear("mlp.Wo", inner, hidden, mlp, "product"),
    )
    return Shape(
        kind="modernbert",
        path=PATHS["modernbert"],
        layers=values["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=inner,
        vocab=values["vocab_size"],
        tied=True,
        positions=values["max_position_embeddings"],
        linears=linears,
        block_other=2 * norm,
        other=norm,  # the embeddings' and the last one, less the one that the first block goes without
        gated=True,
        plain_norms=True,
        dropped_attention=bool(values["attention_dropout"]),
        dropped_hidden=int(bool(values["attention_dropout"])),
        window=values["local_attention"],
        causal=False,
        dropped_inner=int(bool(values["mlp_dropout"])),
        whole_projection=True,
        pooled=hidden * hidden + hidden * bool(values["classifier_bias"]) + norm,
        pooled_tokens=True,
    )
