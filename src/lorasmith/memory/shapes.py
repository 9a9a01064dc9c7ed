"""The shapes of a model, from its config.json: every linear layer, norm, expert and embedding, exactly."""

from typing import Any

from lorasmith import upstream
from lorasmith.errors import ModelError
from lorasmith.memory.shape import Linear, Shape, UnknownArchitectureError
from lorasmith.memory.shapes_decoders import gated, gpt
from lorasmith.memory.shapes_encoders import encoder
from lorasmith.memory.shapes_seq2seq import bart, t5

__all__ = [
    "DECODERS",
    "ENCODERS",
    "ENCODER_DECODERS",
    "KNOWN",
    "Linear",
    "Shape",
    "UnknownArchitectureError",
    "read_shape",
]

# transformers' folder and config class of each architecture that the plan knows.
DECODERS = {
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
ENCODERS = {
    "bert": ("bert", "BertConfig"),
    "roberta": ("roberta", "RobertaConfig"),
    "xlm-roberta": ("xlm_roberta", "XLMRobertaConfig"),
    "distilbert": ("distilbert", "DistilBertConfig"),
    "electra": ("electra", "ElectraConfig"),
    "deberta-v2": ("deberta_v2", "DebertaV2Config"),
    "modernbert": ("modernbert", "ModernBertConfig"),
}
ENCODER_DECODERS = {
    "t5": ("t5", "T5Config"),
    "mt5": ("mt5", "MT5Config"),
    "umt5": ("umt5", "UMT5Config"),
    "bart": ("bart", "BartConfig"),
    "mbart": ("mbart", "MBartConfig"),
    "marian": ("marian", "MarianConfig"),
}
KNOWN = DECODERS | ENCODERS | ENCODER_DECODERS


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
        shape = _shape(kind, values)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{source or 'config.json'}: not a whole {kind} config ({error}).") from error
    if min(shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab) < 1:
        raise ModelError(f"{source or 'config.json'}: sizes below 1 in this {kind} config.")
    return shape


def _shape(kind: str, values: dict[str, Any]) -> Shape:
    if kind in ENCODERS:
        return encoder(kind, values)
    if kind in ENCODER_DECODERS:
        return t5(kind, values) if kind.endswith("t5") else bart(kind, values)
    return gpt(kind, values) if kind in ("gpt2", "gpt_neox", "starcoder2") else gated(kind, values)
