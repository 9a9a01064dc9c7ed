"""The callbacks that watch over a run, put together from its recipe and plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from lorasmith import adapters
from lorasmith.console import say
from lorasmith.data.prepare import Prepared
from lorasmith.data.streaming import PreparedStream
from lorasmith.hardware import Hardware
from lorasmith.memory.plans import Plan
from lorasmith.recipe import Recipe
from lorasmith.reliability import checkpoints, stopping
from lorasmith.reliability.finite import FiniteGuard
from lorasmith.reliability.rehearsal import Rehearsal
from lorasmith.reliability.resume import Resume
from lorasmith.reliability.stopping import SafeStop
from lorasmith.reliability.watchdog import Watchdog
from lorasmith.runs.ending import record_end
from lorasmith.runs.planning import smallest_change
from lorasmith.runs.streaming import StreamPosition
from lorasmith.runs.watch import Watch
from lorasmith.speed.recompute import RecomputeOneIn

LEAST_ROOM = 64 << 20  # bytes of disk below which a run without checkpoints yet is stopped


@dataclass(slots=True)
class Guards:
    """What watches over a run."""

    watch: Watch
    stop: SafeStop
    callbacks: list[Any]

    def raise_if_stopped(self, trainer: Any) -> None:
        """End a run that was stopped before its last step, instead of saving a half-trained adapter.

        Raises:
            StoppedError: If it was.
        """
        if self.stop.stopped:
            # A launcher ends the others when one leaves, and the first may still be committing the checkpoint.
            trainer.accelerator.wait_for_everyone()
            folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
            raise stopping.stopped(self.stop.stopped, trainer.state.global_step, folder.is_dir())


def guards(
    folder: Path, recipe: Recipe, rows: Prepared, plan: Plan | None, machine: Hardware, resume: Resume
) -> Guards:
    """The callbacks of a run, in the order in which they are called."""

    def room() -> int:
        """Bytes that the next checkpoint and the adapter need."""
        newest = next(iter(checkpoints.checkpoints(folder)), None)
        return max(LEAST_ROOM, 2 * checkpoints.size_of(newest)) if newest else LEAST_ROOM

    for note in resume.notes:
        say(f"checkpoint passed over: {note}")
    watch = Watch(folder, machine)
    if resume.checkpoint is not None:
        say(f"resumed: the run goes on behind step {resume.step}")
        watch.go_on(resume.step)
    stop = SafeStop(folder, recipe.run.max_minutes, recipe.run.save_minutes, room)
    rehearsal = Rehearsal(lambda: smallest_change(plan))
    streamed: list[Any] = []
    if isinstance(rows, PreparedStream):
        streamed = [StreamPosition(rows.stream, rows.rows_per_update, resume.checkpoint)]
    finite = FiniteGuard(rows.stream if isinstance(rows, PreparedStream) else rows.train, folder)
    dog = Watchdog(folder, 60 * recipe.run.hang_minutes, record_end)
    recompute = recipe.run.gradient_checkpointing
    sparing = [RecomputeOneIn(recompute)] if isinstance(recompute, int) and recompute > 1 else []
    return Guards(watch, stop, [*streamed, *sparing, rehearsal, watch, finite, stop, dog])


def settle(trainer: Any, recipe: Recipe, callbacks: list[Any]) -> None:
    """What a trainer's constructor does not take: the callbacks know it, and LoRA+ has an optimizer of its own."""
    trainer.remove_callback(PrinterCallback)
    trainer.kept_checkpoints = recipe.trainer.get("save_total_limit") or trainer.kept_checkpoints
    for callback in callbacks:
        callback.trainer = trainer
    if recipe.adapter.loraplus_lr_ratio is not None:
        trainer.optimizer = adapters.loraplus_optimizer(trainer.model, recipe.adapter, trainer.args)
