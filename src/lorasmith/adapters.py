"""Adapters: made from the recipe, checked for reach, saved so that plain peft loads them."""

import difflib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.hostile import limited
from lorasmith.recipe import LORA_METHODS, Adapter
from lorasmith.upstream import HEADS

# Initialisations that move part of the base's weights into the adapter. They are saved as a plain LoRA of the
# difference, so that the adapter fits the original base.
CONVERTED_INITS = ("pissa", "olora")
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")


TOLD = {
    "CAUSAL_LM": "a language model's",
    "SEQ_CLS": "a reward model's or classifier's",
    "TOKEN_CLS": "a tagger's",
    "QUESTION_ANS": "an answer finder's",
    "SEQ_2_SEQ_LM": "a sequence-to-sequence model's",
}
WITHOUT_HEAD = ("CAUSAL_LM", "SEQ_2_SEQ_LM")  # tasks whose output layer is the base's own


def adapter_config(
    section: Adapter,
    model: PreTrainedModel,
    new_token_ids: list[int],
    task: str = "CAUSAL_LM",
    drawn: Sequence[str] = (),
) -> PeftConfig:
    """The peft configuration of a recipe's adapter.

    Args:
        task: peft's name for what the model is for; a head is trained whole beside the adapter.
        drawn: Other modules that were not trained before, to be trained whole too.

    Raises:
        ModelError: If a target matches nothing in this model, or the method cannot do what is asked.
    """
    options = dict(section.options)
    _check_reach(section, model)
    if new_token_ids:
        options["trainable_token_indices"] = _token_indices(section, model, new_token_ids)
    if task == "QUESTION_ANS":  # peft knows qa_outputs alone; ModernBERT's is called classifier
        drawn = [*drawn, *(name for name in HEADS if name != "qa_outputs" and hasattr(model, name))]
    if task not in WITHOUT_HEAD:
        options["exclude_modules"] = _besides_heads(options.get("exclude_modules"), drawn)
        if drawn:
            options["modules_to_save"] = [*(options.get("modules_to_save") or []), *drawn]
    if section.method in LORA_METHODS:
        inits: dict[str, Any] = {"pissa": "pissa", "olora": "olora", "eva": "eva"}
        if section.method == "eva" and "eva_config" not in options:
            options["eva_config"] = peft.EvaConfig()
        return LoraConfig(
            task_type=TaskType(task),
            r=section.rank,
            lora_alpha=_whole(section.alpha),  # type: ignore[arg-type]  # peft divides it, so a fraction is fine
            lora_dropout=section.dropout,
            target_modules=section.target_modules,
            use_rslora=section.method == "rslora",
            use_dora=section.method == "dora",
            init_lora_weights=inits.get(section.method, True),
            **options,
        )
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[section.method.upper()]]
    known = kind.__dataclass_fields__
    if "exclude_modules" not in known:
        options.pop("exclude_modules", None)
    ours = {
        "rank": ("r", "rank"),
        "alpha": ("lora_alpha", "alpha", f"{section.method}_alpha"),
        "dropout": ("lora_dropout", "dropout", f"{section.method}_dropout", "module_dropout"),
        "target_modules": ("target_modules",),
    }
    for key, names in ours.items():
        if key in section.model_fields_set and not any(name in options for name in names):
            name = next((name for name in names if name in known), None)
            if name is None:
                raise ModelError(f"adapter.{key} is given; peft's {section.method} has no such setting. Remove it.")
            value = getattr(section, key)
            options[name] = _whole(value) if key == "alpha" else value
    try:
        config = kind(task_type=TaskType(task), **options)
    except (ValueError, TypeError) as error:
        raise ModelError(f"adapter.options: peft's {section.method} refuses them ({error}).") from error
    if task not in WITHOUT_HEAD and (config.is_prompt_learning or "modules_to_save" not in known):
        raise ModelError(f"adapter.method `{section.method}` cannot train a head beside it. Take lora or one like it.")
    return config


def attach(
    section: Adapter,
    model: PreTrainedModel,
    new_token_ids: list[int],
    batches: DataLoader[Any],
    base: dict[str, Any],
    task: str = "CAUSAL_LM",
    drawn: Sequence[str] = (),
) -> PeftModel:
    """The model with a trainable adapter: a new one, or the one of `adapter.from`.

    Args:
        batches: Batches of training rows, for methods that look at the data first (EVA).
        base: Identity of the base, whose folder holds the unquantized weights that LoftQ reads.
        task, drawn: As in `adapter_config`.

    Raises:
        ModelError: If the adapter does not fit the model or the recipe.
    """
    if section.from_ is not None:
        return _continue(section, model, task)
    config = adapter_config(section, model, new_token_ids, task, drawn)
    try:
        adapted = get_peft_model(model, config, low_cpu_mem_usage=section.method == "eva")
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ModelError(f"adapter.method `{section.method}` does not fit this model ({error}).") from error
    head = adapted.get_output_embeddings()
    if new_token_ids and head is not None and not hasattr(head, "bias"):
        # trl's loss asks the output layer for its bias, which peft's TrainableTokensWrapper does not hand through.
        vars(head)["bias"] = getattr(head.original_module, "bias", None)
    if section.method == "eva":
        peft.initialize_lora_eva_weights(adapted, batches, show_progress_bar=False)
    if section.method == "loftq":
        start_from_quantization_error(adapted, Path(base["folder"]))
    return adapted


@torch.no_grad()
def start_from_quantization_error(model: PeftModel, folder: Path) -> None:
    """LoftQ (arXiv 2310.08659) over fixed 4-bit weights: B A scaled starts as the best rank-r part of W - dequant(W).

    peft's replace_lora_weights_loftq does this on CUDA and XPU only, and leaves out the scale alpha / r.

    Args:
        folder: Where the unquantized safetensors lie.

    Raises:
        ModelError: If a layer's weight is not in the folder's files.
    """
    import bitsandbytes

    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, peft.tuners.lora.Linear4bit):
            continue
        # A checkpoint may lack the prefix of the model without its head, such as `model.`
        key = next((key for key in (f"{name}.weight", f"{name.partition('.')[2]}.weight") if key in files), None)
        if key is None:
            raise ModelError(f"adapter.method `loftq`: {folder} has no tensor {name}.weight.")
        quantized = module.get_base_layer().weight
        with safe_open(files[key], framework="pt") as file:
            full = file.get_tensor(key).to(quantized.device, torch.float32)
        seen = bitsandbytes.functional.dequantize_4bit(quantized.data, quantized.quant_state).float()
        left, singular, right = torch.linalg.svd(full - seen, full_matrices=False)
        rank, scale = module.r["default"], module.scaling["default"]
        root = (singular[:rank] / scale).sqrt()
        lora_a, lora_b = module.lora_A["default"].weight, module.lora_B["default"].weight
        lora_a.copy_(root[:, None] * right[:rank])
        lora_b.copy_(left[:, :rank] * root)


def coverage_lines(model: PeftModel, section: Adapter) -> list[str]:
    """What carries the adapter and how much is trained, as sentences."""
    linear = _linear_names(model)
    tuned = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    adapted = Counter(name.rpartition(".")[2] for name in linear if name in tuned)
    trainable, total = model.get_nb_trainable_parameters()
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(adapted.items()))
    rank = f" rank {section.rank}" if section.method in LORA_METHODS else ""
    where = f" on {sum(adapted.values())} of {len(linear)} linear layers ({kinds})" if adapted else ""
    return [
        f"adapter: {section.method}{rank}{where}",
        f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.2%})",
    ]


@contextmanager
def trainable_weights_kept(model: PeftModel) -> Iterator[None]:
    """Undo trl's cast of a quantized model's adapter to bf16 (SFTTrainer.__init__), which follows the QLoRA paper.

    In float32, small updates are not lost, an adapter that is continued is not rounded, and fp16's gradient scaler
    works on cards without bf16. Related: trl#7268, peft#2889.
    """
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    yield
    for name, weight in model.named_parameters():
        if name in before:
            weight.data = before[name].float()


@contextmanager
def initial_adapter(section: Adapter, model: PeftModel) -> Iterator[Path | None]:
    """For PiSSA and OLoRA, the untrained adapter in a folder that lasts as long as the block; else None."""
    if section.method not in CONVERTED_INITS or section.from_ is not None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        config: Any = model.peft_config["default"]
        chosen, config.init_lora_weights = config.init_lora_weights, True
        model.save_pretrained(folder, save_embedding_layers=False)
        config.init_lora_weights = chosen
        yield Path(folder)


def save_adapter(model: PeftModel, folder: Path, base: dict[str, Any], initial: Path | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json.

    Args:
        base: Identity of the base, whose name and revision stand in the configuration.
        initial: The untrained adapter, when the difference must be saved (`initial_adapter`).
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = base["name"]
    config.revision = base["revision"]
    options: dict[str, Any] = {} if initial is None else {"path_initial_model_for_weight_conversion": str(initial)}
    # New tokens are saved as their own rows; peft would add the whole resized embedding. A reference is not saved.
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"], **options)
    (folder / "README.md").unlink(missing_ok=True)
    if initial is not None:
        _add_whole_modules(model, folder / "adapter_model.safetensors")


def _add_whole_modules(model: PeftModel, path: Path) -> None:
    """Put modules that were trained whole into a converted adapter: peft's conversion writes LoRA matrices alone."""
    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    written = load_file(path)
    left_out = {key: tensor.detach().cpu() for key, tensor in trained.items() if "lora_" not in key}
    if left_out.keys() - written.keys():
        save_file(left_out | written, path, metadata={"format": "pt"})


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The base model with a saved adapter on it.

    Raises:
        ModelError: If the folder holds none, or it does not fit the model.
    """
    with _read_safely(model, folder):
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    assert isinstance(adapted, PeftModel)
    _check_keys(adapted, folder)
    return adapted


def load_beside(model: PeftModel, folder: Path, name: str) -> None:
    """Another saved adapter on the same base, which shares its weights; `model.set_adapter(name)` switches to it.

    Raises:
        ModelError: If the folder holds none, or it does not fit the model.
    """
    with _read_safely(model, folder):
        model.load_adapter(str(folder), name)
    _check_keys(model, folder, name)


@contextmanager
def _read_safely(model: torch.nn.Module, folder: Path) -> Iterator[None]:
    """Around peft's reading of a saved adapter: what is missing or hostile is refused before, what does not fit told.

    Raises:
        ModelError: In one line.
    """
    check_files(folder)
    pattern = saved_config(folder).target_modules
    if isinstance(pattern, str):
        names = [name for name, _ in model.named_modules()]
        passed = limited(lambda: [re.fullmatch(pattern, name) for name in names])
        if passed:
            raise ModelError(f"{folder}: adapter_config.json's target_modules takes over {passed}; do not trust it.")
    try:
        yield
    except KeyError as error:  # peft looks modules up that are saved whole
        raise ModelError(f"{folder}: adapter_model.safetensors lacks {error.args[0]}. Fetch it again.") from error
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: does not fit the base model ({' '.join(str(error).split())[:200]}).") from error


def check_files(folder: Path) -> None:
    """Refuse a folder without the two files of an adapter.

    Raises:
        ModelError: Naming the one that is missing.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: no adapter here (adapter_config.json is missing).")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: no adapter_model.safetensors. Pickled adapters are refused; convert it first.")


def saved_config(folder: Path) -> Any:
    """What a saved adapter says of itself.

    Raises:
        ModelError: If it cannot be read.
    """
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise ModelError(f"{folder}: adapter_config.json cannot be read ({reason}). Fetch it again.") from error


def _check_keys(model: PeftModel, folder: Path, name: str = "default") -> None:
    """Every tensor that the adapter needs is in its file, and none besides; peft goes on with what it finds.

    Raises:
        ModelError: If they differ.
    """
    from safetensors import safe_open

    expected = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        # peft adds the whole embeddings of a grown vocabulary; they are no part of the adapter.
        saved = {key for key in file.keys() if key in expected or "lora_" in key or not key.endswith(EMBEDDINGS)}  # noqa: SIM118
    for what, keys in (("lacks", expected - saved), ("has unknown", saved - expected)):
        if keys:
            raise ModelError(
                f"{folder}: adapter_model.safetensors {what} {len(keys)} tensors, such as {min(keys)}. "
                "It does not fit its adapter_config.json or the base."
            )


def loraplus_optimizer(model: PeftModel, section: Adapter, args: Any) -> torch.optim.Optimizer:
    """LoRA+ (arXiv 2402.12354): B learns `loraplus_lr_ratio` times as fast as A; the rest as `trainer:` says."""
    from peft.optimizers import create_loraplus_optimizer
    from transformers import Trainer

    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    options |= {"weight_decay": args.weight_decay}
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model=model, optimizer_cls=kind, loraplus_lr_ratio=section.loraplus_lr_ratio or 1.0, **options
    )
    return optimizer


def _continue(section: Adapter, model: PreTrainedModel, task: str) -> PeftModel:
    folder = Path(section.from_ or "")
    check_files(folder)
    saved_for = saved_config(folder).task_type or "CAUSAL_LM"
    if saved_for == task:
        adapted = load_adapter(model, folder, trainable=True)
    elif saved_for == "CAUSAL_LM" and task not in WITHOUT_HEAD:
        adapted = _beside_new_head(model, folder, task)
    else:
        told = TOLD.get(saved_for, f"one for {saved_for}")
        raise ModelError(f"adapter.from: {folder} holds {told} adapter, and {TOLD[task]} is trained here.")
    config = adapted.peft_config["default"]
    saved = {"rank": getattr(config, "r", None), "alpha": getattr(config, "lora_alpha", None)}
    for key, value in saved.items():
        if key in section.model_fields_set and getattr(section, key) != value:
            asked = getattr(section, key)
            raise ModelError(f"adapter.{key} is `{asked}`; the adapter in {folder} has {value}. Remove adapter.{key}.")
    return adapted


def _beside_new_head(model: PreTrainedModel, folder: Path, task: str) -> PeftModel:
    """A language model's adapter on a classifier, whose head is new.

    Raises:
        ModelError: If the adapter is more than what both models have in common.
    """
    config = saved_config(folder)
    config.task_type, config.inference_mode = TaskType(task), False
    try:
        adapted = get_peft_model(model, config)
        tensors = load_file(folder / "adapter_model.safetensors")
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        heads = {key: expected[key] for key in expected if any(f".{head}." in key for head in HEADS)}
        peft.set_peft_model_state_dict(adapted, heads | tensors)
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, SafetensorError) as error:
        raise ModelError(f"{folder}: does not fit the base model ({' '.join(str(error).split())[:200]}).") from error
    other = expected.keys() - heads.keys() ^ tensors.keys()
    if other:
        raise ModelError(
            f"{folder}: trains {min(other)}, which a model with a head does not share with a "
            "language model. Give adapter.from an adapter of inner layers alone."
        )
    assert isinstance(adapted, PeftModel)
    return adapted


def _besides_heads(excluded: Any, drawn: Sequence[str]) -> str:
    """A pattern of the modules that carry no adapter: those asked for, heads, and what is trained whole.

    peft's all-linear leaves out no heads but classifiers' of one layer.
    """
    names = [re.escape(name) for name in (*HEADS, *drawn)]
    if isinstance(excluded, list):
        names += [re.escape(name) for name in excluded]
    pattern = rf"(.*\.)?({'|'.join(names)})(\..*)?"
    return f"({pattern})|({excluded})" if isinstance(excluded, str) else pattern


def _check_reach(section: Adapter, model: PreTrainedModel) -> None:
    """Every pattern must match a module; peft accepts a typo as long as another pattern matches."""
    names = [name for name, _ in model.named_modules() if name]
    leaves = sorted({name.rpartition(".")[2] for name in _linear_names(model)})
    lists = {"target_modules": section.target_modules}
    lists |= {key: section.options[key] for key in ("exclude_modules", "modules_to_save") if section.options.get(key)}
    for key, patterns in lists.items():
        if patterns == "all-linear":
            continue
        if isinstance(patterns, str):
            if not any(re.fullmatch(patterns, name) for name in names):
                raise ModelError(f"adapter.{key}: `{patterns}` matches no module. Linear layers: {', '.join(leaves)}.")
            continue
        for pattern in patterns:
            if not any(name == pattern or name.endswith(f".{pattern}") for name in names):
                close = difflib.get_close_matches(pattern, leaves, n=1)
                hint = f"Did you mean `{close[0]}`?" if close else f"Linear layers: {', '.join(leaves)}."
                raise ModelError(f"adapter.{key}: `{pattern}` matches no module. {hint}")
        if key == "target_modules" and any(head in patterns and hasattr(model, head) for head in HEADS):
            raise ModelError("adapter.target_modules: the head is trained whole beside the adapter. Leave it out.")
        if key == "target_modules" and "lm_head" in patterns:
            raise ModelError(
                "adapter.target_modules: `lm_head` cannot carry an adapter, since trl's loss reads its weight "
                "directly. Train it whole with adapter.options.modules_to_save: [lm_head]."
            )
    layers = section.options.get("layers_to_transform")
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if count is not None and not 0 <= layer < count:
            raise ModelError(f"adapter.options.layers_to_transform: {layer}; the model has layers 0 to {count - 1}.")


def _linear_names(model: torch.nn.Module) -> list[str]:
    """Names of the base's linear layers, the output layer left out."""
    names = []
    for name, module in model.named_modules():
        kind = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        inside = any(part in name for part in (".base_layer", ".lora_", ".token_adapter", "modules_to_save"))
        linear = isinstance(kind, torch.nn.Linear) or type(kind).__name__ == "Conv1D"
        is_head = name.endswith(("lm_head", "original_module")) or bool(set(name.split(".")) & set(HEADS))
        if linear and not inside and not is_head:
            names.append(name)
    return names


def _token_indices(section: Adapter, model: PreTrainedModel, ids: list[int]) -> dict[str, list[int]]:
    """peft's trainable_token_indices for the input embedding, and the output embedding where it is not tied."""
    if section.method not in LORA_METHODS:
        raise ModelError(f"new tokens need a LoRA method; adapter.method is `{section.method}`.")
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    indices = {names[inputs]: list(ids)}
    if outputs is not None and outputs.weight is not inputs.weight:
        indices[names[outputs]] = list(ids)
    return indices


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
