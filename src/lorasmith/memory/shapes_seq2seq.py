"""The shapes of encoder-decoders, from the values of their config.json."""

from dataclasses import replace
from typing import Any

from lorasmith.memory.shape import Linear, Shape, activation_kept

ATTENTION = {"t5": ("q", "k", "v", "o"), "bart": ("q_proj", "k_proj", "v_proj", "out_proj")}
NORMS = {"bart": 1, "mbart": 2, "marian": 0}  # of a stack, outside of its blocks


def _attention(name: str, names: tuple[str, ...], hidden: int, wide: int, biased: bool, source: bool) -> list[Linear]:
    """The four layers of an attention, which takes keys and values from the source or from what it writes."""
    reads = ("cross", "source", "source", "crossed") if source else ("block", "block", "block", "attention")
    sizes = ((hidden, wide),) * 3 + ((wide, hidden),)
    each = zip(names, sizes, reads, strict=True)
    return [Linear(f"{name}.{one}", *size, biased, read) for one, size, read in each]


def t5(kind: str, values: dict[str, Any]) -> Shape:
    """T5 and its relatives: norms before, a number for each distance on the scores, no biases."""
    hidden, heads, dim, inner = values["d_model"], values["num_heads"], values["d_kv"], values["d_ff"]
    layers = values["num_layers"]
    activation = str(values["feed_forward_proj"])
    gated = activation.startswith("gated")
    applied = "gelu_new" if activation == "gated-gelu" else activation.removeprefix("gated-")  # as T5Config has it
    wide, dropped = heads * dim, bool(values["dropout_rate"])
    distances = values["relative_attention_num_buckets"] * heads

    def linears(decodes: bool) -> tuple[Linear, ...]:
        found = _attention("layer.0.SelfAttention", ATTENTION["t5"], hidden, wide, False, False)
        if decodes:
            found += _attention("layer.1.EncDecAttention", ATTENTION["t5"], hidden, wide, False, True)
        mlp = f"layer.{1 + decodes}.DenseReluDense"
        names = ("wi_0", "wi_1") if gated else ("wi",)
        found += [Linear(f"{mlp}.{one}", hidden, inner, False, "mlp") for one in names]
        return (*found, Linear(f"{mlp}.wo", inner, hidden, False, "product"))

    every = distances if kind == "umt5" else 0  # in each block, else in the first of each stack
    shape = Shape(
        kind=kind,
        path="encoder.block",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=dim,
        intermediate=inner,
        vocab=values["vocab_size"],
        tied=True,  # whatever the config says (transformers' T5Config)
        positions=None,
        linears=linears(False),
        block_other=2 * hidden + every,
        other=2 * hidden + (0 if every else 2 * distances),
        gated=gated,
        activation_kept=activation_kept(applied, gated, dropped),
        dropped_attention=dropped,
        dropped_hidden=2 * dropped,
        causal=False,
        dropped_inner=int(dropped),
        position_bias=True,
        never_quantized=("wo",),
    )
    decoder = replace(
        shape,
        path="decoder.block",
        layers=values.get("num_decoder_layers") or layers,
        linears=linears(True),
        block_other=3 * hidden + every,
        kept_norms=3,
        dropped_hidden=3 * dropped,
        causal=True,
    )
    return replace(shape, decoder=decoder)


def bart(kind: str, values: dict[str, Any]) -> Shape:
    """BART, mBART and Marian: layer norms, biases, positions of their own."""
    return replace(_stack(kind, values, False), decoder=_stack(kind, values, True))


def _stack(kind: str, values: dict[str, Any], decodes: bool) -> Shape:
    """One of the two stacks; the encoder's has all that is outside of both stacks' blocks."""
    side = "decoder" if decodes else "encoder"
    hidden, heads, inner = values["d_model"], values[f"{side}_attention_heads"], values[f"{side}_ffn_dim"]
    vocab = values.get("decoder_vocab_size") or values["vocab_size"]
    apart = kind == "marian" and not values["share_encoder_decoder_embeddings"]
    # Learned positions begin two rows further down; Marian's are fixed.
    rows = values["max_position_embeddings"] + (0 if kind == "marian" else 2)
    linears = _attention("self_attn", ATTENTION["bart"], hidden, hidden, True, False)
    if decodes:
        linears += _attention("encoder_attn", ATTENTION["bart"], hidden, hidden, True, True)
    linears += [Linear("fc1", hidden, inner, True, "mlp"), Linear("fc2", inner, hidden, True, "product")]
    return Shape(
        kind=kind,
        path=f"model.{side}.layers",
        layers=values[f"{side}_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=inner,
        vocab=vocab,
        tied=bool(values.get("tie_word_embeddings", True)),
        positions=values["max_position_embeddings"],
        linears=tuple(linears),
        block_other=(6 if decodes else 4) * hidden,
        other=2 * (rows + 2 * NORMS[kind]) * hidden + apart * values["vocab_size"] * hidden,
        kept_norms=3 if decodes else 2,
        gated=False,
        plain_norms=True,
        activation_kept=activation_kept(values["activation_function"], False, bool(values["activation_dropout"])),
        dropped_attention=bool(values["attention_dropout"]),
        dropped_hidden=(3 if decodes else 2) * bool(values["dropout"]),
        causal=decodes,
        dropped_inner=int(bool(values["activation_dropout"])),
    )
