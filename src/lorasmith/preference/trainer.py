"""trl's DPO trainer over pairs that are tokens already, with the seams that the guards of a run need."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

SHARE = "lorasmith_share"  # key of a part's share of the micro-batch that it was cut from
REFERENCE, TRAINED = "ref", "default"


def _over_tokens(trainer: type[Any]) -> type[Any]:
    """The trainer class for data sets that are tokens already.

    trl has no seam to leave the preparation of rows out, nor for a reference that is the base itself where a model
    comes with its adapter on: it lays a frozen copy of the adapter beside it, which a new adapter does not need.
    """

    class TokenTrainer(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if isinstance(self.model, PeftModel) and is_base(self.model):
                self.model.delete_adapter(REFERENCE)
                self.model.set_adapter(TRAINED)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return TokenTrainer


def paired(trainer: type[Any]) -> type[Any]:
    """The trainer class for data sets of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    class PairTrainer(_over_tokens(trainer)):  # type: ignore[misc]
        _signature_columns: Any

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            if "input_ids" not in self._signature_columns:
                self._signature_columns = [*self._signature_columns, "input_ids"]  # by whose length rows are ordered

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inputs = dict(inputs)
            share = inputs.pop(SHARE, 1.0)
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return loss if return_outputs or share == 1.0 else loss * share

        def batch_count(self, inputs: dict[str, Any]) -> int:
            """Pairs of a micro-batch."""
            return len(inputs["input_ids"]) // 2

        def batch_rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """The pairs of a micro-batch, each as a batch of its own."""
            return [_part(inputs, i, i + 1) for i in range(self.batch_count(inputs))]

        def batch_halves(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """A micro-batch as two. Its loss is a mean over its pairs, so each part's counts by its share of them."""
            pairs = self.batch_count(inputs)
            middle, share = pairs // 2, inputs.get(SHARE, 1.0)
            parts = ((0, middle), (middle, pairs))
            return [_part(inputs, a, b) | {SHARE: share * (b - a) / pairs} for a, b in parts]

    PairTrainer.__name__ = trainer.__name__  # trl names cards and logs after the class
    return PairTrainer


def judged(trainer: type[Any]) -> type[Any]:
    """The trainer class for data sets of `prompt_ids`, `completion_ids`, `KL_completion_ids` and `label`.

    A micro-batch is not cut where it is out of memory: its estimate of the distance to the reference is
    made of all its rows.
    """

    class JudgedTrainer(_over_tokens(trainer)):  # type: ignore[misc]
        def batch_count(self, inputs: dict[str, Any]) -> int:
            """One, so that no part is made of it."""
            return 1

        def batch_rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """The micro-batch as it is."""
            return [inputs]

    JudgedTrainer.__name__ = trainer.__name__
    return JudgedTrainer


def _part(inputs: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Some pairs of a micro-batch, of which the first half are preferred answers and the second the others."""
    pairs = len(inputs["input_ids"]) // 2

    def cut(value: Any) -> Any:
        if not torch.is_tensor(value):
            return value
        if len(value) == pairs:
            return value[first:last]
        return torch.cat([value[first:last], value[pairs + first : pairs + last]])

    return {name: cut(value) for name, value in inputs.items()}


def is_base(model: PeftModel) -> bool:
    """Whether a model with its adapter on is its base: the adapter is LoRA and no product of it is anything yet."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and TRAINED in layer.lora_B]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    inside = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.requires_grad)
    zero = not any(bool(torch.any(layer.lora_B[TRAINED].weight)) for layer in layers)  # type: ignore[arg-type]
    return bool(layers) and zero and trained == inside
