"""The trainer with the guards that no callback can give."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from lorasmith.console import complain, say
from lorasmith.errors import StoppedError
from lorasmith.memory.machine import free_disk
from lorasmith.reliability import checkpoints
from lorasmith.reliability.resume import Resume
from lorasmith.reliability.sharded import sharded
from lorasmith.reliability.stopping import EvaluationStopped

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device's or the computer's memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception comes of a disk or quota that is full, as torch and safetensors tell it too."""
    if isinstance(error, OSError) and error.errno in (27, 28, 122):  # file too large, no space, quota
        return True
    texts = ("No space left", "os error 28", "Disk quota", "os error 122", "File too large", "os error 27")
    writing = "PytorchStreamWriter failed writing" in str(error) or "unexpected pos" in str(error)
    return writing or any(text in str(error) for text in texts)


def _halves(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """A padded micro-batch as two."""
    middle = len(inputs["input_ids"]) // 2
    parts = (slice(0, middle), slice(middle, None))
    return [{key: value[part] if torch.is_tensor(value) else value for key, value in inputs.items()} for part in parts]


def guarded(trainer: type[Any]) -> type[Any]:
    """The trainer class with four methods guarded; transformers has no callback around any of them.

    - training_step: a micro-batch that is out of memory is done again in halves (transformers' own
      auto_find_batch_size starts the whole training anew, with another effective batch);
    - _evaluate: can be left for a safe stop;
    - _get_grad_norm: is remembered from before clipping, which makes zeros of gradients whose norm is infinite;
    - _save_checkpoint: never starts where the disk cannot hold it, and leaves nothing half-written.
    """

    class GuardedTrainer(sharded(trainer)):  # type: ignore[misc]
        too_large: int | None = None  # padded tokens of the smallest micro-batch that was out of memory
        kept_checkpoints = 2
        contract: dict[str, Any]  # of the run (resume.contract)
        interrupted = False  # set by a safe stop
        done: list[tuple[dict[str, Any], Any]]  # this update's micro-batches, each with the update's trained tokens
        losses: list[torch.Tensor]  # and their losses
        grad_norm: Any = None  # before clipping

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if hasattr(self, "made_ready"):  # where the model writes what it is trained on
                inputs = self.made_ready(inputs)
            self.done = [*getattr(self, "done", []), (dict(inputs), num_items_in_batch)]
            rows = self.batch_count(inputs)
            if self.too_large is not None and rows > 1 and inputs["input_ids"].numel() >= self.too_large:
                return self._in_halves(model)
            try:
                loss = super().training_step(model, inputs, num_items_in_batch)
                self.losses = [*getattr(self, "losses", []), loss]
                return loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.args.world_size > 1 or rows == 1:
                    raise
            # Outside of the except block, whose exception holds the failed step's tensors.
            return self._again(model)

        def _again(self, model: Any) -> Any:
            """The update's micro-batches so far, again, the last in halves; what gradients hold by now is unknown."""
            rows, tokens = self.batch_count(self.done[-1][0]), self.done[-1][0]["input_ids"].numel()
            if self.too_large is None:
                say(f"out of memory at {rows} rows of {tokens} tokens: from here on such batches are done in halves")
            self.too_large = tokens
            model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            *before, last = self.done
            self.done, self.losses = [], []
            for inputs, count in before:
                self.training_step(model, inputs, count)
            self.done.append(last)
            return self._in_halves(model)

        def _in_halves(self, model: Any) -> Any:
            """The last micro-batch as two; the loss is a sum over the update's tokens, so nothing else changes."""
            *self.done, (inputs, count) = self.done
            halves = self.batch_halves(inputs) or _halves(inputs)
            return sum(self.training_step(model, half, count) for half in halves)

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            self.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            return self.grad_norm

        def train_or_load(self, resume: Resume) -> None:
            """Train from a checkpoint on, or only load it where training was over: transformers would add a step."""
            if not resume.is_done:
                self.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
                return
            self._load_from_checkpoint(str(resume.checkpoint))
            self.state = TrainerState.load_from_json(str(resume.checkpoint) + "/trainer_state.json")
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()

        def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super()._evaluate(*args, **kwargs)
            except EvaluationStopped:
                self.control.should_evaluate = False  # else the end of the epoch would begin it again
                return {}

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            output = Path(self.args.output_dir)
            folder = output / f"checkpoint-{self.state.global_step}"
            earlier = next((one for one in checkpoints.checkpoints(output) if one != folder), None)
            needed = int(1.1 * checkpoints.size_of(earlier)) if earlier else 0
            if free_disk(output) < needed:
                raise self._disk_is_full(folder, earlier)
            try:
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle with access tokens in clear text
                if self.args.world_size > 1:
                    torch.distributed.barrier()
                if self.args.should_save:
                    if self.interrupted:
                        (folder / checkpoints.INTERRUPTED).touch()
                    (folder / checkpoints.CONTRACT).write_text(json.dumps(self.contract), encoding="utf-8")
                    checkpoints.commit(folder)
                    checkpoints.rotate(output, self.kept_checkpoints, self.state.best_model_checkpoint)
            except Exception as error:  # torch, safetensors and Python each tell a full disk in their own way
                if not is_full_disk(error):
                    raise
                raise self._disk_is_full(folder, earlier) from error

        def _disk_is_full(self, folder: Path, earlier: Path | None) -> StoppedError:
            (folder / checkpoints.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            step, stands = self.state.global_step, "none was saved yet"
            if earlier is not None:
                stands = f"the checkpoint of step {checkpoints.step_of(earlier)} is whole"
            complain(f"the disk is full at step {step}")
            return StoppedError(
                f"stopped at step {step}: the disk cannot hold another checkpoint; {stands}. Free some space; the same "
                "command goes on."
            )

    GuardedTrainer.__name__ = trainer.__name__
    return GuardedTrainer
