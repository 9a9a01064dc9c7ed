"""Open what a person points at, an adapter's folder or a whole model, as it was trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lorasmith import adapters, hardware, models
from lorasmith.console import complain, say
from lorasmith.data.mask import check_contract
from lorasmith.errors import ModelError
from lorasmith.recipe import Model
from lorasmith.reliability.reopened import has_effect
from lorasmith.runs.folder import read_json
from lorasmith.runs.report import CONTRACT, adapter_settings
from lorasmith.runs.task_file import REWARD, head_settings, task_of
from lorasmith.tasks.question_model import pass_token_types
from lorasmith.upstream import TASKS

UNPROVEN = "UNPROVEN"  # a file in exports that were not proven, with the reason


@dataclass(slots=True)
class Opened:
    """A model ready to answer.

    Attributes:
        run: run.json of the adapter's folder, or empty for a plain model or somebody else's adapter.
        task: What it is for, if it is no language model (`task_file.task_of`).
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    run: dict[str, Any]
    machine: hardware.Hardware
    task: dict[str, Any] = field(default_factory=dict)


def columns_of(run: dict[str, Any]) -> dict[str, str]:
    """The names that a run's recipe gives to columns."""
    found: dict[str, str] = run.get("recipe", {}).get("data", {}).get("columns") or {}
    return found


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
        return models.load_with_head(section, dtype, attention, device, tokenizer.pad_token_id, num_labels=1)

    return _opened(path, base, quantization, trust_remote_code, load)


def open_task(path: str, base: str | None, quantization: str | None = None, trust_remote_code: bool = False) -> Opened:
    """Load a classifier, tagger, answer finder or sequence-to-sequence model, an adapter or a whole model.

    The arguments are `open_model`'s; what it is for stands in the result's `task`.

    Raises:
        ModelError: If it is a language model, or cannot be loaded.
    """
    task = task_of(path)
    if task.get("method") not in TASKS:
        raise ModelError(f"{path}: no classifier, tagger, answer finder or sequence-to-sequence model.")
    set_seed(0)  # a head that is drawn anew, for the base without its adapter, is the same each time

    def load(section: Model, dtype: str, attention: str, device: str, tokenizer: PreTrainedTokenizerBase) -> Any:
        if task["method"] == "seq2seq":
            return models.load_base_model(section, dtype, attention, device, task="seq2seq")
        settings = head_settings(task)
        return models.load_with_head(
            section, dtype, attention, device, tokenizer.pad_token_id, task["method"], **settings
        )

    writes = task["method"] == "seq2seq"
    opened = _opened(path, base, quantization, trust_remote_code, load, stops=writes, fast=not writes)
    opened.task = task
    if task["method"] == "question_answering":
        pass_token_types(opened.model)
    return opened


def open_any(path: str, base: str | None, quantization: str | None = None, trust_remote_code: bool = False) -> Opened:
    """`open_task`, or `open_model` for a language model."""
    opener = open_task if task_of(path).get("method") in TASKS else open_model
    return opener(path, base, quantization, trust_remote_code)


def gives_scores(path: str) -> bool:
    """Whether a folder holds a reward model, or an adapter for one, as its configuration says."""
    return task_of(path).get("method") == REWARD


def refuse_scorer(path: str, wanted: str) -> None:
    """Before weights are read: only a language model has an output that tokens could be chosen by.

    Raises:
        ModelError: If the folder holds another.
    """
    method = task_of(path).get("method")
    if method == REWARD:
        raise ModelError(
            f"{path} is a reward model: it gives scores and no {wanted}. "
            f"Score rows with: python scripts/reward.py {path} --score ROWS"
        )
    if method is not None:
        raise ModelError(
            f"{path} is of {method}.py and gives no {wanted}. Use it with: python scripts/predict.py {path} ROWS"
        )


def _opened(
    path: str,
    base: str | None,
    quantization: str | None,
    trust_remote_code: bool,
    load: Callable[..., Any],
    stops: bool = True,
    fast: bool = True,
) -> Opened:
    """`open_model` with the base loaded by `load`, from its section, dtype, attention, device and tokenizer.

    Args:
        stops, fast: What is asked of the tokenizer (`models.load_tokenizer`).
    """
    folder, machine = Path(path), hardware.find_hardware()
    section, run = find_base(path, base, trust_remote_code, quantization)
    name, is_adapter = section.name, (folder / "adapter_config.json").is_file()
    if (folder / UNPROVEN).is_file():
        complain(f"{path} is UNPROVEN: {(folder / UNPROVEN).read_text(encoding='utf-8').strip()}")
    dtype, _ = hardware.choose_dtype(section.dtype, machine)
    attention, _ = hardware.choose_attention(section.attention, models.base_facts(section).runs_on_sdpa)
    tokenizer = checked_tokenizer(folder, section, is_adapter, stops, fast)
    if run:
        check_base(path, section, run)
    base_model = load(section, dtype, attention, machine.device, tokenizer)
    models.grow_embeddings(base_model, tokenizer)
    model = adapters.load_adapter(base_model, folder) if is_adapter else base_model
    model.eval()
    if isinstance(model, PeftModel) and not has_effect(model):
        raise ModelError(f"{path}: the adapter has no effect on {name}. Was it trained for this base?")
    what = f"{path} on {name}" if is_adapter else name
    say(f"model: {what}, {section.quantization if section.quantization != 'none' else dtype}, {machine.line}")
    return Opened(model, tokenizer, run, machine)


def checked_tokenizer(
    folder: Path, section: Model, is_adapter: bool, stops: bool = True, fast: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of an adapter or a model, which must render conversations as it did in training.

    Args:
        stops: Whether the model must be able to end what it writes.
        fast: Whether a fast tokenizer is needed.

    Raises:
        ModelError: If there is none that can be used, or it renders them otherwise.
    """
    has_tokenizer = is_adapter and (folder / "tokenizer_config.json").is_file()
    tokenizer, _ = models.load_tokenizer(section, folder if has_tokenizer else None, stops=stops, fast=fast)
    if (folder / CONTRACT).is_file():
        check_contract(tokenizer, json.loads((folder / CONTRACT).read_text(encoding="utf-8")), str(folder))
    return tokenizer


def tokenizer_of(path: str, section: Model) -> PreTrainedTokenizerBase:
    """`checked_tokenizer` of whatever is in a folder."""
    method = task_of(path).get("method")
    writes = method not in TASKS or method == "seq2seq"
    is_adapter = (Path(path) / "adapter_config.json").is_file()
    return checked_tokenizer(Path(path), section, is_adapter, writes, method != "seq2seq")


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


def check_base(path: str, section: Model, run: dict[str, Any]) -> None:
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
