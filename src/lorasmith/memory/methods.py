"""How each training method is counted: what a plan must know of it besides the recipe."""

from dataclasses import dataclass
from typing import Literal

from lorasmith import upstream


@dataclass(frozen=True, slots=True)
class Method:
    """One training script's way with rows and memory.

    Attributes:
        name: Of the script, a key of `upstream.CONFIGS`.
        reads: rows, pairs (a row is two sequences), judged, or prompts, whose completions it makes itself.
        least: Rows of the smallest micro-batch.
        loss: tiles: over some logits at a time; score: one number a sequence; classes: of rows or tokens; words: over
            all logits of a target at once.
        chunked_loss: Whether speed.chunked_loss replaces trl's tiles.
        frozen_cache: Whether speed.frozen_cache keeps what frozen blocks give.
        reference: Whether the reference reads each batch too, without gradients, while the policy's activations are
            held, and keeps a copy of an adapter that is no new one.
        mixed: Whether policy and reference read the answers behind other prompts besides, without gradients.
        prompts_scored: Whether all tokens of the preferred sequence are in the loss, not its answer's alone.
        padded: Whether the rows of a micro-batch are always filled up to the longest.
        of_rows: Whether a head reads whole rows, not each token.
    """

    name: str
    reads: Literal["rows", "pairs", "judged", "prompts"] = "rows"
    least: int = 1
    loss: Literal["tiles", "score", "classes", "words"] = "tiles"
    chunked_loss: bool = True
    frozen_cache: bool = False
    reference: bool = False
    mixed: bool = False
    prompts_scored: bool = False
    padded: bool = False
    of_rows: bool = False

    @property
    def sequences(self) -> int:
        """Sequences of a row, which stay in one micro-batch."""
        return 2 if self.reads == "pairs" else 1

    @property
    def generates(self) -> bool:
        """Whether it trains on completions that the model makes."""
        return self.reads == "prompts"

    @property
    def offloads(self) -> bool:
        """Whether its config can keep activations in the computer's memory, as transformers' own cannot."""
        return not self.padded and upstream.offloads(self.name)


SFT = Method("sft", frozen_cache=True)
METHODS = {
    one.name: one
    for one in (
        SFT,
        Method("dpo", "pairs", reference=True),
        Method("kto", "judged", least=2, reference=True, mixed=True),
        Method("orpo", "pairs", prompts_scored=True),
        Method("cpo", "pairs"),
        Method("reward", "pairs", loss="score", chunked_loss=False),
        Method("grpo", "prompts"),
        Method("text_classification", loss="classes", chunked_loss=False, padded=True, of_rows=True),
        Method("token_classification", loss="classes", chunked_loss=False, padded=True),
        Method("question_answering", loss="classes", chunked_loss=False, padded=True),
        Method("seq2seq", loss="words", chunked_loss=False, padded=True),
    )
}
