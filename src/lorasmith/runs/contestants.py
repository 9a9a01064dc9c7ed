"""What an evaluation compares: an adapter, its base, and others, no more than one model's weights in memory."""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase

from lorasmith import adapters, models
from lorasmith.console import say
from lorasmith.data.rows import Row
from lorasmith.errors import ModelError
from lorasmith.recipe import Model
from lorasmith.reliability.reopened import has_effect
from lorasmith.runs.folder import read_json
from lorasmith.runs.opening import Opened, check_base, find_base, open_any, tokenizer_of
from lorasmith.runs.results import fingerprint
from lorasmith.speed.lora import fuse_lora

BASE, ADAPTER, MODEL = "base", "adapter", "model"


@dataclass(slots=True)
class Contestant:
    """A model as it is switched while it is the iterator's current one, and not afterwards.

    Attributes:
        name: "base", "adapter" (of the path that was named first), "model" (a whole one), or a path to compare with.
        key: Fingerprint of all that its results hang on: weights, adapter, quantization, dtype, template, device.
        vocabulary: Fingerprint of its tokens: losses per token compare only where it is the same.
    """

    name: str
    path: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    key: str
    vocabulary: str

    @property
    def bias_token(self) -> int:
        """The token before a sentence that is scored alone, as lm-evaluation-harness takes it: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)


def check_prompts(paths: Sequence[str], row: Row, base: str | None, trust_remote_code: bool = False) -> None:
    """Refuse a model whose chat template cannot write a row, before any weights are read.

    Raises:
        ModelError: Naming it.
    """
    for path in paths:
        section, _ = find_base(path, base if _is_adapter(path) else None, trust_remote_code)
        tokenizer = tokenizer_of(path, section)
        if row.messages and not tokenizer.chat_template:
            raise ModelError(
                f"{path}: the tokenizer has no chat template, which these rows need. Give rows of prompt and "
                "completion, or of text, or a model that was trained on conversations."
            )


def contestants(
    path: str,
    others: Sequence[str],
    base: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Contestant]:
    """The base with the adapter switched off, the adapter, then the others; a whole model comes without a base.

    Adapters on the same base stand beside the first one, sharing the base's weights. Another base or a whole model is
    loaded when all of these are done and their weights are freed.

    Args: as `open_model`'s; `base` and `quantization` are those of every adapter.

    Raises:
        ModelError: If one cannot be loaded.
    """
    opened = open_any(path, base, quantization, trust_remote_code)
    section, _ = find_base(path, base, trust_remote_code, quantization)
    alike = _sharing(path, others, section, base) if isinstance(opened.model, PeftModel) else []
    names = names_of(others)
    yield from _on_one_base(path, {other: names[other] for other in alike}, section, opened)
    del opened
    for other in names:
        if other not in alike:
            _free()
            is_adapter = _is_adapter(other)
            options = (base, quantization) if is_adapter else (None, None)
            opened = open_any(other, *options, trust_remote_code)
            section, _ = find_base(other, options[0], trust_remote_code, options[1])
            _quicken(opened.model)
            one = _contestant(
                names[other], other, opened.model, opened.tokenizer, section, other if is_adapter else None
            )
            yield one
            one.model = None
            del opened


def _on_one_base(path: str, alike: dict[str, str], section: Model, opened: Opened) -> Iterator[Contestant]:
    """The base, the adapter and the others that share it (path -> name), or a whole model alone."""
    model, tokenizer = opened.model, opened.tokenizer
    if not isinstance(model, PeftModel):
        one = _contestant(MODEL, path, model, tokenizer, section, None)
        yield one
        one.model = None
        return
    _quicken(model)
    with model.disable_adapter():
        one = _contestant(BASE, section.name, model, tokenizer, section, None)
        yield one
    one.model = None
    one = _contestant(ADAPTER, path, model, tokenizer, section, path)
    yield one
    one.model = None
    _unquicken(model)
    for number, (other, label) in enumerate(alike.items()):
        name = f"other_{number}"
        adapters.load_beside(model, Path(other), name)
        model.set_adapter(name)
        model.eval()
        if not has_effect(model):
            raise ModelError(f"{other}: the adapter has no effect on {section.name}. Was it trained for this base?")
        say(f"adapter: {other} on the same base")
        own = tokenizer_of(other, section)
        one = _contestant(label, other, model, own, section, other)
        yield one
        one.model = None
        model.delete_adapter(name)


def _sharing(path: str, others: Sequence[str], section: Model, base: str | None) -> list[str]:
    """The other adapters that can stand beside the first one, on the same weights in the same precision."""
    known = models.base_identity(section)["fingerprint"]
    config = adapters.saved_config(Path(path))
    vocabulary = len(tokenizer_of(path, section))
    found = []
    for other in others:
        if not _is_adapter(other):
            continue
        theirs, run = find_base(other, base, section.trust_remote_code, section.quantization)
        if run:
            check_base(other, theirs, run)
        same = models.base_identity(theirs)["fingerprint"] == known and theirs.dtype == section.dtype
        same = same and adapters.saved_config(Path(other)).peft_type == config.peft_type
        if same and len(tokenizer_of(other, theirs)) == vocabulary:
            found.append(other)
    return found


def _contestant(
    name: str, path: str, model: Any, tokenizer: PreTrainedTokenizerBase, section: Model, adapter: str | None
) -> Contestant:
    """A contestant with its fingerprints.

    Args:
        adapter: Folder of the adapter that is switched on.
    """
    parts: list[Any] = [models.base_identity(section)["fingerprint"], section.quantization, str(model.dtype)]
    parts += [model.device.type, models.template_hash(tokenizer)]
    if adapter is not None:
        config = read_json(Path(adapter) / "adapter_config.json")
        parts += [models.weight_fingerprint(Path(adapter)), config | {"base_model_name_or_path": None}]
    vocabulary = fingerprint(json.loads(tokenizer.backend_tokenizer.to_str())["model"])
    return Contestant(name, path, model, tokenizer, fingerprint(vocabulary, *parts), vocabulary)


def names_of(others: Sequence[str]) -> dict[str, str]:
    """Short names of the paths to compare with, without their folders where that keeps them apart."""
    taken = {BASE, ADAPTER, MODEL}
    found: dict[str, str] = {}
    for other in others:
        parts = [part for part in Path(other).parts if part not in ("/", ".", "..")]
        choices = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        name = next((one for one in choices if one not in taken), f"{choices[-1]} ({len(taken)})")
        found[other] = name
        taken.add(name)
    return found


def _is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def _quicken(model: Any) -> None:
    """Fused LoRA layers, where they are the adapter's own arithmetic: in 16 bit peft would round elsewhere."""
    if isinstance(model, PeftModel) and model.dtype == torch.float32:
        fuse_lora(model)


def _unquicken(model: PeftModel) -> None:
    """peft's own layers, which know several adapters."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            vars(module).pop("forward", None)


def _free() -> None:
    """Give the weights of what is no longer used back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
