"""Open what a person points at, an adapter's folder or a whole model, as it was trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith import adapters, hardware, models
from lorasmith.console import complain, say
from lorasmith.data.mask import check_contract
from lorasmith.errors import ModelError
from lorasmith.recipe import Model
from lorasmith.reliability.reopened import has_effect
from lorasmith.runs.folder import read_json
from lorasmith.runs.report import CONTRACT, adapter_settings

UNPROVEN = "UNPROVEN"  # a file in exports that were not proven, with the reason


@dataclass(slots=True)
class Opened:
    """A model ready to answer.

    Attributes:
        run: run.json of the adapter's folder, or empty for a plain model or somebody else's adapter.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    run: dict[str, Any]
    machine: hardware.Hardware


def open_model(path: str, base: str | None, quantization: str | None, trust_remote_code: bool = False) -> Opened:
    """Load an adapter on its base, or a model alone.

    An adapter's base is loaded in the quantization and dtype that the adapter was trained in, as its run says.

    Args:
        path: Folder of an adapter or a model, or a model's hub id.
        base: Another place to find the adapter's base.
        quantization: Overrides the run's.
        trust_remote_code: Whether to run code that comes with the model; the records of a run that came from elsewhere
            have no say in it.

    Raises:
        ModelError: If nothing can be loaded from there.
    """
    refuse_scorer(path, "answers")

    def load(section: Model, dtype: str, attention: str, device: str, tokenizer: PreTrainedTokenizerBase) -> Any:
        cache = read_json(Path(path) / "run.json").get("recipe", {}).get("speed", {}).get("weight_cache", True)
        model = models.load_base_model(section, dtype, attention, device, cache)
        models.stop_at_trained_tokens(model, tokenizer)
        return model

    return _opened(path, base, quantization, trust_remote_code, load)


def open_scorer(
    path: str, base: str | None, quantization: str | None = None, trust_remote_code: bool = False
) -> Opened:
    """Load a reward model: an adapter with its head on its base, or a merge of both. The arguments are `open_model`'s.

    Raises:
        ModelError: If there is none, or it has not exactly one score.
    """
    if not gives_scores(path):
        raise ModelError(f"{path}: no reward model: its head, which scores, is missing. Train one with reward.py.")

    def load(section: Model, dtype: str, attention: str, device: str, tokenizer: PreTrainedTokenizerBase) -> Any:
        return models.load_classifier(section, dtype, attention, device, tokenizer.pad_token_id)

    return _opened(path, base, quantization, trust_remote_code, load)


def gives_scores(path: str) -> bool:
    """Whether a folder holds a reward model or classifier, or an adapter for one, as its configuration says."""
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        return read_json(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
    kinds = read_json(folder / "config.json").get("architectures") or []
    return any(str(kind).endswith("ForSequenceClassification") for kind in kinds)


def refuse_scorer(path: str, wanted: str) -> None:
    """Before weights are read: a reward model has no output that tokens could be chosen by.

    Raises:
        ModelError: If the folder holds one.
    """
    if gives_scores(path):
        raise ModelError(
            f"{path} is a reward model: it gives scores and no {wanted}. "
            f"Score rows with: python scripts/reward.py {path} --score ROWS"
        )


def _opened(
    path: str, base: str | None, quantization: str | None, trust_remote_code: bool, load: Callable[..., Any]
) -> Opened:
    """`open_model` with the base loaded by `load`, from its section, dtype, attention, device and tokenizer."""
    folder, machine = Path(path), hardware.find_hardware()
    section, run = find_base(path, base, trust_remote_code, quantization)
    name, is_adapter = section.name, (folder / "adapter_config.json").is_file()
    if (folder / UNPROVEN).is_file():
        complain(f"{path} is UNPROVEN: {(folder / UNPROVEN).read_text(encoding='utf-8').strip()}")
    dtype, _ = hardware.choose_dtype(section.dtype, machine)
    attention, _ = hardware.choose_attention(section.attention, models.base_facts(section).runs_on_sdpa)
    has_tokenizer = is_adapter and (folder / "tokenizer_config.json").is_file()
    tokenizer, _ = models.load_tokenizer(section, folder if has_tokenizer else None)
    if (folder / CONTRACT).is_file():
        check_contract(tokenizer, json.loads((folder / CONTRACT).read_text(encoding="utf-8")), path)
    if run:
        _check_base(path, section, run)
    base_model = load(section, dtype, attention, machine.device, tokenizer)
    models.grow_embeddings(base_model, tokenizer)
    model = adapters.load_adapter(base_model, folder) if is_adapter else base_model
    model.eval()
    if isinstance(model, PeftModel) and not has_effect(model):
        raise ModelError(f"{path}: the adapter has no effect on {name}. Was it trained for this base?")
    what = f"{path} on {name}" if is_adapter else name
    say(f"model: {what}, {section.quantization if section.quantization != 'none' else dtype}, {machine.line}")
    return Opened(model, tokenizer, run, machine)


def find_base(
    path: str, base: str | None, trust_remote_code: bool = False, quantization: str | None = None
) -> tuple[Model, dict[str, Any]]:
    """How the base of an adapter, or a model alone, is to be loaded, and the adapter's run.json.

    Args: as `open_model`.

    Raises:
        ModelError: If nothing can be loaded from there.
    """
    folder = Path(path)
    is_adapter = (folder / "adapter_config.json").is_file()
    if folder.is_dir() and not is_adapter and not (folder / "config.json").is_file():
        raise ModelError(f"{path}: neither an adapter (adapter_config.json) nor a model (config.json) is here.")
    run = read_json(folder / "run.json") if is_adapter else {}
    settings = run.get("recipe", {}).get("model", {})
    name, revision = (base or path), "main"
    if is_adapter and base is None:
        config = adapters.saved_config(folder)
        name, revision = str(config.base_model_name_or_path), str(config.revision or "main")
        if not Path(name).is_dir() and name.count("/") != 1:
            raise ModelError(f"{path}: its base {name} is not here. Say where it is with --base.")
    then = run.get("adapter", {}).get("settings", {})
    for key, value in (adapter_settings(folder) if then else {}).items():
        if then.get(key) != value:
            raise ModelError(
                f"{path}: adapter_config.json was changed: {key} was {then.get(key)} in training, is {value}."
            )
    kept = {key: settings[key] for key in ("quantization", "dtype", "attention") if key in settings}
    if "/" in str(kept.get("attention")) and not trust_remote_code:
        del kept["attention"]  # a kernel from the hub is code too
    kept |= {"quantization": quantization} if quantization else {}
    try:
        section = Model(name=name, revision=revision, trust_remote_code=trust_remote_code, **kept)
    except ValidationError as error:
        raise ModelError(f"{path}: run.json is broken (model: {error.errors()[0]['msg']}). Restore it.") from None
    return section, run


def _check_base(path: str, section: Model, run: dict[str, Any]) -> None:
    """Refuse weights other than those that the adapter was trained on.

    Raises:
        ModelError: If their fingerprints differ.
    """
    trained_on = run.get("base", {})
    found = models.base_identity(section)
    if trained_on.get("fingerprint") not in (None, found["fingerprint"]):
        revision = f" (revision {trained_on['revision']})" if trained_on.get("revision") else ""
        raise ModelError(
            f"{path}: was trained on other weights than those of {section.name}. Take {trained_on['name']}{revision}, "
            "as they were, with --base."
        )
