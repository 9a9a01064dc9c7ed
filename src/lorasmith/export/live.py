"""A model in memory as an engine that answers."""

import time
from typing import Any

import numpy as np
import torch

from lorasmith.export.proof import Floats


class LiveEngine:
    """A transformers or peft model, asked row by row.

    Attributes:
        stops: Token ids that end an answer.
    """

    def __init__(self, name: str, model: Any, stops: set[int]) -> None:
        self.name, self.model, self.stops = name, model.eval(), stops
        self._tokens, self._seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Of its greedy answers so far, reading the question included."""
        return self._tokens / self._seconds if self._tokens else None

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Floats:
        """As proof.Engine."""
        out = self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False).logits[0]
        found: Floats = out.float().cpu().numpy().astype(np.float32, copy=False)
        return found

    @torch.no_grad()
    def greedy(self, ids: list[int], most: int) -> list[int]:
        """As proof.Engine."""
        began = time.perf_counter()
        given = torch.tensor([ids], device=self.model.device)
        out = self.model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=sorted(self.stops),
            pad_token_id=min(self.stops),
        )
        new: list[int] = out[0, len(ids) :].tolist()
        self._tokens += len(new)
        self._seconds += time.perf_counter() - began
        return new[: next((at for at, one in enumerate(new) if one in self.stops), len(new))]

    def close(self) -> None:
        """Let the model go."""
        self.model = None
