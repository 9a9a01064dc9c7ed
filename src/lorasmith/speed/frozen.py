"""The blocks below the lowest adapter, computed once for each row: what they give is the same in every epoch.

Where only upper blocks carry an adapter (adapter.options.layers_to_transform), a row's states behind the frozen blocks
are kept in the computer's memory and taken from there whenever the row comes again. Each row is computed alone, so that
what is kept does not hang on the rows beside it, and a resumed run finds the same numbers.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lorasmith.speed.batches import ROWS, FlatCollator, Span, inputs_of, rows_of


class _Reached(Exception):
    """The frozen blocks are done; the others need not run."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class FrozenBlocks:
    """States behind the first `below` blocks of a decoder, by row.

    Args:
        decoder: The model without its output layer.
        blocks: Its blocks.
    """

    def __init__(self, decoder: Any, blocks: list[Any], below: int) -> None:
        self.states: dict[bytes, Tensor] = {}  # (tokens, width) of each row, by its ids
        self._original = decoder.forward
        self._alone = FlatCollator(share_prompts=False)
        self._given: Tensor | None = None  # states of this batch, while its upper blocks run
        self._catching = self._gives_tuples = False
        decoder.forward = self._decode
        for index, block in enumerate(blocks[:below]):
            block.forward = self._forward_of(block, index == below - 1)

    def _decode(self, *args: Any, **given: Any) -> Any:
        """The decoder's forward, its frozen blocks passed over for flat batches of training rows."""
        if args or ROWS not in given or not torch.is_grad_enabled():
            return self._original(*args, **given)
        ids = given["input_ids"]
        rows = [row["input_ids"] for row in rows_of({"input_ids": ids, "labels": ids, ROWS: given[ROWS]})]
        found = [self._states_of(row) for row in rows]
        self._given = _laid_out(found, given[ROWS]).to(ids.device)[None]
        try:
            return self._original(**given)
        finally:
            self._given = None

    @torch.no_grad()
    def _states_of(self, ids: Tensor) -> Tensor:
        """A row's states, computed alone the first time."""
        key = ids.cpu().numpy().tobytes()
        if key not in self.states:
            batch = self._alone([{"input_ids": ids.tolist(), "labels": ids.tolist()}])
            self._catching = True
            try:
                self._original(**inputs_of(batch, ids.device), use_cache=False)
            except _Reached as reached:
                self.states[key] = reached.states[0].cpu()
            finally:
                self._catching = False
        return self.states[key]

    def _forward_of(self, block: Any, is_last: bool) -> Any:
        def forward(hidden: Tensor, *args: Any, **given: Any) -> Any:
            if self._given is not None:
                out = self._given if is_last else hidden
                return (out,) if self._gives_tuples else out
            out = type(block).forward(block, hidden, *args, **given)
            if self._catching and is_last:
                self._gives_tuples = isinstance(out, tuple)
                raise _Reached(out[0] if isinstance(out, tuple) else out)
            return out

        return forward


def _laid_out(rows: list[Tensor], spans: tuple[Span, ...]) -> Tensor:
    """The states of a flat batch, (tokens, width), from those of its rows in their order."""
    left, parts = list(rows), []
    common = {span.shared_start for span in spans if span.shared}
    for span in spans:
        if not span.shared and span.start in common:
            parts.append(left[0][: span.end - span.start])  # the first of the rows that share it comes next
        else:
            parts.append(left.pop(0)[span.shared :])
    return torch.cat(parts)


def reuse_frozen_blocks(model: PeftModel, tokens: int, budget: int) -> tuple[FrozenBlocks | None, str]:
    """Keep the states behind the frozen blocks, if there are any and there is room.

    Args:
        tokens: Of all training rows.
        budget: Bytes of the computer's memory that the states may take.

    Returns:
        What holds them, or None, and a sentence; nothing where there is nothing to say.
    """
    base: Any = model.get_base_model()
    decoder = base.base_model
    blocks = next((list(one) for one in decoder.children() if _are_blocks(one)), [])
    below = next((i for i, block in enumerate(blocks) if _is_trained(block)), 0)
    others = [one for one in decoder.children() if not _are_blocks(one)]
    if below == 0 or any(_is_trained(one) for one in others) or any(_draws(block) for block in blocks[:below]):
        return None, ""
    width, size = base.config.get_text_config().hidden_size, base.dtype.itemsize
    needed = tokens * width * size
    where = f"the first {below} of {len(blocks)} blocks carry no adapter"
    if needed > budget:
        return None, f"frozen: {where}; their output, {needed / 2**30:.2f} GiB, is too large to be kept"
    said = f"frozen: {where}; what they give is kept from one epoch to the next, {needed / 2**30:.2f} GiB"
    return FrozenBlocks(decoder, blocks, below), said


def _are_blocks(module: torch.nn.Module) -> bool:
    children = list(module.children())
    return bool(children) and all(isinstance(one, GradientCheckpointingLayer) for one in children)


def _is_trained(module: torch.nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


def _draws(module: torch.nn.Module) -> bool:
    """Whether a block drops numbers at random."""
    dropped = (getattr(one, "attention_dropout", 0) for one in module.modules())
    return any(isinstance(one, torch.nn.Dropout) and one.p > 0 for one in module.modules()) or any(
        isinstance(p, float) and p > 0 for p in dropped
    )
