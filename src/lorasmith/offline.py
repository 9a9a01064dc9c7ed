"""What a run needs from the hub and this machine lacks, told before anything heavy is imported."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from lorasmith.errors import UnreachableError
from lorasmith.recipe import Recipe

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst"}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def is_offline() -> bool:
    """Whether the libraries were told to open no connection."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def check_files(recipe: Recipe) -> None:
    """Refuse a run whose model or rows are neither files here nor in the hub's cache.

    Raises:
        UnreachableError: Naming every file that is missing, and how to fetch them.
    """
    lines = []
    model = recipe.model
    if _is_hub_id(model.name):
        missing = _missing_of_model(_cached(model.name, model.revision))
        if missing:
            lines.append(f"{', '.join(missing)} of {model.name} ({model.revision}): hf download {model.name}")
    data = recipe.data
    for name in dict.fromkeys([source for source, _ in data.sources] + ([data.eval] if data.eval else [])):
        if _is_hub_id(name) and not _has_rows(name):
            lines.append(f"the rows of {name}: hf download --repo-type dataset {name}")
    if lines:
        raise UnreachableError(
            f"not on this machine, and the hub is out of reach: {'; '.join(lines)}. Fetch them where it is not."
        )


def _is_hub_id(name: str) -> bool:
    """Whether a name is neither here nor that of a file or folder that should be."""
    is_file = Path(name).suffix.lower() in FILES
    return not Path(name).exists() and not is_file and bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", name))


def _cached(name: str, revision: str) -> Callable[[str], Path | None]:
    """A finder of a hub model's files in the cache."""
    from huggingface_hub import try_to_load_from_cache

    def find(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=revision)
        return Path(found) if isinstance(found, str) and Path(found).exists() else None

    return find


def _missing_of_model(find: Callable[[str], Path | None]) -> list[str]:
    missing = [] if find("config.json") else ["config.json"]
    if not any(find(name) for name in TOKENIZERS):
        missing.append(TOKENIZERS[0])
    index = find(INDEX)
    if index is not None:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing += sorted(part for part in parts if not find(part))
    elif not find(WEIGHTS):
        missing.append(WEIGHTS)
    return missing


def _has_rows(name: str) -> bool:
    """Whether datasets has prepared, or the hub's cache holds, anything of a data set."""
    from huggingface_hub.constants import HF_HUB_CACHE

    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HUB_CACHE).parent / "datasets"))
    places = [prepared / name.replace("/", "___"), Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"]
    return any(place.is_dir() for place in places)
