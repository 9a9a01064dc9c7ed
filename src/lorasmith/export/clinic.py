"""Whether an adapter is sound: its form, its numbers, its base, its template, and what must not be shared."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith import leaks
from lorasmith.errors import ModelError
from lorasmith.export.adapter_file import (
    CONFIG,
    EMBEDDING,
    LORA,
    PICKLES,
    TOKENS,
    WEIGHTS,
    AdapterFile,
    Tensor,
    canonical,
    is_target,
    leaf,
    read_folder_tensors,
    read_metadata,
    shown,
    value_at,
)

# A number's exponent bits, all of which are set in an infinite one and in NaN; E4M3 has NaN alone.
_EXPONENTS = {
    "F64": ("u8", 0x7FF0000000000000),
    "F32": ("u4", 0x7F800000),
    "F16": ("u2", 0x7C00),
    "BF16": ("u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
_SIGNED = {"u8": 1 << 63, "u4": 1 << 31, "u2": 1 << 15, "u1": 1 << 7}
_PATH = re.compile(r"(~|/[^/\n]+|[A-Za-z]:)[/\\\\][^\n]{1,4000}")
_CHUNK = 1 << 24  # bytes looked at in one piece
# peft names all of these where it trains a classifier, and a model has one of them.
_HEADS = ("classifier", "score", "qa_outputs")
# peft adds the embeddings of a vocabulary that has grown.
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about an adapter that its owner should know.

    Attributes:
        kind: "wrong" (it does not load as it should), "diverged" (it loads and is of no use), "unsafe" (not to be
            shared as it is; `pack` mends it), or "note".
    """

    kind: str
    text: str


def check(
    adapter: AdapterFile, base: Path | None = None, fingerprint: Callable[[Path], str] | None = None
) -> list[Finding]:
    """All that is wrong with an adapter, as far as its files show it.

    Args:
        base: Folder of its base, of which the headers alone are read, and what `fingerprint` reads.
        fingerprint: models.weight_fingerprint.

    Raises:
        ModelError: If the base has no safetensors.
    """
    return [
        *_form(adapter),
        *_numbers(adapter),
        *([] if base is None else _fit(adapter, base, fingerprint)),
        *_template(adapter),
        *_safety(adapter.folder),
    ]


def _form(adapter: AdapterFile) -> Iterable[Finding]:
    """Whether the tensors are those that adapter_config.json speaks of."""
    config, tensors = adapter.config, adapter.tensors
    if adapter.peft_type not in LORA or config.get("target_parameters"):
        return
    used: set[str] = set()
    parts = adapter.parts()
    for module, names in parts.items():
        kinds = set(names)
        for first, second in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if kinds & {first, second} and not kinds >= {first, second}:
                lacking, there = (second, first) if first in kinds else (first, second)
                yield Finding("wrong", f"{module} has {there} and lacks {lacking}")
            elif first in kinds:
                used.add(module)
                down, up = tensors[names[first]].shape, tensors[names[second]].shape
                if len(down) < 2 or len(up) < 2 or down[0] != up[1]:
                    yield Finding("wrong", f"{module}: {first} {list(down)} does not fit {second} {list(up)}")
                elif adapter.peft_type == "LORA" and down[0] != adapter.rank(module):
                    yield Finding("wrong", f"{module} has rank {down[0]}; {CONFIG} says {adapter.rank(module)}")
        if config.get("use_dora") and "lora_A" in kinds and "lora_magnitude_vector" not in kinds:
            yield Finding("wrong", f"{module} lacks lora_magnitude_vector, which DoRA needs")
        saved = kinds <= {"weight", "bias"} and (_is_saved(config, module) or leaf(module) in _EMBEDDINGS)
        if not saved and kinds <= {"weight", "bias"} and not (config.get("bias", "none") != "none" and "bias" in kinds):
            yield Finding("wrong", f"{names[min(kinds)]} is unexpected: {CONFIG} does not name {module}")
        if TOKENS in kinds and not config.get("trainable_token_indices"):
            yield Finding("wrong", f"{names[TOKENS]} is unexpected: {CONFIG} names no trainable tokens")
    for module in sorted(used):
        if config.get("target_modules") is not None and not is_target(config, "target_modules", module):
            yield Finding("wrong", f"{module} is unexpected: it is not among target_modules, so peft leaves it out")
    for key, end, have in (("target_modules", ".", used), ("modules_to_save", "", set(parts) - used)):
        for one in config[key] if isinstance(config.get(key), list) else []:
            if one not in _HEADS and not any(module == one or module.endswith(end + one) for module in have):
                yield Finding("wrong", f"{key} names {shown(one)}, and no tensor is for it")
    if config.get("trainable_token_indices") and not any(TOKENS in names for names in parts.values()):
        yield Finding("wrong", f"{CONFIG} names trainable tokens, and {WEIGHTS} has no rows for them")


def _is_saved(config: dict[str, Any], module: str) -> bool:
    return any(module.endswith(one) for one in config.get("modules_to_save") or [])


def _numbers(adapter: AdapterFile) -> Iterable[Finding]:
    """Whether all numbers are finite, and any module has an effect."""
    zero: set[str] = set()
    for name, tensor in adapter.tensors.items():
        finite, is_zero = _finite_and_zero(tensor)
        if not finite:
            yield Finding("diverged", f"{name} holds numbers that are not finite")
        if is_zero:
            zero.add(name)
    if len(zero) == len(adapter.tensors):
        yield Finding("diverged", "inert: all of its tensors are zero")
        return
    if adapter.peft_type not in LORA:
        return
    parts = adapter.parts()
    updates = {module: names for module, names in parts.items() if any(part.startswith("lora_") for part in names)}
    trained_besides = len(updates) < len(parts) or any(TOKENS in names for names in parts.values())
    trained_besides |= any("lora_magnitude_vector" in names or "lora_B.bias" in names for names in updates.values())
    factors = ("lora_A", "lora_B", "lora_E", f"{EMBEDDING}A", f"{EMBEDDING}B")
    still = [module for module, names in updates.items() if {names[part] for part in factors if part in names} & zero]
    if updates and len(still) == len(updates) and not trained_besides:
        yield Finding("diverged", f"inert: lora_B or lora_A is zero in all {len(updates)} modules")
        return
    if still:
        yield Finding("note", f"{len(still)} of {len(updates)} modules have no effect (zero), such as {still[0]}")


def _finite_and_zero(tensor: Tensor) -> tuple[bool, bool]:
    """Whether a tensor's numbers are all finite, and all zero, from their bits."""
    import numpy as np

    if tensor.dtype not in _EXPONENTS:
        return True, False
    kind, exponent = _EXPONENTS[tensor.dtype]
    finite = is_zero = True
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.bytes
        while left and (finite or is_zero):
            data = np.frombuffer(file.read(min(left, _CHUNK)), dtype=np.dtype(f"<{kind}"))
            left -= data.nbytes
            finite = finite and not bool(np.any((data & data.dtype.type(exponent)) == exponent))
            is_zero = is_zero and not bool(np.any(data & data.dtype.type(_SIGNED[kind] - 1)))
    return finite, is_zero


def _fit(adapter: AdapterFile, base: Path, fingerprint: Callable[[Path], str] | None) -> Iterable[Finding]:
    """Whether the adapter is one for this base: same weights, and modules of the right shapes."""
    weights = read_folder_tensors(base)
    trained_on = value_at(adapter.run, "base", "fingerprint")
    if fingerprint is not None and isinstance(trained_on, str) and fingerprint(base) != trained_on:
        name = shown(value_at(adapter.run, "base", "name"))
        yield Finding("wrong", f"{base} holds other weights than those of {name} that it was trained on")
    if adapter.peft_type not in LORA or adapter.config.get("target_parameters"):
        return
    shapes = {
        canonical(name.removesuffix(".weight")): tensor.shape
        for name, tensor in weights.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype in _EXPONENTS
    }
    known = {canonical(name.rpartition(".")[0]) for name in weights}
    have = adapter.parts()
    for module, names in have.items():
        place = canonical(module)
        elsewhere = "experts" in module or leaf(module) in _EMBEDDINGS or _is_saved(adapter.config, module)
        if place not in known and not elsewhere:
            yield Finding("wrong", f"{module} is unexpected: {base} has no such module")
        shape = shapes.get(place)
        if shape is None or not names.keys() & {"lora_A", "lora_embedding_A"}:
            continue
        embedding = "lora_embedding_A" in names
        down, up = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if up not in names or any(len(adapter.tensors[names[part]].shape) != 2 for part in (down, up)):
            continue
        pair = (adapter.tensors[names[up]].shape[0], adapter.tensors[names[down]].shape[-1])
        if pair != (shape[::-1] if embedding or adapter.config.get("fan_in_fan_out") else shape):
            yield Finding("wrong", f"{module} is for a weight of {list(pair)}; that of {base} is {list(shape)}")
    if isinstance(adapter.config.get("target_modules"), list) and not _is_partial(adapter.config):
        there = {canonical(module) for module in have}
        for name in weights:
            module = name.removesuffix(".weight")
            lacks = canonical(module) in shapes and canonical(module) not in there
            if lacks and is_target(adapter.config, "target_modules", module):
                yield Finding("wrong", f"{module} is among target_modules, and {WEIGHTS} has no tensors for it")


def _is_partial(config: dict[str, Any]) -> bool:
    """Whether only some of the modules that target_modules names are meant."""
    return any(config.get(key) is not None for key in ("layers_to_transform", "exclude_modules", "layer_replication"))


def _template(adapter: AdapterFile) -> Iterable[Finding]:
    """Whether the chat template is the one of the run."""
    trained_with = adapter.run.get("template_hash")
    if not isinstance(trained_with, str) or not (adapter.folder / "tokenizer_config.json").is_file():
        return
    template = saved_template(adapter.folder)
    found = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest() if template else None
    if found != trained_with:
        what = "is another than" if found else "is missing, and it had one"
        yield Finding("wrong", f"its chat template {what} in training. Restore chat_template.jinja")


def saved_template(folder: Path) -> str | dict[str, str] | None:
    """The chat template in a folder's tokenizer files, as transformers would load it."""
    found: dict[str, str] = {}
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8", errors="replace")
    if found:
        return found["default"] if list(found) == ["default"] else found
    try:
        template = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if isinstance(template, list):
        return {str(value_at(one, "name")): str(value_at(one, "template")) for one in template}
    return template


def _safety(folder: Path) -> Iterable[Finding]:
    """Pickles, secrets, and paths of this machine."""
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES and path.is_file():
            yield Finding("unsafe", f"{path.name} may be a pickle, which runs code when it is loaded. Remove it")
        if not path.is_file() or path.suffix not in leaks.WRITTEN or path.stat().st_size > leaks.LARGEST:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        shaped = path.name not in leaks.TOKENIZER and leaks.cleaned(text) != text
        if shaped or any(value in text for value in leaks.values()):
            yield Finding("unsafe", f"{path.name} holds an access token. Remove it, and withdraw the token")
        if path.suffix == ".json" and path.name not in leaks.TOKENIZER:
            paths = sorted(absolute_paths(_loaded(text)))
            if paths:
                yield Finding("note", f"{path.name} names {shown(paths[0])}, a path of one machine")
    metadata = json.dumps(read_metadata(folder / WEIGHTS))
    if leaks.cleaned(metadata) != metadata:
        yield Finding("unsafe", f"the header of {WEIGHTS} holds an access token. Write it anew: adapter.py convert")


def absolute_paths(record: Any) -> set[str]:
    """The texts in a record that are absolute paths."""
    found: set[str] = set()
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and _PATH.fullmatch(value):
            found.add(value)
    return found


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def unusable(findings: Iterable[Finding]) -> list[Finding]:
    """The findings for which an adapter must not be handed on."""
    return [finding for finding in findings if finding.kind in ("wrong", "diverged")]


def require_sound(adapter: AdapterFile, numbers: bool = True) -> None:
    """Refuse an adapter that cannot be used.

    Args:
        numbers: Whether they are looked at, besides names and shapes.

    Raises:
        ModelError: Naming the first reason.
    """
    found = unusable(check(adapter) if numbers else _form(adapter))
    if found:
        raise ModelError(f"{adapter.folder}: {found[0].text}. All that is wrong: adapter.py check {adapter.folder}.")
