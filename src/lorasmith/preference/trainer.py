"""trl's preference trainers over rows that are tokens already, with the seams that the guards of a run need."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from trl.trainer.utils import add_fused_lm_head, use_adapter

SHARE = "lorasmith_share"  # key of a part's share of the micro-batch that it was cut from
LIKELIHOOD = "lorasmith_likelihood"  # key of what the likelihood of a micro-batch's preferred answers is divided by
REFERENCE, TRAINED = "ref", "default"


def _over_tokens(trainer: type[Any]) -> type[Any]:
    """The trainer class for data sets that are tokens already.

    trl has no seam to leave the preparation of rows out, nor for a reference that is the base itself where a model
    comes with its adapter on: it lays a frozen copy of the adapter beside it, which a new adapter does not need.
    """

    class TokenTrainer(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drop_needless_reference(self.model)

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


def unreferenced(trainer: type[Any], whole: bool = False) -> type[Any]:
    """The trainer class, of trl's experimental ones without a reference, for data sets as `paired` takes them.

    Those prepare rows by `Dataset.map` in their constructor, through `tokenize_row`, and take the loss from logits of
    all positions, of which they keep several copies (trl.experimental.orpo and cpo, 1.16). What is overridden are these
    two; log-probabilities come from the model by the keyword that trl's other trainers use, and the likelihood that is
    trained besides is a mean over an update's tokens, where trl's is one of its micro-batches' means.

    Args:
        whole: Whether the likelihood that is trained besides covers the preferred answer's prompt too (orpo).
    """

    class UnreferencedTrainer(paired(trainer)):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.use_dpo_data_collator = True  # else a warning in each evaluation
            self._total_train_tokens: Any = 0
            base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            add_fused_lm_head(base, outputs=("log_probs", "mean_logits"))

        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
            return feature

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["prompt_ids", "chosen_ids", "rejected_ids", "input_ids"]

        def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
            """Log-probabilities of preferred and other answers, their mean logits, and the preferred one's loss."""
            inputs = {name: value for name, value in batch.items() if name not in ("completion_mask", LIKELIHOOD)}
            pairs, answers = len(inputs["input_ids"]) // 2, batch["completion_mask"]
            scored = answers.clone()
            if whole:
                scored[:pairs] = inputs["attention_mask"][:pairs]
            routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
            labels = inputs["input_ids"].masked_fill(scored == 0, -100)
            outputs = model(**inputs, **routed, labels=labels, use_cache=False, fused_lm_head=True)
            tokens = outputs.log_probs[:, -(labels.shape[1] - 1) :]
            means = outputs.mean_logits[:, -(labels.shape[1] - 1) :]
            answers, scored = answers[:, 1:], scored[:, 1:].bool()
            sums = (tokens * answers).sum(1)
            if whole or self.loss_type in ("ipo", "simpo"):
                sums = sums / answers.sum(1)
            chosen, rejected = (means[part][answers[part].bool()] for part in (slice(pairs), slice(pairs, None)))
            likelihood = -tokens[:pairs].sum() / batch.get(LIKELIHOOD, scored[:pairs].sum())
            if getattr(self, "cpo_alpha", 1) == 0:
                likelihood = likelihood.detach()
            aux = (outputs.aux_loss,) if self.aux_loss_enabled else ()
            return sums[:pairs], sums[pairs:], chosen, rejected, likelihood, *aux

        def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> torch.Tensor:
            """Tokens whose likelihood an update trains, for each of its micro-batches on average."""
            mask = "attention_mask" if whole else "completion_mask"
            counts = [batch[mask][: self.batch_count(batch), 1:].sum() for batch in batch_samples]
            mean = torch.stack(counts).double().mean().to(device)
            return torch.as_tensor(self.accelerator.gather(mean)).mean()

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if self.model.training:
                self._total_train_tokens += inputs["attention_mask"].sum()
            if num_items_in_batch is not None:
                inputs = inputs | {LIKELIHOOD: num_items_in_batch * inputs.get(SHARE, 1.0)}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                logs["num_tokens"] = self.accelerator.reduce(torch.as_tensor(self._total_train_tokens), "sum").item()
            super().log(logs, start_time)

    UnreferencedTrainer.__name__ = trainer.__name__
    return UnreferencedTrainer


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

        def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            apart = self._told_apart(dataloader)
            if apart is not None:
                output.metrics[f"{metric_key_prefix}_rewards/accuracies"] = apart
            return output

        @torch.no_grad()
        def _told_apart(self, dataloader: Any) -> float | None:
            """How often a wanted answer gained more than an unwanted one, over all two of them; trl has no such figure.

            One that gained as much counts half.
            """
            gains: list[torch.Tensor] = []
            labels: list[torch.Tensor] = []
            model = self.accelerator.unwrap_model(self.model)
            for batch in dataloader:
                inputs = self._prepare_inputs(batch)
                beside = ("label", "completion_mask")
                asked = {k: v for k, v in inputs.items() if k not in beside and not k.startswith("KL_")}
                answers = asked["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
                asked |= {"labels": answers, "fused_lm_head": True, "use_cache": False}
                with self.compute_loss_context_manager():
                    gain = model(**asked).log_probs.sum(1)
                    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
                        gain -= model(**asked).log_probs.sum(1)
                verdicts = torch.as_tensor(inputs["label"], device=gain.device)
                for kept, new in ((gains, gain), (labels, verdicts)):
                    kept.append(self.accelerator.gather_for_metrics(new.contiguous()))
            gained, wanted = torch.cat(gains), torch.cat(labels).bool()
            apart = gained[wanted][:, None] - gained[~wanted][None]
            return float((0.5 + 0.5 * apart.sign()).mean()) if apart.numel() else None

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


def drop_needless_reference(model: Any) -> None:
    """Remove trl's frozen copy of an adapter that is no change of its base yet: the base is the reference then."""
    if isinstance(model, PeftModel) and REFERENCE in model.peft_config and is_base(model):
        model.delete_adapter(REFERENCE)
        model.set_adapter(TRAINED)


def is_base(model: PeftModel) -> bool:
    """Whether a model with its adapter on is its base: the adapter is LoRA and no product of it is anything yet."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and TRAINED in layer.lora_B]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    inside = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.requires_grad)
    zero = not any(bool(torch.any(layer.lora_B[TRAINED].weight)) for layer in layers)  # type: ignore[arg-type]
    return bool(layers) and zero and trained == inside
