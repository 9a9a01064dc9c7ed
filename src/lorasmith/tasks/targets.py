"""What an encoder-decoder model says of given targets, one row at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel

MOST_TOKENS = 24  # of a target: a vocabulary is large


@torch.inference_mode()
def target_logits(model: Any, source: Sequence[int], target: Sequence[int]) -> list[np.ndarray]:
    """Float32 logits over the vocabulary for each of a target's first tokens, those before it given.

    Args:
        source: Token ids; `target` ends with EOS.
    """
    model.eval()
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    labels = torch.tensor([list(target)], device=model.device)
    inputs = base.prepare_decoder_input_ids_from_labels(labels=labels)
    ids = torch.tensor([list(source)], device=model.device)
    found = model(input_ids=ids, decoder_input_ids=inputs, use_cache=False).logits[0, :MOST_TOKENS]
    return list(found.float().cpu().numpy())
