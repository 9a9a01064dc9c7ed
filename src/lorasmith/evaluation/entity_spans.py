"""Entities as parts of a text, from a tag and a probability for each word."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.evaluation.entity_metrics import entities


@dataclass(frozen=True, slots=True)
class EntitySpan:
    """An entity in a text.

    Attributes:
        start: Where it begins, in characters; `end`: where it ends.
        score: The mean probability of its words' tags.
    """

    label: str
    text: str
    start: int
    end: int
    score: float


def entity_spans(
    tags: Sequence[str], probabilities: Sequence[float], text: str, offsets: Sequence[tuple[int, int]]
) -> list[EntitySpan]:
    """The entities of a text, by the rules of `entities`.

    Args:
        tags: A BIO tag for each word.
        probabilities: Of each word's tag.
        offsets: Where each word stands in the text, in characters.
    """
    found = []
    for label, first, last in entities(tags):
        start, end = offsets[first][0], offsets[last][1]
        scores = [float(score) for score in probabilities[first : last + 1]]
        found.append(EntitySpan(label, text[start:end], start, end, sum(scores) / len(scores)))
    return found
