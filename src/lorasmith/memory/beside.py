"""What else lies in a device's memory while grpo.py trains: reward models, and vLLM."""

import json
from pathlib import Path
from typing import Any

from lorasmith import upstream
from lorasmith.errors import LorasmithError
from lorasmith.memory import facts
from lorasmith.memory.conditions import Setting
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.weights import GIB, base_bytes
from lorasmith.recipe import Recipe
from lorasmith.recipe_file import read_recipe

REWARD_MODELS, VLLM = "reward models", "vLLM"


def models_beside(recipe: Recipe, dtype: str, budget: int) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Bytes of other models in memory, by name, and notes on what is not counted.

    Args:
        dtype: The run's arithmetic.
        budget: Bytes that the run may use of its device.
    """
    found, notes = {REWARD_MODELS: 0, VLLM: 0}, []
    for reward in recipe.rewards:
        folder = reward.get("model") if isinstance(reward, dict) else None
        if folder is None:
            continue
        try:
            found[REWARD_MODELS] += reward_model_bytes(Path(folder), dtype)
        except (LorasmithError, OSError, ValueError, KeyError, TypeError):
            notes.append(f"the reward model {folder} is not counted: its base's config.json cannot be read")
    if recipe.trainer.get("use_vllm"):
        field = upstream.trainer_fields("grpo")["vllm_gpu_memory_utilization"]
        share = float(recipe.trainer.get(field.name) or field.default)
        if recipe.trainer.get("vllm_mode", "colocate") == "colocate":
            found[VLLM] = int(share * budget)
            notes.append(
                f"vLLM takes trainer.{field.name} ({share:g}) of the card, {found[VLLM] / GIB:.1f} GiB, "
                "and the time that it needs is not known here"
            )
    return tuple((name, size) for name, size in found.items() if size), tuple(notes)


def reward_model_bytes(folder: Path, dtype: str) -> int:
    """Weights of a reward model that reward.py trained: its base in its own quantization, and its adapter.

    Raises:
        LorasmithError: If its base is not known here.
        OSError: If a file is missing.
        ValueError, KeyError: If a file does not hold what it should.
    """
    saved: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    quantization = "none"
    if (folder / "recipe.yaml").is_file():
        values, _ = read_recipe(folder / "recipe.yaml", [])
        quantization = values["model"].get("quantization", "none")
    shape = read_shape(*facts.find_config(saved["base_model_name_or_path"], saved.get("revision") or "main"))
    one = Setting(quantization, dtype, (), 0, 1, 1, 1, loss="score")
    return base_bytes(shape, one) + (folder / "adapter_model.safetensors").stat().st_size
