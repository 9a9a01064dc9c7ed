"""Generation that can be left for a safe stop, and that goes on in halves when memory is full."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lorasmith.console import say
from lorasmith.errors import StoppedError
from lorasmith.reliability import checkpoints, stopping
from lorasmith.reliability.guarded import is_out_of_memory
from lorasmith.reliability.stopping import SafeStop
from lorasmith.speed import attention


@contextmanager
def attending_to_a_cache(model: Any) -> Iterator[None]:
    """Inside, attention that knows flat batches alone is transformers' own, which knows a cache and padding too."""
    if model.config._attn_implementation != attention.NAME:
        yield
        return
    model.set_attn_implementation(attention.INSTEAD_OF)
    try:
        yield
    finally:
        model.set_attn_implementation(attention.NAME)


@contextmanager
def can_be_left(trainer: Any) -> Iterator[None]:
    """Inside, which is for generation, the trainer's safe stop is asked before each token.

    Several processes generate different numbers of tokens, so that they could not agree: they stop behind the update.

    Raises:
        EvaluationStopped: If there is a reason to stop.
    """
    stop = safe_stop(trainer)
    if stop is None or trainer.args.world_size > 1:
        yield
        return
    model = base_model(trainer)
    hook = model.register_forward_pre_hook(lambda *_: stop.ask_between_tokens(trainer.state, trainer.control))
    try:
        yield
    finally:
        hook.remove()


def base_model(trainer: Any) -> Any:
    """The transformers model under a trainer's adapter."""
    return trainer.accelerator.unwrap_model(trainer.model).get_base_model()


def safe_stop(trainer: Any) -> SafeStop | None:
    """The safe stop among a trainer's callbacks."""
    return next((one for one in trainer.callback_handler.callbacks if isinstance(one, SafeStop)), None)


def left(trainer: Any) -> StoppedError:
    """The end of a run whose generation was left, its last update saved, as it was then, if it is not yet."""
    step = trainer.state.global_step
    folder = Path(trainer.args.output_dir) / f"checkpoint-{step}"
    if step and checkpoints.problem(folder) is not None:
        trainer._save_checkpoint(trainer.model, None)
    stop = safe_stop(trainer)
    return stopping.stopped(stop.stopped if stop else "", step, bool(step))


def in_parts(trainer: Any, prompts: list[Any], generate: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """A completion for each prompt, some prompts at a time once all together were out of memory.

    Args:
        generate: Gives the completions of some prompts.
    """
    found: list[Any] = []
    while len(found) < len(prompts):
        size = trainer.most_generated or len(prompts)
        part = prompts[len(found) : len(found) + size]
        try:
            found += generate(part)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
        # Outside of the except block, whose exception holds the tensors.
        trainer.most_generated = len(part) // 2
        say(f"out of memory at {len(part)} completions: from here on {trainer.most_generated} are made at a time")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found
