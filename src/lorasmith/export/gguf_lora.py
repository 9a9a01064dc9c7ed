"""A LoRA adapter as a GGUF file beside its base model's, with every module's scale folded in."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from lorasmith.errors import ModelError
from lorasmith.export.files import beside, read_json
from lorasmith.export.gguf import older_names
from lorasmith.export.llama_cpp import LORA_SCRIPT, run_converter

KINDS = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 2}  # bytes of a weight, at most
# What a GGUF adapter has no words for, and the converter leaves out or fails at.
WITHOUT_WORDS = {
    "use_dora": "DoRA's magnitudes",
    "modules_to_save": "whole modules",
    "trainable_token_indices": "trained tokens",
    "lora_bias": "biases",
    "target_parameters": "LoRA on parameters",
    "layer_replication": "replicated layers",
    "use_qalora": "QALoRA's pooling",
    "fan_in_fan_out": "transposed layers",
    "alora_invocation_tokens": "an activation by tokens",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "routed adapters",
    "kasa_config": "singular values",
}
CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga")  # initializations that move a part of the base into the adapter


def to_gguf_lora(adapter: Path, base: Path, out: Path, converter: Path, kind: str = "f32") -> Path:
    """Convert a LoRA adapter to a GGUF file that llama.cpp loads onto its base model's GGUF.

    llama.cpp scales every module by alpha / rank with one alpha, and its converter keeps nothing else: rsLoRA and
    alpha_pattern come out wrong without a word. So each module's own scale is multiplied into its lora_B first.

    Args:
        base: The base model's folder; only its config is read.
        converter: The folder that `llama_cpp.converter` gives.

    Raises:
        ModelError: If the adapter holds more than scaled pairs of matrices; it has to be merged then.
    """
    if kind not in KINDS:
        raise ModelError(f"GGUF kind `{kind}` is unknown for an adapter; expected one of: {', '.join(KINDS)}.")
    weights, settings = folded(adapter)
    config = read_json(base / "config.json")
    size = sum(tensor.numel() for tensor in weights.values())
    with beside(out, size * (4 + KINDS[kind]) + (4 << 20)) as place:
        from safetensors.torch import save_file

        lora, model = place.parent / "adapter", place.parent / "base"
        lora.mkdir()
        model.mkdir()
        save_file(weights, lora / "adapter_model.safetensors", metadata={"format": "pt"})
        (lora / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        (model / "config.json").write_text(json.dumps(older_names(config)), encoding="utf-8")
        words = ["--outtype", kind, "--base", str(model), str(lora)]
        run_converter(converter, LORA_SCRIPT, adapter, place, words, None)
    return out


def folded(adapter: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An adapter's weights with each module's scale in its lora_B, and settings under which llama.cpp adds none.

    Returns:
        The tensors, float32 for lora_B, and adapter_config.json with alpha equal to the rank.

    Raises:
        ModelError: If it is no LoRA, or holds what a GGUF adapter cannot.
    """
    from peft.utils.other import get_pattern_key
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = read_json(adapter / "adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{adapter}: a {settings.get('peft_type')} adapter has no GGUF. Merge it instead.")
    held = next((words for key, words in WITHOUT_WORDS.items() if settings.get(key)), None)
    if held is None and settings.get("bias", "none") != "none":
        held = "biases"
    if held is None and str(settings.get("init_lora_weights")).startswith(CHANGES_BASE):
        held = f"what {settings['init_lora_weights']} changed in the base"
    if held is not None:
        raise ModelError(f"{adapter}: a GGUF adapter cannot hold {held}. Merge it instead.")
    if not isinstance(settings.get("r"), int) or not isinstance(settings.get("lora_alpha"), (int, float)):
        raise ModelError(f"{adapter}/adapter_config.json: no rank r or no lora_alpha. Copy the adapter again.")
    try:
        weights = load_file(adapter / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{adapter}: no adapter_model.safetensors that can be read. Copy the adapter again."
        ) from error
    rank: int = settings["r"]
    ranks: dict[str, int] = settings.get("rank_pattern") or {}
    alphas: dict[str, float] = settings.get("alpha_pattern") or {}
    for name, tensor in weights.items():
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        if part not in ("A.weight", "B.weight", "embedding_A", "embedding_B"):
            raise ModelError(f"{adapter}: a GGUF adapter cannot hold {name}. Merge it instead.")
        if not part.startswith(("B", "embedding_B")):
            continue
        own = ranks.get(get_pattern_key(list(ranks), module), rank)
        if tensor.shape[1] != own:
            raise ModelError(f"{adapter}: {name} has rank {tensor.shape[1]}, its config says {own}. Copy it again.")
        alpha = float(alphas.get(get_pattern_key(list(alphas), module), settings["lora_alpha"]))
        scale = alpha / (math.sqrt(own) if settings.get("use_rslora") else own)
        # llama.cpp will multiply by alpha / own, and alpha becomes the common rank.
        weights[name] = (tensor.float() * (scale * own / rank)).contiguous()
    return weights, settings | {"lora_alpha": rank, "use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
