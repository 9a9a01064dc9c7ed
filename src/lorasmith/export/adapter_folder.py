"""A new adapter's folder: written beside its place, then moved there in one step."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorasmith.errors import RunError
from lorasmith.export.adapter_file import CONFIG, WEIGHTS

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
KEPT = (
    *TOKENIZER_FILES,
    "template_contract.json",
    "task.json",
    "private/eval_rows.jsonl",
)  # true of an adapter's successors too


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well and is removed when it does not.

    Raises:
        RunError: If `out` is there already.
    """
    if out.exists() or out.is_symlink():
        raise RunError(f"{out} is there already. Choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        if out.exists():
            raise RunError(f"{out} was made meanwhile. Choose another --out.")
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def copy_files(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy the regular files that match, at their places."""
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                place = folder / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def write_adapter(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        tensors: torch tensors by name.
    """
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o666 & ~_umask())
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_card(folder: Path, source: Path | None, base: str, heading: str, text: str) -> None:
    """The card of the adapter that this one was made from, or a short one, with a section on how it was made."""
    card = f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\ntags: [lora, lorasmith]\n---\n\n# LoRA adapter\n"
    if source is not None and (source / "README.md").is_file():
        card = (source / "README.md").read_text(encoding="utf-8", errors="replace")
    (folder / "README.md").write_text(f"{card.rstrip()}\n\n## {heading}\n\n{text}\n", encoding="utf-8")


def full_lora_config(base: str | None, rank: int, targets: list[str], **fields: Any) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA whose scale is 1; peft fills in the rest.

    Args:
        targets: Names of the modules that carry it.
    """
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": targets,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
    return config | fields
