"""A plain model with its matrices packed to 8 or 4 bit, in a folder that transformers opens as it is."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.export.files import beside, copy_tokenizer, needs, plain_model

# Bytes of a packed weight with its scales.
KINDS = {"bnb-nf4": 0.53, "bnb-int8": 1.02, "torchao-int8": 1.02, "torchao-int4": 0.57}
GROUP = 128  # weights that share a scale in torchao-int4
SPARE = 16 << 20  # bytes for the tokenizer and configs


def to_packed(
    model: Path,
    out: Path,
    kind: str,
    dtype: str,
    device: str,
    prepare: Callable[[PreTrainedModel], None] | None = None,
) -> Path:
    """Quantize a merged model and save it in a new folder.

    The weights are packed as they are read, so no more of them is held at once than the packed model and one shard, and
    saved before anything is computed with them.

    Args:
        model: Folder of a plain model.
        out: The folder to make; it must not exist.
        kind: One of KINDS.
        dtype: Of the arithmetic and of what stays unpacked: float32, bfloat16 or float16.
        device: "cpu" or "cuda".
        prepare: Called with the packed model before it is saved: what keeps a CPU from repacking 4-bit layers.

    Returns:
        `out`.

    Raises:
        ModelError: If the model or the device cannot be used for this kind.
        LorasmithError: If torchao is asked for and not installed.
        FitError: If the disk is too small.
    """
    if kind not in KINDS:
        raise ModelError(f"quantization `{kind}` is unknown; expected one of: {', '.join(KINDS)}.")
    source = plain_model(model)
    settings = quantization_settings(kind, getattr(torch, dtype), device)
    outside = source.num_weights - source.num_linear
    needed = source.num_linear * KINDS[kind] + outside * getattr(torch, dtype).itemsize + SPARE
    with beside(out, needed) as place:
        packed = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            device_map={"": 0 if device == "cuda" else "cpu"},
            quantization_config=settings,
            use_safetensors=True,
        )
        if count_packed(packed) == 0:
            raise ModelError(f"{model}: {kind} finds no linear layer in {type(packed).__name__} that it can pack.")
        if prepare is not None:
            prepare(packed)
        packed.save_pretrained(place)
        copy_tokenizer(model, place)
    return out


def quantization_settings(kind: str, dtype: torch.dtype, device: str) -> Any:
    """The library's settings of a kind.

    Raises:
        ModelError: If the device or dtype cannot be used for it.
        LorasmithError: If torchao is not installed.
    """
    if kind == "bnb-nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if kind == "bnb-int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if kind == "torchao-int4" and device != "cuda":
        raise ModelError("torchao-int4 has kernels for GPUs only. Take bnb-nf4 or, for a CPU, a GGUF of kind q4_k_m.")
    if kind == "torchao-int4" and dtype != torch.bfloat16:
        raise ModelError("torchao-int4 computes in bfloat16 only. Take bnb-nf4 on a GPU without it.")
    if importlib.util.find_spec("torchao") is None:
        raise needs("torchao", "torchao")
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    if kind == "torchao-int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    # The one layout that needs no kernel package besides torch.
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d"))


def count_packed(model: torch.nn.Module) -> int:
    """How many layers hold packed weights: of bitsandbytes by their class, of torchao by their weight's class."""
    kinds = {"Linear4bit", "Linear8bitLt"}
    return sum(
        type(module).__name__ in kinds or "torchao" in type(getattr(module, "weight", None)).__module__
        for module in model.modules()
    )
