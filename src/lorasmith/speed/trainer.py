"""trl's trainer with the levers that need a method of it."""

import functools
import types
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel

from lorasmith.speed import batches
from lorasmith.speed.loss import supervised_loss

LOSS = "lorasmith_loss"  # keyword that asks the model's forward for the loss alone


def fast(trainer: type[Any], chunked_loss: bool) -> type[Any]:
    """The trainer class with the loss of `lorasmith.speed.loss`, and with flat batches understood.

    trl has no seam for a loss that needs the hidden states: `compute_loss_func` gets the full logits and costs a second
    forward pass (trl#7268 and SFTTrainer.compute_loss, 1.16). What is overridden is `compute_loss`, and around it `log`
    and `evaluation_loop`, where its sums become figures: trl waits for the device three times in every micro-batch, and
    transformers averages evaluation batches, whatever they hold. Where this loss does not hold (`can_score`), all of
    them are trl's.
    """

    class FastTrainer(trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.sums: dict[str, Any] = {}
            self.scores_supervised = chunked_loss and can_score(self)
            if self.scores_supervised:
                model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
                give_loss(model)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inputs = dict(inputs)
            tokens = inputs.pop(batches.TOKENS, None)
            if not self.scores_supervised or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            scored = model(**inputs, use_cache=False, **{LOSS: True})
            if tokens is None:
                tokens = inputs["attention_mask"].sum()
            self._add(scored, tokens)
            count = scored["tokens"] if num_items_in_batch is None else num_items_in_batch
            loss = scored["total"] / torch.as_tensor(count, device=scored["total"].device).clamp(min=1)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            return loss

        def _add(self, scored: dict[str, torch.Tensor], tokens: Any) -> None:
            """Keep the sums on the device until they are logged."""
            mode = "train" if self.model.training else "eval"
            seen = torch.as_tensor(tokens, dtype=torch.float64, device="cpu" if isinstance(tokens, int) else None)
            one = [scored["total"].detach(), scored["tokens"], scored["correct"], seen]
            device = scored["total"].device
            added = torch.stack([number.to(device, torch.float64) for number in one])
            self.sums[mode] = self.sums[mode] + added if mode in self.sums else added

        def _taken(self, mode: str) -> list[float] | None:
            """The sums of all processes since they were last taken: loss, trained tokens, right ones, all tokens."""
            if mode not in self.sums:
                return None
            numbers: list[float] = self.accelerator.reduce(self.sums.pop(mode), "sum").tolist()
            return numbers

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if self.scores_supervised and self.model.training:
                sums = self._taken("train")
                if sums is not None:
                    self._total_train_tokens += int(sums[3])
                    self._metrics["train"]["mean_token_accuracy"] = [sums[2] / max(1, sums[1])]
                self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            super().log(logs, start_time)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            rows = self.eval_dataset if eval_dataset is None else eval_dataset
            if self.scores_supervised and self.args.world_size > 1 and isinstance(rows, Dataset):
                rows = filled(rows, self.args.eval_batch_size * self.args.world_size)
            return super().get_eval_dataloader(rows)

        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            self.sums.pop("eval", None)
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            sums = self._taken("eval") if self.scores_supervised else None
            if sums is not None:
                output.metrics[f"{metric_key_prefix}_loss"] = sums[0] / max(1, sums[1])
                output.metrics[f"{metric_key_prefix}_mean_token_accuracy"] = sums[2] / max(1, sums[1])
            return output

        def batch_count(self, inputs: dict[str, Any]) -> int:
            """Rows of a micro-batch, padded or flat."""
            flat = inputs.get("cu_seq_lens_q")
            return len(inputs["input_ids"]) if flat is None else len(flat) - 1

        def batch_rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]] | None:
            """The rows of a flat batch, each a flat batch of its own; None for a padded one."""
            if batches.ROWS not in inputs:
                return None
            collate = batches.FlatCollator(share_prompts=False)
            return [collate([{k: v.tolist() for k, v in row.items()}]) for row in batches.rows_of(inputs)]

        def batch_halves(self, inputs: dict[str, Any]) -> list[dict[str, Any]] | None:
            """A flat batch as two; None for a padded one."""
            return batches.halves(inputs) if batches.ROWS in inputs else None

    FastTrainer.__name__ = trainer.__name__  # trl names cards and logs after the class
    return FastTrainer


def filled(rows: Dataset, size: int) -> Dataset:
    """Evaluation rows with rows of no trained token behind them, in whole batches of all processes.

    accelerate would fill the last batches with the first rows, which would count twice.
    """
    missing = -len(rows) % size
    empty = {"input_ids": [rows[0]["input_ids"][:2]] * missing, "labels": [[batches.IGNORED] * 2] * missing}
    known = {name: column for name, column in empty.items() if name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(known, rows.features)]) if missing else rows


def can_score(trainer: Any) -> bool:
    """Whether `supervised_loss` is this trainer's loss: plain likelihood under a frozen, whole output layer."""
    args = trainer.args
    if args.loss_type != "nll" or args.label_smoothing_factor or trainer.compute_loss_func is not None:
        return False
    return not trainer.aux_loss_enabled and has_plain_head(trainer)


def has_plain_head(trainer: Any) -> bool:
    """Whether the output layer of a trainer's model is frozen, whole where it is used, and its logits uncapped."""
    model = trainer.model
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        return False
    head = model.get_output_embeddings()
    plain = isinstance(head, torch.nn.Linear) and not any(weight.requires_grad for weight in head.parameters())
    sharded = (trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2) or trainer.is_deepspeed_enabled
    parallel = trainer.accelerator.parallelism_config is not None
    return plain and not sharded and not parallel and not isinstance(head.weight, torch.distributed.tensor.DTensor)


def give_loss(model: Any) -> None:
    """Let a causal language model's forward give the loss of `supervised_loss` when asked by the keyword `LOSS`."""
    original, scale = model.forward, logit_scale(model.config.get_text_config())

    # generate() reads the signature.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.pop(LOSS, False):
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        scored = supervised_loss(hidden, labels, self.get_output_embeddings(), scale)
        return {"total": scored.total, "tokens": scored.tokens, "correct": scored.correct}

    model.forward = types.MethodType(forward, model)


def logit_scale(config: Any) -> float:
    """What an architecture multiplies its logits with: Cohere's logit_scale, Falcon-H1's, one over Granite's."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)
