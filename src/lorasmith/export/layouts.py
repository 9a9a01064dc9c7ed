"""Adapters in other layouts, written as today's peft reads them: old peft, moved modules, kohya, pickles."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorasmith.errors import ModelError
from lorasmith.export.adapter_file import (
    CONFIG,
    PICKLES,
    PREFIX,
    WEIGHTS,
    AdapterFile,
    canonical,
    check_patterns,
    is_target,
    read_config,
    read_folder_tensors,
    read_tensors,
    shown,
    split_name,
)
from lorasmith.export.adapter_folder import full_lora_config
from lorasmith.export.surgery import module_kinds

Tensors = dict[str, torch.Tensor]
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_NAMED_PART = re.compile(
    r"(lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|trainable_tokens_delta)"
    r"\.([^.]+)(\.weight|\.bias)?$"
)
_SAVED_WHOLE = re.compile(r"\.modules_to_save\.[^.]+\.")
_KOHYA = re.compile(r"(lora_[a-z]+\d?)_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")


def convert(
    old: Path, base: Path | None, part: str | None, alpha: float | None
) -> tuple[dict[str, Any], Tensors, list[str]]:
    """Configuration and tensors of an adapter in today's layout, and a line for each thing that was changed.

    Args:
        old: Folder or file of the adapter.
        base: Folder of its base, by whose modules names are mended; kohya's names need it.
        part: Which model's adapter to take from a kohya file that holds several, such as lora_te.
        alpha: lora_alpha of a peft adapter that came without a configuration.

    Raises:
        ModelError: If it is no adapter, or a name could be read in several ways.
    """
    path = _weights_file(old)
    lines = [f"{path.name} is read without running anything in it"] if path.suffix in PICKLES else []
    tensors = _load(path)
    modules = None if base is None else _modules(base)
    if any(_KOHYA.fullmatch(name) for name in tensors):
        if modules is None:
            raise ModelError(f"{path}: kohya's names need the base's to be read. Say where it is with --base.")
        config, tensors, told = _from_kohya(tensors, modules, part, path)
        return config, tensors, lines + told
    config_path = (old if old.is_dir() else old.parent) / CONFIG
    if config_path.is_file():
        config = read_config(config_path)
    elif alpha is None:
        raise ModelError(f"{path}: has no {CONFIG} beside it. Give its lora_alpha with --alpha.")
    else:
        config = {}
    kind = config.get("peft_type", "LORA")
    tidy = {name: name for name in tensors} | _tidy(tensors)
    renamed = tidy if modules is None else tidy | _moved(tidy, modules, kind, path)
    found: Tensors = {}
    for name, tensor in tensors.items():
        new = renamed[name]
        if new in found:
            raise ModelError(f"{path}: two tensors would be {new}. It holds more than one adapter; give one alone.")
        if new:
            found[new] = tensor
    lines += [
        f"renamed: {name} to {new}" if new else f"left out: {name}" for name, new in renamed.items() if new != name
    ]
    if not config:
        assert alpha is not None
        whole = int(alpha) if alpha.is_integer() else alpha
        config = _config_of(_ranks(found), path) | {"lora_alpha": whole}
        lines.append(f"{CONFIG} is made from the tensors' shapes and --alpha {whole}")
    elif kind == "LORA":
        lines += _follow(config, {tidy[name]: new for name, new in renamed.items()}, _ranks(found), path)
    return config, found, lines


def _weights_file(old: Path) -> Path:
    if old.is_file():
        return old
    if not old.is_dir():
        raise ModelError(f"{old}: no such file or folder. Give an adapter's folder, or its file of weights.")
    if (old / WEIGHTS).is_file():
        return old / WEIGHTS
    files = [path for path in sorted(old.iterdir()) if path.suffix in PICKLES and "adapter" in path.name]
    files = files or sorted(old.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelError(f"{old}: {len(files)} files could be the adapter's weights. Give the file itself.")
    return files[0]


def _load(path: Path) -> Tensors:
    """The tensors of a file; nothing but tensors is ever made from a pickle."""
    if path.suffix not in PICKLES:
        read_tensors(path)
        return load_file(path)
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for what is no pickle of tensors, or holds more
        raise ModelError(f"{path}: refused; it is no pickle of tensors alone ({shown(error)}).") from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"{path}: holds no tensors by name; expected an adapter's weights.")
    tensors = {name: one.detach().contiguous().clone() for name, one in found.items() if isinstance(one, torch.Tensor)}
    if not tensors:
        raise ModelError(f"{path}: holds no tensors by name; expected an adapter's weights.")
    return tensors


def _tidy(tensors: Tensors) -> dict[str, str]:
    """Old names and new: without wrappers and the adapter's own name, with peft's prefix; "" leaves one out."""
    renamed = {}
    for name in tensors:
        new = name.removeprefix("module.")
        for wrapper in _WRAPPERS:
            new = new.replace(wrapper, "")
        if ".original_module." in new:
            renamed[name] = ""  # a copy of the base's own
            continue
        new = _SAVED_WHOLE.sub(".", new)
        found = _NAMED_PART.search(new)
        if found and (found[3] or found[2] not in ("weight", "bias")):
            bare = found[1] in ("lora_magnitude_vector", "trainable_tokens_delta") or "embedding" in found[1]
            new = new[: found.start()] + found[1] + ("" if bare else found[3] or "")
        elif new.endswith("lora_magnitude_vector.weight"):
            new = new.removesuffix(".weight")
        if not new.startswith(("base_model.", "prompt_embeddings")):
            new = PREFIX + new
        if new != name:
            renamed[name] = new
    return renamed


def _moved(names: dict[str, str], modules: dict[str, str], kind: str, path: Path) -> dict[str, str]:
    """New names for tensors whose modules stand elsewhere in the base of today."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        places[canonical(module)].append(module)
    known, renamed = set(modules.values()), {}
    for old, name in names.items():
        module, _ = split_name(name, kind)
        # peft itself maps the experts of old mixtures to the fused ones of today.
        if not name or module in known or not name.startswith(PREFIX) or ".experts." in module:
            continue
        fitting = places[canonical(module)]
        if len(fitting) != 1:
            what = f"{len(fitting)} modules of the base could be meant" if fitting else "the base has no such module"
            raise ModelError(f"{path}: {name}: {what}. Give the base that the adapter was trained on.")
        renamed[old] = PREFIX + fitting[0] + name.removeprefix(PREFIX + module)
    return renamed


def _follow(config: dict[str, Any], names: dict[str, str], ranks: dict[str, int], path: Path) -> list[str]:
    """Mend targets and patterns of a configuration where they no longer name the modules that were renamed.

    Args:
        names: Tensors' names, old to new.
        ranks: Ranks by module, as it is named now.
    """
    old_of = {split_name(new, "LORA")[0]: split_name(old, "LORA")[0] for old, new in names.items() if new}
    check_patterns(config, [*old_of, *old_of.values()], path)
    now, lines = AdapterFile(path, config, {}, {}), []
    if not all(is_target(config, "target_modules", module) for module in ranks):
        config["target_modules"] = sorted(ranks)
        lines.append("target_modules names the modules anew, in full")
    alphas = {module: now.alpha(old_of[module]) for module in ranks}
    if any(now.rank(module) != rank for module, rank in ranks.items()):
        config["rank_pattern"] = {module: rank for module, rank in ranks.items() if rank != config["r"]}
        lines.append("rank_pattern names the modules anew, in full")
    if any(now.alpha(module) != alpha for module, alpha in alphas.items()):
        config["alpha_pattern"] = {module: alpha for module, alpha in alphas.items() if alpha != config["lora_alpha"]}
        lines.append("alpha_pattern names the modules anew, in full")
    return lines


def _ranks(tensors: Tensors) -> dict[str, int]:
    downs = {name: one for name, one in tensors.items() if ".lora_A" in name or ".lora_embedding_A" in name}
    return {split_name(name, "LORA")[0]: one.shape[0] for name, one in downs.items() if one.dim()}


def _config_of(ranks: dict[str, int], path: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA of scale 1, from its ranks."""
    if not ranks:
        raise ModelError(f"{path}: there is no lora_A among its tensors, so it is no LoRA. Give its {CONFIG} too.")
    rank = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {module: one for module, one in ranks.items() if one != rank}
    return full_lora_config(None, rank, sorted(ranks), rank_pattern=pattern, alpha_pattern={})


def _from_kohya(
    tensors: Tensors, modules: dict[str, str], part: str | None, path: Path
) -> tuple[dict[str, Any], Tensors, list[str]]:
    """kohya's down, up and alpha as A and B of scale 1; its names have underscores for dots."""
    grouped: dict[str, dict[str, dict[str, torch.Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        found = _KOHYA.fullmatch(name)
        if found is None:
            raise ModelError(f"{path}: {name} is of a kind that is not converted; plain LoRA (down, up, alpha) is.")
        grouped[found[1]][found[2]][found[3].partition(".")[0]] = tensor
    chosen = part or next(iter(grouped))
    if chosen not in grouped or (part is None and len(grouped) > 1):
        raise ModelError(f"{path}: holds adapters for {', '.join(sorted(grouped))}. Choose one with --part.")
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        places[module.replace(".", "_")].append(module)
        if canonical(module) != module:
            places[canonical(module).replace(".", "_")].append(module)
    made: Tensors = {}
    ranks: dict[str, int] = {}
    lines = []
    for name, one in grouped[chosen].items():
        fitting = set(places[name] or places[canonical(name.replace("_", ".")).replace(".", "_")])
        if len(fitting) != 1:
            what = f"{len(fitting)} modules of the base could be meant" if fitting else "the base has no such module"
            raise ModelError(f"{path}: {chosen}_{name}: {what}. Give the base that it was trained on.")
        if "lora_down" not in one or "lora_up" not in one:
            raise ModelError(f"{path}: {chosen}_{name} lacks lora_down or lora_up. Fetch the file again.")
        module, down, up, alpha = fitting.pop(), one["lora_down"], one["lora_up"], one.get("alpha")
        fit = down.dim() > 1 and up.dim() > 1 and 0 < down.shape[0] == up.shape[1]
        if not fit or (alpha is not None and alpha.numel() != 1) or module in ranks:
            raise ModelError(f"{path}: {chosen}_{name}: its tensors do not fit each other. Fetch the file again.")
        rank = down.shape[0]
        scale = 1.0 if alpha is None else float(alpha) / rank
        made[f"{PREFIX}{module}.lora_A.weight"] = down
        made[f"{PREFIX}{module}.lora_B.weight"] = up * scale
        ranks[module] = rank
        lines.append(f"renamed: {chosen}_{name} to {module}, alpha / rank = {scale:g} folded into lora_B")
    config = _config_of(ranks, path)
    return config | {"alpha_pattern": dict(config["rank_pattern"])}, made, lines


def _modules(base: Path) -> dict[str, str]:
    """The base's modules that have weights, by path; from its files alone where transformers cannot build it."""
    if (base / "config.json").is_file():
        return {module: module for module, _ in module_kinds(base).values() if module}
    names = {name.rpartition(".")[0] for name in read_folder_tensors(base)}
    return {name: name for name in names}
