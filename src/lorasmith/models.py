"""Base models and tokenizers, loaded as the recipe says."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorasmith import quantized_cache
from lorasmith.engine import ZERO3, this_engine
from lorasmith.errors import LorasmithError, ModelError, RecipeError, UnreachableError
from lorasmith.failures import explain
from lorasmith.hostile import check_template
from lorasmith.recipe import Model
from lorasmith.templates import CHATML, TEMPLATE_TOKENS
from lorasmith.upstream import BEFORE_HEADS, HEADS, TASKS, UNQUANTIZED, renamed_keys

BLOCKS = 64  # sampled from each weight file for its fingerprint
BLOCK_BYTES = 4096
# Architectures whose first position is that behind the padding token's id.
COUNTED_BEHIND_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")


def load_tokenizer(
    section: Model, source: str | Path | None = None, *, stops: bool = True, fast: bool = True
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer with the recipe's chat template and tokens.

    Args:
        stops: Whether the model must be able to end what it writes.
        fast: Whether it must be a fast one, in which tokens know their places in the text.
        source: Another folder to load from, such as an adapter's, which holds the template it was trained with.

    Returns:
        The tokenizer, and the ids of tokens it did not have before, whose embeddings must be trained.

    Raises:
        ModelError: If it cannot be loaded, is not a fast tokenizer where it must be, or has no EOS token.
    """
    where = str(source or section.name)
    tokenizer = _load(AutoTokenizer, where, section)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or (fast and not tokenizer.is_fast):
        raise ModelError(f"{where}: only a Python tokenizer is available; Lorasmith needs a fast one (tokenizer.json).")
    known = set(tokenizer.get_vocab())
    template = section.chat_template if source is None else None
    wanted = list(section.add_tokens)
    if template is not None:
        wanted += TEMPLATE_TOKENS.get(template, ())
        tokenizer.chat_template = _template(template)
    new = [token for token in dict.fromkeys(wanted) if token not in known]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
    if template == "chatml":
        tokenizer.eos_token = "<|im_end|>"
    if tokenizer.eos_token_id is None and stops:
        raise ModelError(f"{where}: the tokenizer has no EOS token, so no model could stop. Set model.chat_template.")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ModelError(f"{where}: the tokenizer has no token to fill rows up with (pad_token). Add one to its files.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    vocabulary = tokenizer.get_vocab()
    check_template(tokenizer, where)
    return tokenizer, [vocabulary[token] for token in new]


def load_base_model(
    section: Model, dtype: str, attention: str, device: str, weight_cache: bool = True, task: str | None = None
) -> PreTrainedModel:
    """The frozen base model in the recipe's quantization, on the device.

    Args:
        weight_cache: Whether a language model's quantized weights are kept in the user's cache and taken from there.
        task: A key of `upstream.TASKS`; None: a language model.

    Raises:
        ModelError: If it cannot be loaded as asked.
    """
    options = _options(dtype, attention, device)
    kind = getattr(transformers, TASKS[task].auto) if task else AutoModelForCausalLM
    quantized = quantization_config(section.quantization, options["dtype"])
    if quantized is None:
        return _load(kind, section.name, section, **options)
    source, copy = _places(section, quantized, dtype, device) if weight_cache and not task else (None, None)
    model = quantized_cache.load_copy(copy, section.name, options) if copy else None
    fresh = model is None
    if model is None:
        model = _load(kind, section.name, section, quantization_config=quantized, **options)
    if device == "cpu" and section.quantization in ("nf4", "fp4"):
        keep_4bit_layers_unpacked(model)
    if source and copy and fresh:
        quantized_cache.save_copy(copy, model, section.name, source, options)
    return model


def load_with_head(
    section: Model,
    dtype: str,
    attention: str,
    device: str,
    pad_id: int | None,
    task: str = "text_classification",
    **settings: Any,
) -> PreTrainedModel:
    """The frozen base model with a task's head in place of the one that gives tokens.

    The head of a model that has one for the same outputs is read with it. A new one is drawn from torch's random state:
    seed that before. It is float32 and never quantized, since it is trained whole; `drawn_modules` tells what else is.

    Args:
        pad_id: The token that fills rows up; a decoder's head is read at the last token of a row that is another.
        task: A key of `upstream.TASKS`.
        settings: For the model's configuration, such as num_labels and id2label.

    Raises:
        ModelError: If it cannot be loaded as asked.
    """
    options = _options(dtype, attention, device) | settings
    quantized = quantization_config(section.quantization, options["dtype"])
    if quantized is not None:
        quantized.llm_int8_skip_modules = list(UNQUANTIZED)
        options["quantization_config"] = quantized
    kind = getattr(transformers, TASKS[task].auto)
    if task == "question_answering":
        options["key_mapping"] = _renamed(section)
    model, info = _load(kind, section.name, section, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if device == "cpu" and section.quantization in ("nf4", "fp4"):
        keep_4bit_layers_unpacked(model)
    redrawn = [key for key, *_ in info["mismatched_keys"]]
    _check_complete(section, [*info["missing_keys"], *redrawn])
    model.config.get_text_config().pad_token_id = pad_id
    heads = [getattr(model, name) for name in HEADS if hasattr(model, name)]
    if not heads:
        raise ModelError(f"{section.name}: no head of {type(model).__name__} is known. Take another base model.")
    drawn = {key.rpartition(".")[0] for key in {*info["missing_keys"], *redrawn}}
    vars(model)[DRAWN] = sorted(name for name in drawn if not set(name.split(".")) & set(HEADS))
    for whole in [*heads, *(model.get_submodule(name) for name in drawn_modules(model))]:
        whole.float()
        # A head that peft copies keeps its hooks; one in the base's 16 bit would round what was trained.
        whole.register_forward_pre_hook(lambda head, given: (given[0].float(), *given[1:]))
    return model


def _renamed(section: Model) -> dict[str, str]:
    """The key_mapping of a base model's class for questions.

    Raises:
        ModelError: If its architecture has none.
    """
    config = _load(AutoConfig, section.name, section)
    kind = MODEL_FOR_QUESTION_ANSWERING_MAPPING.get(type(config), None)
    if kind is None and not section.trust_remote_code:
        raise ModelError(
            f"{section.name}: transformers has no {config.model_type} that finds answers. Take another base model."
        )
    headless = MODEL_MAPPING.get(type(config), None)
    return renamed_keys(getattr(headless, "base_model_prefix", ""), getattr(kind, "base_model_prefix", ""))


def renamed_of(model: PreTrainedModel) -> dict[str, str]:
    """The key_mapping by which plain transformers reads a language model's files into a model with a head."""
    headless: Any = model.base_model
    return renamed_keys(headless.base_model_prefix, model.base_model_prefix)


DRAWN = "lorasmith_drawn"


def drawn_modules(model: PreTrainedModel) -> list[str]:
    """Names of modules besides the head that the base's files have no weights for, so that they must be trained."""
    return list(vars(model).get(DRAWN, ()))


def _check_complete(section: Model, missing: Sequence[str]) -> None:
    """Refuse a model that lacks more than what stands around its head.

    Raises:
        ModelError: Naming a weight that is missing.
    """
    lost = [key for key in missing if not set(key.split(".")) & {*HEADS, *BEFORE_HEADS}]
    if lost:
        raise ModelError(
            f"{section.name}: its files lack {len(lost)} of the model's weights, such as {min(lost)}. Fetch it again, "
            "or take a base model of this architecture."
        )


def _options(dtype: str, attention: str, device: str) -> dict[str, Any]:
    """What `from_pretrained` is told of a model of any kind.

    A model that FSDP2 shards is read into the computer's memory, from where each process takes its part a block at a
    time; under ZeRO-3 transformers places the parts itself, and refuses a device_map.
    """
    engine = this_engine()
    whole = device == "cuda" and not engine.shards_weights
    options = {"dtype": getattr(torch, dtype), "attn_implementation": attention, "use_safetensors": True}
    place = {"": int(os.environ.get("LOCAL_RANK", "0")) if whole else "cpu"}
    return options if engine.kind == ZERO3 else options | {"device_map": place}


def _places(section: Model, quantized: BitsAndBytesConfig, dtype: str, device: str) -> tuple[Path | None, Path | None]:
    """Where the base's files are and its quantized copy stands or would stand; None where no copy may be."""
    if section.trust_remote_code:
        return None, None  # nothing says what its code does to the weights
    folder = Path(section.name)
    try:
        source = folder if folder.is_dir() else _fetched(section)
        return source, quantized_cache.copy_folder(
            source, lambda: weight_fingerprint(source), quantized.to_dict(), dtype, device
        )
    except (LorasmithError, OSError, ValueError, struct.error):
        return None, None  # loading tells what is wrong


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """bitsandbytes' settings for a recipe's quantization, or None for 16 or 32 bit.

    4-bit weights are quantized twice (QLoRA, arXiv 2305.14314) and stored as `dtype`, since FSDP shards only
    floating-point storage and only in one dtype.
    """
    if quantization == "none":
        return None
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def keep_4bit_layers_unpacked(model: torch.nn.Module) -> None:
    """Stop bitsandbytes' 4-bit layers from repacking their weights at the first evaluation on a CPU.

    On CPUs with AVX512-bf16, bitsandbytes 0.50.2 packs the weights for its forward kernel and never unpacks them for
    backward, dequantize or save: gradients after an evaluation are wrong, silently. Related: bitsandbytes#2078. Can go
    when a release trains, evaluates and trains with the same gradients (tests/test_models.py compares them).
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.modules.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add embedding rows for tokens beyond the model's own; never remove any."""
    rows: int = model.get_input_embeddings().weight.size(0)  # type: ignore[operator]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))


def stop_at_trained_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make generation stop at the tokenizer's EOS, besides what the model's own configuration lists."""
    stops = model.generation_config.eos_token_id
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    model.generation_config.eos_token_id = sorted({tokenizer.eos_token_id, *stops})
    model.generation_config.pad_token_id = tokenizer.pad_token_id


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What a base model's config says, without its weights.

    Attributes:
        positions: The longest row it has positions for, if it says.
        runs_on_sdpa: Whether transformers has sdpa attention for it.
        config: All of it, defaults included.
        blocks: Classes of its blocks, each of which is on one device as a whole.
    """

    positions: int | None
    runs_on_sdpa: bool
    config: dict[str, Any]
    blocks: tuple[str, ...] = ()


def base_facts(section: Model) -> BaseFacts:
    """What the base model's config says."""
    config = _load(AutoConfig, section.name, section)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) or MODEL_MAPPING.get(type(config), None)
    blocks = tuple(sorted(getattr(kind, "_no_split_modules", None) or ()))
    return BaseFacts(positions_of(config), getattr(kind, "_supports_sdpa", True), config.to_dict(), blocks)


def positions_of(config: Any) -> int | None:
    """The longest row that a model of this config has positions for, if it says."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.model_type in COUNTED_BEHIND_PADDING:
        positions -= config.pad_token_id + 1
    return positions


def base_identity(section: Model) -> dict[str, Any]:
    """What a run's base model was: name, resolved commit (hub only), and a fingerprint of its weights."""
    folder = Path(section.name)
    commit = None
    if not folder.is_dir():
        folder = _fetched(section)
        commit = folder.name
    return {
        "name": section.name,
        "revision": commit,
        "folder": str(folder),
        "fingerprint": weight_fingerprint(folder),
    }


def _fetched(section: Model) -> Path:
    """The cache folder of a hub model, downloaded now if it is not there."""
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"] + ["*.py"] * section.trust_remote_code
    other_copies = ["original/*", "consolidated*", "onnx/*", "gguf/*"]  # of the same weights, in some repositories
    options: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": other_copies}
    try:
        return Path(snapshot_download(section.name, revision=section.revision, **options))
    except Exception as error:  # the hub's errors, told like those of from_pretrained
        raise _loading_problem(section.name, section, False, error) from error


def weight_fingerprint(folder: Path) -> str:
    """SHA-256 over each safetensors file's size, header and 64 evenly spaced 4 KiB blocks: seconds, for any size."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            header = struct.unpack("<Q", file.read(8))[0]
            digest.update(file.read(header))
            for i in range(BLOCKS):
                file.seek(8 + header + i * max(0, size - 8 - header - BLOCK_BYTES) // max(1, BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template, or None without one."""
    template = tokenizer.chat_template
    if not template:
        return None
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def _template(template: str) -> str:
    if template == "chatml":
        return CHATML
    path = Path(template)
    if not path.is_file():
        raise RecipeError(f"model.chat_template is `{template}`; no such file.")
    return path.read_text(encoding="utf-8")


def _load(kind: Any, where: str, section: Model, **options: Any) -> Any:
    """`from_pretrained` with its many errors told in one line."""
    local = Path(where).is_dir()
    if not local and where.startswith((".", "/", "~")):
        raise ModelError(f"model.name is `{where}`; no such folder. Give a local folder or a hub id.")
    if not local:
        options["revision"] = section.revision
    try:
        return kind.from_pretrained(where, trust_remote_code=section.trust_remote_code, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers and the hub raise a dozen kinds here, none of them our bug
        raise _loading_problem(where, section, local, error) from error


def _loading_problem(where: str, section: Model, local: bool, error: Exception) -> LorasmithError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelError(f"{where} runs its own code. If you trust it, set model.trust_remote_code: true.")
    if "gated" in text.lower() or re.search(r"\b401\b", text):
        return ModelError(f"{where} is gated. Accept its licence on the hub, then log in with: hf auth login.")
    if "safetensors" in text and local:
        return ModelError(f"{where}: no weights as safetensors; pickle is refused. Convert them with save_pretrained.")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") and not isinstance(error, ImportError)
    if not local and (offline or "connect" in text.lower() or "offline" in text.lower()):
        return UnreachableError(
            f"{where} ({section.revision}) is not on this machine and the hub is out of reach. "
            f"Fetch it where it is not: hf download {where}."
        )
    if "does not recognize this architecture" in text:
        return ModelError(f"{where}: transformers {transformers.__version__} does not know its architecture.")
    known = explain(error)
    if known is not None:
        return ModelError(f"{where}: {known.cause}. {known.mend}")
    return ModelError(f"{where}: not loaded ({text[:200]}).")
