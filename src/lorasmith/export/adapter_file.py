"""An adapter's folder, read without torch: configuration, tensor headers, and how its tensors belong together."""

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lorasmith.errors import ModelError
from lorasmith.hostile import limited

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
LARGEST_JSON = 64 << 20  # bytes; run.json takes some kilobytes
LORA = ("LORA", "ADALORA")  # peft types whose update is B A
SWITCHES = {"use_rslora": "rslora", "use_dora": "dora", "use_qalora": "qalora", "use_bdlora": "bdlora"}
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
PREFIX = "base_model.model."
# peft's names for a method's tensors start with the method's own, but for these.
PARTS = {"ADALORA": "lora_", "LOHA": "hada_", "VERA": "vera_lambda_"}
TOKENS, EMBEDDING = "trainable_tokens_delta", "lora_embedding_"
# Beginnings of module paths that transformers has moved about between its versions.
_WANDERING = {"model", "base_model", "transformer", "language_model"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in a safetensors file.

    Attributes:
        dtype: As safetensors names it, such as BF16.
        start: First byte, from the start of the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter's files, read and checked for their form.

    Attributes:
        tensors: By their names in adapter_model.safetensors.
        run: run.json, or empty.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    run: dict[str, Any]

    @property
    def peft_type(self) -> str:
        """peft's name of the method, such as LORA."""
        return str(self.config["peft_type"])

    @property
    def method(self) -> str:
        """The method as a recipe names it, such as dora."""
        named = [name for key, name in SWITCHES.items() if self.config.get(key)]
        return named[0] if named else self.peft_type.lower()

    def parts(self) -> dict[str, dict[str, str]]:
        """Tensor names by module and part: {"model.layers.0.self_attn.q_proj": {"lora_A": name, "lora_B": name}}."""
        found: dict[str, dict[str, str]] = {}
        for name in self.tensors:
            module, part = split_name(name, self.peft_type)
            found.setdefault(module, {})[part] = name
        return found

    def rank(self, module: str) -> int:
        """Rank that the configuration gives a module; AdaLoRA's stands in the tensors alone."""
        return int(_by_pattern(self.config.get("rank_pattern"), module, self.config["r"]))

    def alpha(self, module: str) -> float:
        """lora_alpha that the configuration gives a module."""
        return float(_by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))

    def scale(self, module: str, rank: int) -> float:
        """What peft multiplies B A with: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        return self.alpha(module) / (rank**0.5 if self.config.get("use_rslora") else rank)


def read_adapter(folder: Path) -> AdapterFile:
    """Read an adapter's folder.

    Raises:
        ModelError: If it holds no adapter as safetensors, or a file cannot be read as what it should be.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder. Give the folder of an adapter.")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: no adapter here ({CONFIG} is missing).")
    config = read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        pickled = next((path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES), None)
        mend = f"Turn {pickled} into it: adapter.py convert {folder} --out DIR." if pickled else "Fetch it again."
        raise ModelError(f"{folder}: no {WEIGHTS}. {mend}")
    tensors = read_tensors(folder / WEIGHTS)
    if not tensors:
        raise ModelError(f"{folder / WEIGHTS}: holds no tensors. Fetch it again.")
    run = read_record(folder / "run.json") if (folder / "run.json").is_file() else {}
    found = AdapterFile(folder, config, tensors, run)
    check_patterns(config, list(found.parts()), folder)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json, with the fields that are relied on here of their right types.

    Raises:
        ModelError: If one is not.
    """
    config = read_record(path)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or not re.fullmatch(r"\w+", kind):
        raise ModelError(f"{path}: peft_type is {shown(kind)}; expected a method such as LORA.")
    if kind not in LORA:
        return config
    rank, alpha = config.setdefault("r", 8), config.setdefault("lora_alpha", 8)  # peft's defaults
    if not _is_whole(rank):
        raise ModelError(f"{path}: r is {shown(rank)}; expected a whole number above 0.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise ModelError(f"{path}: lora_alpha is {shown(alpha)}; expected a number above 0.")
    targets = config.get("target_modules")
    if not isinstance(targets, str | None) and not _are_texts(targets):
        raise ModelError(f"{path}: target_modules is {shown(targets)}; expected names or one expression.")
    for key in ("modules_to_save", "exclude_modules"):
        is_expression = key == "exclude_modules" and isinstance(config.get(key), str)
        if config.get(key) is not None and not is_expression and not _are_texts(config[key]):
            raise ModelError(f"{path}: {key} is {shown(config[key])}; expected names.")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        right = isinstance(pattern, dict) and all(isinstance(one, int | float) and one > 0 for one in pattern.values())
        if not right and kind == "LORA":
            raise ModelError(f"{path}: {key} is {shown(pattern)}; expected a number above 0 for each name.")
    return config


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: If it is none.
    """
    if path.stat().st_size > LARGEST_JSON:
        raise ModelError(f"{path}: over {LARGEST_JSON >> 20} MiB; expected a record of some kilobytes.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({shown(str(error))}). Fetch or write it again.") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: not a JSON object. Fetch or write it again.")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Names, types, shapes and places of the tensors in a safetensors file, whose form safetensors itself checks.

    Raises:
        ModelError: If it is no safetensors file.
    """
    with _opened(path):
        pass
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        found[name] = Tensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + first, end - first)
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The free text in a safetensors file's header."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of all safetensors files of a model.

    Raises:
        ModelError: If there are none.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{folder}: no weights as safetensors here. Give the folder of a model.")
    found: dict[str, Tensor] = {}
    for path in paths:
        found |= read_tensors(path)
    return found


def split_name(name: str, peft_type: str) -> tuple[str, str]:
    """Module and part of a tensor's name; the part of a module that is saved whole is its weight or bias."""
    start = PARTS.get(peft_type, f"{peft_type.lower()}_")
    words = name.removeprefix(PREFIX).split(".")
    for at, word in enumerate(words):
        if word.startswith(start) or word in ("token_adapter", "base_layer"):
            part = words[at:]
            if part[-1] == "weight" and word != "base_layer":
                part = part[:-1]
            return ".".join(words[:at]), part[-1] if word == "token_adapter" else ".".join(part)
    return ".".join(words[:-1]), words[-1]


def canonical(module: str) -> str:
    """A module's path without the words that differ between versions of transformers and between files."""
    return ".".join(word for word in module.split(".") if word not in _WANDERING)


def layer_of(module: str) -> int | None:
    """The number of the layer that a module is in, if it is in one."""
    return next((int(word) for word in module.split(".") if word.isdecimal()), None)


def leaf(module: str) -> str:
    """The last word of a module's path."""
    return module.rpartition(".")[2]


def is_target(config: dict[str, Any], key: str, module: str) -> bool:
    """Whether a module is among target_modules or modules_to_save, as peft matches them."""
    wanted = config.get(key) or []
    if isinstance(wanted, str):
        return wanted == "all-linear" or re.fullmatch(wanted, module) is not None
    return any(module == one or module.endswith(f".{one}") for one in wanted)


def check_patterns(config: dict[str, Any], modules: list[str], where: Path) -> None:
    """Try the expressions of somebody else's configuration in limited time.

    Raises:
        ModelError: If one is none, or takes too long.
    """
    wanted = [config[key] for key in ("target_modules", "exclude_modules") if isinstance(config.get(key), str)]
    for key in ("rank_pattern", "alpha_pattern"):
        wanted += [rf"(.*\.)?({one})$" for one in config.get(key) or {}]
    risky = [one for one in wanted if set(one.removeprefix(r"(.*\.)?(").removesuffix(")$")) & set("()[]{}*+?|^$\\")]
    for one in risky:
        try:
            compiled = re.compile(one)
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{where}: {CONFIG}: {shown(one)} is no regular expression ({error}).") from None

        def try_it(compiled: re.Pattern[str] = compiled) -> None:
            for module in modules:
                compiled.match(module)
                compiled.fullmatch(module)

        passed = limited(try_it)
        if passed:
            raise ModelError(f"{where}: {CONFIG}: {shown(one)} takes over {passed} to match; do not trust it.")


def shown(value: Any, longest: int = 80) -> str:
    """A value of somebody else's file, short enough for a message."""
    text = " ".join(str(value).split())
    return f"`{text[:longest]}…`" if len(text) > longest else f"`{text}`"


def value_at(record: Any, *keys: str) -> Any:
    """A value deep in a record, or None where anything on the way is missing or no object."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def record_at(record: Any, *keys: str) -> dict[str, Any]:
    """A record deep in a record; empty where there is none."""
    found = value_at(record, *keys)
    return found if isinstance(found, dict) else {}


def _by_pattern(pattern: Any, module: str, default: Any) -> Any:
    """A module's value by peft's rule (peft.utils.other.get_pattern_key): the first key that matches its end."""
    for key, value in (pattern or {}).items():
        if not isinstance(value, list) and re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{path}: not a safetensors file ({reason}). Fetch or write it again.") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
