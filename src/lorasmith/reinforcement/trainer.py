"""trl's GRPOTrainer with the seams that the guards and levers of a run need."""

import math
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from trl.trainer.utils import RepeatSampler

from lorasmith.data.prepare_prompts import restored
from lorasmith.preference.trainer import SHARE, drop_needless_reference
from lorasmith.reinforcement import buffer, generating, rehearsing
from lorasmith.reliability.rehearsal import random_state, set_random_state
from lorasmith.reliability.stopping import EvaluationStopped
from lorasmith.speed.answers import ASKED, LAYOUT, lay_out

SUMS = ("dapo", "cispo", "vespo")  # losses that are sums over an update's tokens, however it is cut
GROUPLESS = "bnpo"  # the loss that is a mean over a micro-batch's tokens, so that its rows matter


class PromptOrder(RepeatSampler):
    """trl's sampler with a draw that is a function of seed and epoch alone.

    trl's draws an epoch's order behind the one before, which a resumed run does not draw (RepeatSampler, 1.16).
    """

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed(int(self.seed or 0) + epoch)


def rolling(trainer: type[Any]) -> type[Any]:
    """The trainer class whose generation can be left, whose checkpoints are exact, and which shares prompts.

    trl has no callback or argument for any of these (1.16). What is overridden:

    - made_ready, which `guarded` calls, generates before what may be done again in halves, and leaves for a safe stop;
    - _prepare_inputs puts the completions of a prompt side by side, which trl shuffles over the update;
    - _generate_single_turn can be left between two tokens, and is done in halves when memory is full;
    - _get_per_token_logps_and_entropies lays rows one behind the other, a prompt once (`lorasmith.speed.answers`);
    - _calculate_rewards gives the rows' columns as they stand in the file;
    - evaluate draws the same numbers each time, and leaves training's as they were;
    - log gives means of an evaluation over its rows, where trl's are over its batches;
    - _save_checkpoint and _load_optimizer_and_scheduler keep completions that later updates still learn from;
    - _get_train_sampler gives `PromptOrder`.
    """

    class RolloutTrainer(trainer):  # type: ignore[misc]
        done: list[Any]
        answers: bool  # whether the model gives log-probabilities of rows that are laid out
        share_prompts: bool | None = None  # whether such rows lay a prompt down once; None: padded rows
        most_generated: int | None = None  # completions at a time, once more were out of memory
        _buffered_inputs: Any
        evaluated: list[int]  # rows of each batch of an evaluation
        is_new = False  # whether something was generated since it was last shown
        taken = 0  # micro-batches of this generation and the ones before
        _update_began: Any = None  # the random state at the beginning of the update

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drop_needless_reference(self.model)

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            found = super()._get_train_sampler(dataset)
            names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
            return PromptOrder(**{name: getattr(found, name) for name in names})

        def made_ready(self, inputs: Any) -> dict[str, Any]:
            """A micro-batch of completions for the rows of one, before anything of it may be done again."""
            if isinstance(inputs, list):
                self.model_wrapped.train()  # an evaluation may have been before
                if not getattr(self, "done", None):
                    self._update_began = random_state()
                self._step = self.taken  # trl counts what is done again, too
                try:
                    inputs = self._prepare_inputs(inputs)
                except EvaluationStopped:
                    set_random_state(self._update_began)
                    raise generating.left(self) from None
                self.taken += 1
            return inputs | {"input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)}

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            if isinstance(generation_batch, dict):
                return generation_batch
            before = self._buffered_inputs
            inputs = super()._prepare_inputs(generation_batch)
            self.is_new = not self.model.training or self.is_new or self._buffered_inputs is not before
            if not self.model.training:
                self.evaluated.append(len(generation_batch))
            if not self.model.training or self._buffered_inputs is before or self.loss_type == GROUPLESS:
                return inputs
            self._buffered_inputs = regrouped(self._buffered_inputs, self.args.gradient_accumulation_steps)
            return self._buffered_inputs[self._step % self.args.steps_per_generation]

        def _generate_single_turn(self, prompt_ids: list[Any], *args: Any, **kwargs: Any) -> Any:
            if self.use_vllm:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            whole = super()._generate_single_turn
            model = generating.base_model(self)
            with generating.attending_to_a_cache(model), generating.can_be_left(self):
                return generating.in_parts(self, prompt_ids, lambda part: whole(part, *args, **kwargs)[0]), None

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Tensor,
            attention_mask: Tensor,
            logits_to_keep: int,
            batch_size: int | None = None,
            compute_entropy: bool = False,
            compute_aux_loss: bool = False,
            **pictures: Any,
        ) -> tuple[Tensor, Tensor | None, Tensor | None]:
            flat = self.share_prompts is not None and self.answers and not compute_aux_loss
            if not flat or any(one is not None for one in pictures.values()):
                found: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                    **pictures,
                )  # fmt: skip
                return found
            scored = attention_mask.clone()
            scored[:, :-logits_to_keep] = 0
            parts = []
            size = batch_size or (len(input_ids) if self.model.training else self.args.per_device_train_batch_size)
            for start in range(0, len(input_ids), size):
                rows = slice(start, start + size)
                ids, mask = input_ids[rows], attention_mask[rows]
                groups = alike(ids[:, :-logits_to_keep], mask[:, :-logits_to_keep], bool(self.share_prompts))
                layout = lay_out(ids, mask, scored[rows], groups, self._tokenizer.pad_token_id)
                asked = {LAYOUT: send_to_device(layout, ids.device), ASKED: True}
                with self.accelerator.autocast():
                    parts.append(model(input_ids=ids, labels=ids, use_cache=False, **asked))
            logps, entropies = (
                torch.cat([getattr(part, name)[:, -logits_to_keep:] for part in parts])
                for name in ("log_probs", "entropy")
            )
            return logps, entropies if compute_entropy else None, None

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs, *args, **kwargs) * inputs.get(SHARE, 1.0)

        def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
            return super()._calculate_rewards(restored(inputs), *args, **kwargs)

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            before, self.evaluated = random_state(), []
            torch.manual_seed(self.args.seed + self.args.process_index)
            try:
                return super().evaluate(*args, **kwargs)
            finally:
                set_random_state(before)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if not self.model.training:
                for name, values in self._metrics["eval"].items():
                    self._metrics["eval"][name] = [weighted_mean(values, self.evaluated)]
            super().log(logs, start_time)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            buffer.keep(self)
            super()._save_checkpoint(model, trial)

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                buffer.take_up(self, checkpoint)

        def rehearse(self) -> None:
            """Do the most that an update does: generate for the longest prompts, and train on the longest answers."""
            if not self.use_vllm:
                rehearsing.generate_some(self)
            self.training_step(self.model_wrapped, rehearsing.worst_batch(self))

        def batch_count(self, inputs: dict[str, Any]) -> int:
            """Completions of a micro-batch."""
            return len(inputs["completion_ids"])

        def batch_rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """The completions of a micro-batch, each as a batch of its own, known by its prompt."""
            rows = [cut(inputs, slice(i, i + 1)) for i in range(self.batch_count(inputs))]
            return [
                row | {"input_ids": row["prompt_ids"], "attention_mask": row["prompt_mask"], SHARE: 1.0} for row in rows
            ]

        def batch_halves(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """A micro-batch as two, whose losses add up to its own."""
            count = self.batch_count(inputs)
            middle, share = count // 2, inputs.get(SHARE, 1.0)
            sizes = ((slice(0, middle), middle), (slice(middle, count), count - middle))
            is_sum = self.loss_type in SUMS
            return [cut(inputs, rows) | {SHARE: share if is_sum else share * size / count} for rows, size in sizes]

    RolloutTrainer.__name__ = trainer.__name__  # trl names cards and logs after the class
    return RolloutTrainer


def weighted_mean(values: list[float], sizes: list[int]) -> float:
    """The mean over rows of a figure that is known for each batch, which are of different sizes; NaN are left out."""
    known = [(value, size) for value, size in zip(values, sizes, strict=False) if not math.isnan(value)]
    return sum(value * size for value, size in known) / sum(size for _, size in known) if known else math.nan


def cut(inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some completions of a micro-batch."""
    count = len(inputs["completion_ids"])
    per_row = {name: torch.is_tensor(value) and value.dim() and len(value) == count for name, value in inputs.items()}
    return {name: value[rows] if per_row[name] else value for name, value in inputs.items()}


def alike(prompt_ids: Tensor, prompt_mask: Tensor, share: bool) -> list[list[int]]:
    """The rows of each prompt, those together that may lie behind it; each alone where nothing is shared."""
    if not share:
        return [[row] for row in range(len(prompt_ids))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, mask) in enumerate(zip(prompt_ids.tolist(), prompt_mask.bool().tolist(), strict=True)):
        groups.setdefault(tuple(one for one, seen in zip(ids, mask, strict=True) if seen), []).append(row)
    return list(groups.values())


def regrouped(batches: list[dict[str, Any]], per_update: int) -> list[dict[str, Any]]:
    """The micro-batches of a generation with the completions of a prompt side by side, longest first.

    Each update keeps its completions, so that only the order in which its gradients are added up is another.

    Args:
        per_update: Micro-batches of an update.
    """
    if len(batches) % per_update and per_update % len(batches):
        return batches
    found: list[dict[str, Any]] = []
    for start in range(0, len(batches), per_update):
        part = batches[start : start + per_update]
        size = len(part[0]["completion_ids"])
        rows = {
            name: torch.cat([one[name] for one in part]) if torch.is_tensor(value) and value.dim() else value
            for name, value in part[0].items()
        }
        prompts, lengths = rows["prompt_ids"].tolist(), rows["completion_mask"].sum(1).tolist()
        order = torch.tensor(sorted(range(len(prompts)), key=lambda row: (prompts[row], -lengths[row])))
        sorted_rows = {
            name: value[order.to(value.device)] if torch.is_tensor(value) and value.dim() else value
            for name, value in rows.items()
        }
        found += [cut(sorted_rows, slice(first, first + size)) for first in range(0, len(prompts), size)]
    return found
