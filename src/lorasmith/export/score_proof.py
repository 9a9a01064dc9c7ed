"""The proof of a reward model's export: the live adapter and the artefact score the same answers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorasmith.limits import ScoreLimits


@dataclass(frozen=True, slots=True)
class ScoreReference:
    """What the live adapter says.

    Attributes:
        rows: Pairs of token ids, the preferred answer first, each behind its prompt.
        scores: Of each pair, in the same order.
    """

    rows: list[tuple[list[int], list[int]]]
    scores: list[tuple[float, float]]

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.scores)
        assert self.rows


@dataclass(slots=True)
class ScoreDrift:
    """How far an artefact is from the live adapter.

    Attributes:
        order: Share of pairs that both put in the same order.
        difference: Largest difference of a score, in standard deviations of the live adapter's scores (`spread`).
        accuracy: Share of pairs whose preferred answer scores higher, by the artefact; accuracy_live: by the adapter.
        template: Whether the artefact's tokenizer renders the golden conversations to the same ids; None: not asked.
    """

    kind: str
    pairs: int
    order: float
    difference: float
    spread: float
    accuracy_live: float
    accuracy: float
    template: bool | None = None

    @property
    def distance(self) -> float:
        """By which the closer of two is chosen."""
        return self.difference

    @property
    def short(self) -> str:
        """The figures in a few words."""
        return f"largest difference {self.difference:.4f} same order {self.order:.3f}"

    @property
    def cause(self) -> str:
        """Where to look first."""
        if self.template is False:
            return "the tokenizer or template beside the artefact is another; restore what training wrote"
        if not math.isfinite(self.difference):
            return "the artefact's scores are not finite; its precision is too small for this model"
        if self.order < 0.7:
            return "the weights are others: another base, or another head"
        return "the precision of the artefact is too small, or it stands on another base than training saw"

    def beyond(self, limits: ScoreLimits) -> list[str]:
        """What is past its limit, in words; nothing when the artefact is proven."""
        found = []
        if not self.order >= limits.order:
            found.append(f"{self.order:.3f} of the pairs in the same order, at least {limits.order:g} is wanted")
        if not self.difference <= limits.difference:
            found.append(
                f"a score differs by {self.difference:.4f} standard deviations, at most {limits.difference:g} is wanted"
            )
        if self.template is False:
            found.append("its chat template renders the golden conversations to other ids")
        return found

    def lines(self) -> list[str]:
        """The figures as sentences."""
        return [
            f"proof of {self.kind} by transformers: {self.pairs} pairs: {self.order:.1%} in the same order, scores "
            f"differ by {self.difference:.5f} of their standard deviation at most, preferred answers score higher in "
            f"{self.accuracy_live:.1%} live, {self.accuracy:.1%} here"
        ]

    def record(self) -> dict[str, Any]:
        """For proof.json and the card."""
        return asdict(self)


def score_drift(kind: str, live: ScoreReference, scores: Sequence[tuple[float, float]]) -> ScoreDrift:
    """Compare an artefact's scores of the same pairs with the live adapter's."""
    ours, theirs = ([score for pair in found for score in pair] for found in (live.scores, scores))
    spread = statistics.pstdev(ours)
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if not all(map(math.isfinite, theirs)):
        largest = math.inf
    same = [(a > b, c > d) for (a, b), (c, d) in zip(live.scores, scores, strict=True)]
    return ScoreDrift(
        kind,
        len(same),
        sum(one == other for one, other in same) / len(same),
        largest / spread if spread else math.inf if largest else 0.0,
        spread,
        sum(one for one, _ in same) / len(same),
        sum(other for _, other in same) / len(same),
    )
