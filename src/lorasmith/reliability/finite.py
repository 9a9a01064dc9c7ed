"""Finite or stop: a loss or gradient that is no number ends the run before the weights are touched."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorasmith.console import is_first_process
from lorasmith.errors import DivergedError

SHOWN_ROWS = 4
BATCH_FILE = "diverged_batch.safetensors"


class FiniteGuard(TrainerCallback):
    """Look at every loss and gradient before the optimizer does.

    Args:
        rows: The training rows, each with `place` (file:line) and `input_ids`.
        folder: Where the batch is saved for replay.
    """

    def __init__(self, rows: Iterable[Any], folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.trainer: Any = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.done, self.trainer.losses = [], []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        numbers = [loss.detach().float().reshape(1) for loss in trainer.losses]
        if trainer.accelerator.scaler is None:  # fp16's scaler meets infinite gradients and lowers its scale by itself
            gradients = [_local(one.grad) for one in trainer.model.parameters() if one.grad is not None]
            if trainer.grad_norm is not None:
                numbers.append(torch.as_tensor(trainer.grad_norm, device=numbers[0].device).float().reshape(1))
            numbers += [norm.float().reshape(1).to(numbers[0].device) for norm in torch._foreach_norm(gradients)]
        if not bool(torch.isfinite(torch.cat(numbers)).all()):
            raise self._error(state.global_step + 1)

    @torch.no_grad()
    def _error(self, step: int) -> DivergedError:
        """What was found, where, and what to do; the update's rows are saved."""
        trainer, model = self.trainer, self.trainer.model
        bad: list[str] = []
        module = ""
        for inputs, count in trainer.done:
            for row in self._rows(inputs):
                name = self._first_offender(row, count)
                if name:
                    bad.append(self._place(row))
                    module = module or name
        if not bad:
            bad = [self._place(row) for inputs, _ in trainer.done for row in self._rows(inputs)]
            weights = model.named_parameters()
            module = next(
                (n for n, w in weights if w.grad is not None and not torch.isfinite(w.grad).all()), "the loss"
            )
            module = f"the gradient of {module}"
        self._save()
        more = f" and {len(bad) - SHOWN_ROWS} more" if len(bad) > SHOWN_ROWS else ""
        return DivergedError(
            f"step {step}: {module} is not finite, for rows {', '.join(bad[:SHOWN_ROWS])}{more}. The weights were not "
            f"touched and the last checkpoint stands; the rows' tokens are in private/{BATCH_FILE}. Lower "
            "trainer.learning_rate, or look at the rows."
        )

    def _first_offender(self, row: dict[str, Any], count: Any) -> str:
        """The first module whose output is not finite for one row, or nothing."""
        found: list[str] = []

        def watch(name: str) -> Any:
            def look(module: torch.nn.Module, given: Any, out: Any) -> None:
                one = out[0] if isinstance(out, tuple) else out
                if torch.is_tensor(one) and one.is_floating_point() and not torch.isfinite(one).all():
                    found.append(name)

            return look

        model = self.trainer.model
        hooks = [one.register_forward_hook(watch(name)) for name, one in model.named_modules() if name]
        try:
            inputs = self.trainer._prepare_inputs(row)
            loss = self.trainer.compute_loss(model, inputs, num_items_in_batch=count)
        finally:
            for hook in hooks:
                hook.remove()
        name = found[0] if found else "" if bool(torch.isfinite(loss)) else "the loss"
        return name.removeprefix("base_model.model.")

    def _place(self, row: dict[str, Any]) -> str:
        ids = row["input_ids"][0].cpu()
        mask = row.get("attention_mask")
        ids = ids[mask[0].cpu().bool()] if mask is not None else ids
        wanted = ids.tolist()
        for one in self.rows:
            if len(one.input_ids) == len(wanted) and list(one.input_ids) == wanted:
                return str(one.place)
        return "unknown"

    def _rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """A micro-batch row by row, each as a batch of its own."""
        flat: list[dict[str, Any]] | None = self.trainer.batch_rows(inputs)
        if flat is not None:
            return flat
        rows = len(inputs["input_ids"])
        tensors = {name: one for name, one in inputs.items() if torch.is_tensor(one) and one.ndim and len(one) == rows}
        return [{name: value[i : i + 1] for name, value in tensors.items()} for i in range(rows)]

    def _save(self) -> None:
        if is_first_process():
            tensors = {
                f"{i}.{key}": value.cpu().clone()  # safetensors refuses what shares memory, as packing's lengths do
                for i, (inputs, _) in enumerate(self.trainer.done)
                for key, value in inputs.items()
                if torch.is_tensor(value)
            }
            (self.folder / "private").mkdir(parents=True, exist_ok=True)
            save_file(tensors, self.folder / "private" / BATCH_FILE)


def _local(gradient: torch.Tensor) -> torch.Tensor:
    """This process's part of a gradient that is sharded; the others look at theirs."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
