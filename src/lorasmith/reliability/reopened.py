"""A written adapter, read back: whole, finite, trained, and with an effect."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorasmith.errors import DivergedError

PROBE = 16  # tokens that adapter and base are compared on


def check_saved(model: PeftModel, folder: Path, converted: bool = False) -> None:
    """Compare an adapter on the disk with the one in memory.

    Args:
        converted: Whether it was saved as a difference of another rank, so that shapes are not the model's own.

    Raises:
        DivergedError: If the file is not the adapter, or the adapter is all zeros.
    """
    try:
        saved = load_file(folder / "adapter_model.safetensors")
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise DivergedError(f"{folder}: the adapter written cannot be read back ({error}). Run it again.") from error
    expected: dict[str, Any] = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = expected.keys() ^ saved.keys()
    if not converted:
        wrong |= {key for key in expected.keys() & saved.keys() if expected[key].shape != saved[key].shape}
    if wrong or not saved:
        raise DivergedError(
            f"{folder}: the adapter written is not the one trained ({len(wrong)} tensors, such as "
            f"{min(wrong, default='none at all')}). Run it again."
        )
    bad = sorted(key for key, tensor in saved.items() if not torch.isfinite(tensor.float()).all())
    if bad:
        raise DivergedError(f"{folder}: {bad[0]} is not finite. Lower trainer.learning_rate and train anew.")
    if not any(tensor.any() for key, tensor in saved.items() if "lora_A" not in key):
        raise DivergedError(f"{folder}: the adapter is all zeros. Train for more steps, or raise the learning rate.")


def check_effect(model: PeftModel, folder: Path) -> None:
    """Refuse an adapter that does nothing. Every process of a sharded model must call this.

    Raises:
        DivergedError: If it does nothing.
    """
    if not has_effect(model):
        raise DivergedError(f"{folder}: the model answers the same with the adapter and without. Train for more steps.")


def check_head(model: PeftModel, folder: Path) -> None:
    """Prove that a head that was trained whole stands in the adapter's file, as it was trained and as it is used.

    Raises:
        DivergedError: If it is missing, another, or the one that training began with.
    """
    heads = {name: one for name, one in model.named_modules() if isinstance(one, ModulesToSaveWrapper)}
    saved = load_file(folder / "adapter_model.safetensors")
    for name, head in heads.items():
        trained: Any = head.modules_to_save["default"]
        for leaf, weight in trained.named_parameters():
            stored = saved.get(f"{name}.{leaf}")
            if stored is None or not torch.equal(stored, weight.detach().cpu().to(stored.dtype)):
                raise DivergedError(f"{folder}: the head {name}.{leaf} is not in the adapter as trained. Run it again.")
            if "default" not in head.active_adapters:
                raise DivergedError(f"{folder}: the head {name} is not in use. Run it again.")
        began: Any = head.original_module
        if all(torch.equal(a, b) for a, b in zip(trained.parameters(), began.parameters(), strict=True)):
            raise DivergedError(f"{folder}: the head {name} was not trained. Train for more steps.")
    if not heads:
        raise DivergedError(f"{folder}: the model has no head of its own. Run it again.")


@torch.no_grad()
def has_effect(model: PeftModel) -> bool:
    """Whether any output differs between the adapted model and its base, on a few tokens."""
    was_training = model.training
    model.eval()
    size = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(2, 2 + PROBE).remainder(size)[None].to(model.device)
    given = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    with_adapter = outputs_of(model(**given, use_cache=False))
    with model.disable_adapter():
        without = outputs_of(model(**given, use_cache=False))
    model.train(was_training)
    return not all(torch.equal(one, other) for one, other in zip(with_adapter, without, strict=True))


def outputs_of(found: Any) -> list[torch.Tensor]:
    """The numbers that a model of any task gives: logits, or those of beginnings and ends."""
    return [found[name] for name in ("logits", "start_logits", "end_logits") if name in found]
