"""What every conversion reads, a plain model's folder, and where it writes: beside the result, then renamed."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.console import plain
from lorasmith.errors import FitError, LorasmithError, ModelError, RunError
from lorasmith.export.tensors import NAMES, Weights
from lorasmith.memory.machine import free_disk

GIB = 2**30
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a weight; others count as 1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A folder with a whole model, as its files say.

    Attributes:
        config: config.json.
        shapes: The shape of each weight, by name.
        dtypes: The kinds of numbers, by safetensors' names, such as BF16.
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: frozenset[str]

    @property
    def width(self) -> int:
        """Bytes of a weight, of the widest kind there is."""
        return max(WIDTHS.get(dtype, 1) for dtype in self.dtypes)

    @property
    def num_weights(self) -> int:
        """All weights."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def num_linear(self) -> int:
        """The weights that quantization packs: matrices, but for embeddings and head."""
        outside = ("embed", "lm_head", "wte", "wpe")
        packed = (shape for name, shape in self.shapes.items() if not any(word in name for word in outside))
        return sum(math.prod(shape) for shape in packed if len(shape) == 2)


def plain_model(folder: Path) -> PlainModel:
    """Read the config and the weights' headers of a model that can be converted.

    Raises:
        ModelError: If the folder holds an adapter, an already quantized model, no safetensors, or broken files.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder. Give the folder of a merged model.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} is an adapter, not a whole model. Merge it into its base model first.")
    config = read_json(folder / "config.json")
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "something") if isinstance(quantized, dict) else "something"
        raise ModelError(f"{folder} is already quantized with {method}. Give the merged model it was made from.")
    weights = Weights(folder).entries
    shapes = {name: entry.shape for name, entry in weights.items()}
    return PlainModel(folder, config, shapes, frozenset(NAMES[entry.dtype] for entry in weights.values()))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: If it is missing, no JSON, or not an object.
    """
    if not path.is_file():
        raise ModelError(f"{path.parent}: no {path.name}. Give the folder of a whole model.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({plain(str(error))[:80]}). Save the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}; expected an object.")
    return content


@contextmanager
def beside(out: Path, needed: float) -> Iterator[Path]:
    """A path that is not there yet, on the disk of `out`: what the block puts there becomes `out`, whole or not at all.

    Args:
        needed: Bytes that the result and what is made on the way take.

    Raises:
        RunError: If `out` is there already or its folder cannot be made.
        FitError: If the disk is too small.
    """
    if out.exists():
        raise RunError(f"{out} is there already. Remove it or name another place.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out.parent}: cannot be made ({error.strerror}). Name another place.") from error
    free = free_disk(out.parent)
    if free < needed:
        raise FitError(f"{out.parent}: {free / GIB:.2f} GiB free; {out.name} needs about {needed / GIB:.2f}.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            place = Path(work) / out.name
            yield place
            os.replace(place, out)
    except LorasmithError:
        raise
    except PermissionError as error:
        raise RunError(f"{out.parent}: no permission to write there. Name another place.") from error
    except Exception as error:
        if "No space left" not in str(error):
            raise
        raise FitError(f"{out.parent}: the disk filled up while {out.name} was written. Free some space.") from error


def copy_tokenizer(model: Path, out: Path) -> None:
    """Put the tokenizer's files, the chat template and the stop tokens beside the weights, byte for byte."""
    for name in TOKENIZER_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)


def needs(package: str, extra: str, note: str = "") -> LorasmithError:
    """The error for a package that is not installed."""
    return LorasmithError(f"{package} is not installed. Install it: pip install 'lorasmith[{extra}]'{note}.")
