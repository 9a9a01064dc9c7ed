"""The adapter of a finished run on the disk, read back and proven; every process takes part."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lorasmith import adapters
from lorasmith.console import is_first_process
from lorasmith.reliability import reopened
from lorasmith.reliability.sharded import whole_weights


def save(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    base: dict[str, Any],
    initial: Path | None,
    head: bool = False,
) -> None:
    """Write adapter and tokenizer on the first process, and read the adapter back.

    Args:
        base: Identity of the base.
        initial: The untrained adapter, when the difference must be saved (`adapters.initial_adapter`).
        head: Whether a head was trained whole and must be in the file.

    Raises:
        DivergedError: If what was written is not what was trained, or has no effect.
    """
    with whole_weights(model):
        if is_first_process():
            adapters.save_adapter(model, output, base, initial)
            tokenizer.save_pretrained(output)
            reopened.check_saved(model, output, initial is not None)
            if head:
                reopened.check_head(model, output)
    reopened.check_effect(model, output)
