"""A model's config.json: from its folder, from the facts kept here, from the hub's cache, or from the hub."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError, UnreachableError

FACTS = Path(__file__).with_name("facts.json")
FAMILIES = {
    "Qwen3": (
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-1.7B",
        "Qwen/Qwen3-4B",
        "Qwen/Qwen3-8B",
        "Qwen/Qwen3-14B",
        "Qwen/Qwen3-32B",
    ),
    "Llama 3": (
        "meta-llama/Llama-3.2-1B-Instruct",
        "meta-llama/Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
    ),
    "Gemma 3": ("google/gemma-3-1b-it",),
    "SmolLM": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "HuggingFaceTB/SmolLM3-3B",
    ),
}  # smallest first
KINDS = {"qwen3": "Qwen3", "llama": "Llama 3", "gemma3_text": "Gemma 3", "smollm3": "SmolLM"}


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Hub ids with what their config.json says of their shapes, and their published number of parameters."""
    return json.loads(FACTS.read_text(encoding="utf-8"))["models"]


@cache
def task_models() -> dict[str, dict[str, Any]]:
    """The same of encoders and encoder-decoders, without a number of parameters."""
    return json.loads(FACTS.read_text(encoding="utf-8"))["tasks"]


def find_config(name: str, revision: str = "main") -> tuple[dict[str, Any], str]:
    """A model's configuration and where it was found.

    Raises:
        ModelError: If a local folder holds none, or it is not JSON.
        UnreachableError: If it is on the hub alone and the hub is out of reach.
    """
    folder = Path(name)
    if folder.is_dir() or name.startswith((".", "/", "~")):
        return _read(folder / "config.json"), str(folder / "config.json")
    for known in (known_models(), task_models()):
        if name in known:
            return known[name], f"config.json of {name}, kept here"
    return _read(_from_hub(name, revision)), f"config.json of {name}"


def family_of(name: str, kind: str) -> tuple[str, tuple[str, ...]]:
    """The family that a model belongs to, with its members in the facts, smallest first."""
    for family, members in FAMILIES.items():
        if name in members:
            return family, members
    family = KINDS.get(kind, "")
    return family, FAMILIES.get(family, ())


def tokenizer_folder(name: str, revision: str) -> Path | None:
    """Where a model's tokenizer.json lies on this machine, if it does."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(found, str):
        return Path(found)
    problem = f"{name} ({revision}) is not on this machine and the hub is out of reach. Fetch it: hf download {name}."
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        raise UnreachableError(problem)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # the hub's many errors, none of them our bug
        raise UnreachableError(f"{problem} ({' '.join(str(error).split())[:120]})") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file. model.name takes a hub id or a folder with a config.json.") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: not a JSON object.")
    return found
