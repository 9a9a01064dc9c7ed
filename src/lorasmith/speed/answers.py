"""Log-probabilities and scores of answers for trl's preference trainers: no padding, a pair's prompt computed once.

trl 1.16 asks a model for them by a keyword of its forward (trl.trainer.utils.add_fused_lm_head). On a CPU it projects
every position there, prompts and padding too, and it projects a second time in backward. Here the same keyword is
answered with `lorasmith.speed.loss`, over rows that lie one behind the other where attention allows that.
"""

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from lorasmith.speed.batches import WORTH_SHARING, Span, laid_down
from lorasmith.speed.loss import token_losses
from lorasmith.speed.trainer import has_plain_head, logit_scale

LAYOUT = "lorasmith_layout"  # key of a micro-batch's rows one behind the other
OTHER_LAYOUT = "lorasmith_other_layout"  # and of those that trl's kto estimates the distance to the reference from
ASKED = "fused_lm_head"  # trl's keyword


class LaidOut:
    """A collator of trl's, with the same rows one behind the other beside the padded ones.

    Args:
        padded: trl's collator.
        share: Whether what the rows of a pair begin with lies there once.
        paired: Whether the second half of a micro-batch answers the prompts of the first.
        whole: Whether all tokens of the preferred sequence are scored, not only its answer's.
    """

    def __init__(self, padded: Any, share: bool, paired: bool = True, whole: bool = False) -> None:
        self.padded, self.share, self.paired, self.whole = padded, share, paired, whole

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A padded micro-batch and its layout."""
        return self.laid(dict(self.padded(rows)))

    def laid(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch with the layout of its rows anew."""
        count = len(batch["input_ids"])
        middle = count // 2
        groups = [[i, middle + i] for i in range(middle)] if self.paired and self.share else [[i] for i in range(count)]
        ids, attended, pad = batch["input_ids"], batch["attention_mask"], self.padded.pad_token_id
        scored = batch.get("completion_mask", torch.zeros_like(attended)).clone()
        if self.whole:
            scored[:middle] = attended[:middle]
        batch = batch | {LAYOUT: lay_out(ids, attended, scored, groups, pad)}
        if "KL_input_ids" in batch:
            ids, attended, scored = (batch[f"KL_{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
            batch[OTHER_LAYOUT] = lay_out(ids, attended, scored, [[i] for i in range(count)], pad)
        return batch


def lay_out(
    input_ids: Tensor, attention_mask: Tensor, scored: Tensor, groups: list[list[int]], pad: int
) -> dict[str, Any]:
    """Padded rows one behind the other, what a group begins with laid down once.

    Args:
        input_ids, attention_mask, scored: (rows, tokens); 1 in `scored` at tokens whose log-probability is wanted.
        groups: The rows, those together that may begin alike.
        pad: The token that rows are filled up with.

    Returns:
        What a model takes of a flat batch of shape (1, tokens); under `targets`, `before` and `places`, each
        (scored tokens,): the tokens, where in the batch each is predicted, and where it stands in (rows, tokens - 1);
        and under `ends`, (rows,), where each row's last token stands that is not `pad`.
    """
    width = input_ids.shape[1]
    columns = [torch.nonzero(row).flatten().tolist() for row in attention_mask]
    rows = [[ids[at] for at in seen] for ids, seen in zip(input_ids.tolist(), columns, strict=True)]
    wanted = [
        [at for at, column in enumerate(seen) if at and row[column]]
        for row, seen in zip(scored.tolist(), columns, strict=True)
    ]
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    found: list[tuple[int, int, int]] = []
    ends = [0] * len(rows)
    for group in groups:
        common = _common([rows[row] for row in group])
        begin = len(tokens)
        if common:
            tokens += rows[group[0]][:common]
            positions += range(common)
            spans.append(Span(begin, begin + common))
        for row in group:
            start = len(tokens)
            tokens += rows[row][common:]
            positions += range(common, len(rows[row]))
            spans.append(Span(start, len(tokens), begin, common))
            here = [*range(begin, begin + common), *range(start, len(tokens))]
            found += [(rows[row][at], here[at - 1], row * (width - 1) + columns[row][at] - 1) for at in wanted[row]]
            ends[row] = next((place for place in reversed(here) if tokens[place] != pad), here[0])
    targets, before, places = torch.tensor(found, dtype=torch.long).reshape(-1, 3).unbind(1)
    return {
        "model": laid_down(tokens, positions, spans),
        "targets": targets,
        "before": before,
        "places": places,
        "ends": torch.tensor(ends),
    }


def _common(rows: list[list[int]]) -> int:
    """Tokens that all rows of a group begin with, if worth sharing; the one that parts them stays with each row."""
    if len(rows) == 1:
        return 0
    shortest = min(len(row) for row in rows)
    alike = next((i for i in range(shortest) if any(row[i] != rows[0][i] for row in rows)), shortest)
    return alike - 1 if alike > WORTH_SHARING else 0


def answering(trainer: type[Any], wanted: bool) -> type[Any]:
    """The trainer class whose model gives log-probabilities as this module does, where that holds.

    Args:
        wanted: Whether the recipe wants that (speed.chunked_loss).
    """

    class AnsweringTrainer(trainer):  # type: ignore[misc]
        data_collator: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            unlike = getattr(self, "aux_loss_enabled", False) or getattr(self, "use_weighting", False)
            unlike = unlike or self.compute_loss_func is not None
            unlike = unlike or getattr(self, "_entropy_bonus_enabled", False)  # whose gradient is the entropy's
            unlike = unlike or getattr(self.args, "cast_lm_head_to_fp32", False)
            self.answers = wanted and not unlike and not hasattr(base, "score") and has_plain_head(self)
            if hasattr(base, "score"):
                give_scores(base)
            elif self.answers:
                give_answers(base, getattr(self, "temperature", 1.0))
            elif isinstance(self.data_collator, LaidOut):
                self.data_collator = self.data_collator.padded

        def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
            other = {LAYOUT: batch[OTHER_LAYOUT]} if OTHER_LAYOUT in batch else {}
            return super()._compute_kl_logps(model, batch | other)

        def batch_rows(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """The rows of a micro-batch, each with its layout."""
            return [self._laid(part) for part in super().batch_rows(inputs)]

        def batch_halves(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
            """A micro-batch as two, each with its layout."""
            return [self._laid(part) for part in super().batch_halves(inputs)]

        def _laid(self, part: dict[str, Any]) -> dict[str, Any]:
            laid: dict[str, Any] = self.data_collator.laid(part) if LAYOUT in part else part
            return laid

    AnsweringTrainer.__name__ = trainer.__name__  # trl names cards and logs after the class
    return AnsweringTrainer


def give_answers(model: Any, temperature: float = 1.0) -> None:
    """Let a causal language model's forward give log-probabilities of its labels when asked by trl's keyword.

    Args:
        temperature: What logits are divided by, as those are that completions are drawn from.
    """
    original, scale = model.forward, logit_scale(model.config.get_text_config()) / temperature

    # generate() reads the signature.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        layout = kwargs.pop(LAYOUT, None)
        kwargs.pop(OTHER_LAYOUT, None)
        if not kwargs.pop(ASKED, False):
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        if layout is None:
            states = self.base_model(*args, **kwargs).last_hidden_state[:, -labels.shape[1] : -1]
            mask = labels[:, 1:] != -100
            hidden, targets, places = states[mask], labels[:, 1:][mask], mask.flatten().nonzero().flatten()
        else:
            targets, places = layout["targets"], layout["places"]
            states = self.base_model(**layout["model"], use_cache=False).last_hidden_state[0]
            hidden = states.index_select(0, layout["before"])
        found = token_losses(hidden, targets, self.get_output_embeddings(), scale, described=True)
        return _as_trl_gives_them(found, places, (labels.shape[0], labels.shape[1] - 1))

    model.forward = types.MethodType(forward, model)


def give_scores(model: Any) -> None:
    """Let a sequence classifier's forward score rows that come with their layout."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        layout = kwargs.pop(LAYOUT, None)
        if layout is None:
            return original(*args, **kwargs)
        states = self.base_model(**layout["model"], use_cache=False).last_hidden_state[0]
        return SequenceClassifierOutput(logits=self.score(states.index_select(0, layout["ends"])))

    model.forward = types.MethodType(forward, model)


def _as_trl_gives_them(found: Sequence[Tensor | None], places: Tensor, shape: tuple[int, int]) -> Any:
    """Figures of tokens in trl's own output, zero where no token is scored."""
    from trl.trainer.utils import FusedCausalLMOutput

    losses, first, entropy, mean = (
        None if one is None else one.new_zeros(shape).flatten().index_copy(0, places, one).view(shape) for one in found
    )
    assert losses is not None
    return FusedCausalLMOutput(log_probs=-losses, entropy=entropy, mean_logits=mean, is_top1=first)
