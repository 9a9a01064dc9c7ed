"""transformers' trainer for tasks: losses as sums, evaluations over rows and not over batches."""

from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler

from lorasmith.tasks.losses import Loss


class Summed:
    """A loss of `tasks.losses` as transformers' compute_loss_func, which counts as it goes.

    Attributes:
        total: Loss of all that was seen outside of training since `take`, and how much that was.
        counted: Rows of the batch that count outside of training, from the first on; None: all.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.total: torch.Tensor | None = None
        self.counted: int | None = None

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.counted is not None:
            outputs = type(outputs)({name: _first(one, self.counted, len(labels)) for name, one in outputs.items()})
            labels = labels[: self.counted]
        found = self.loss(outputs, labels)
        count = labels.ne(-100).sum()
        if not torch.is_grad_enabled():
            both = torch.stack([found.detach().double(), count.double()])
            self.total = both if self.total is None else self.total + both
        divisor = count if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=found.device)
        return found / divisor.clamp(min=1)

    def take(self) -> torch.Tensor | None:
        """Both sums, float64, shape (2,), which begin anew."""
        found, self.total = self.total, None
        return found


def _first(found: Any, rows: int, of: int) -> Any:
    return found[:rows] if torch.is_tensor(found) and found.ndim and len(found) == of else found


def counted_rows(accelerator: Any, size: int) -> int | None:
    """Rows of this process's evaluation batch that no process has seen yet; None: all.

    accelerate fills the last batches of several processes with the first rows.

    Args:
        size: Rows of a batch of one process.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return None
    return min(size, max(0, int(state.remainder) - accelerator.process_index * size))


def for_task(trainer: type[Any]) -> type[Any]:
    """The trainer class with what the guards and the watch ask of a trainer, and an exact evaluation loss.

    transformers averages evaluation batches, whatever they hold. What is overridden is `evaluation_loop`, around it,
    `prediction_step`, where rows that count are told from fillers, `log`, where the tokens seen go by trl's name, and
    `_get_eval_sampler`, which may give rows in the order of their lengths, in which figures made of several windows of
    a row cannot be put together.
    """

    class TaskTrainer(trainer):  # type: ignore[misc]
        goes_on_counting = True  # the tokens of a checkpoint are among those counted behind it
        compute_loss_func: Summed

        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
            self.compute_loss_func.take()
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            sums = self.compute_loss_func.take()
            if sums is not None:
                total, count = self.accelerator.reduce(sums, "sum").tolist()
                output.metrics[f"{metric_key_prefix}_loss"] = total / max(1.0, count)
            return output

        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            self.compute_loss_func.counted = counted_rows(self.accelerator, self.args.eval_batch_size)
            try:
                return super().prediction_step(*args, **kwargs)
            finally:
                self.compute_loss_func.counted = None

        def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
            return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                logs["num_tokens"] = int(self.state.num_input_tokens_seen)
            super().log(logs, start_time)

        def batch_count(self, inputs: dict[str, Any]) -> int:
            """Rows of a micro-batch."""
            return len(inputs["input_ids"])

        def batch_rows(self, inputs: dict[str, Any]) -> None:
            """None: micro-batches are padded, so that rows are slices of their tensors."""

        def batch_halves(self, inputs: dict[str, Any]) -> None:
            """None, as for `batch_rows`."""

    TaskTrainer.__name__ = trainer.__name__
    return TaskTrainer
