"""Precision, recall and F1 of entities in BIO tags, by seqeval's rules."""

from collections.abc import Sequence

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.label_metrics import averages, per_label
from lorasmith.evaluation.metric import Metric, check_lengths

Entity = tuple[str, int, int]  # type, first word, last word


def entities(tags: Sequence[str], strict: bool = False) -> list[Entity]:
    """The entities of a row's tags as (type, first word, last word), both words inside.

    By default the rules of seqeval's get_entities, which are those of conlleval: an I- begins an entity where none of
    its type is open, a change of type ends one, E- and S- end one, and a tag without a type has the type `_`.

    Args:
        strict: Instead IOB2 as seqeval's mode="strict": an entity begins with B- and goes on with I- of its type, and
            an I- that continues none belongs to nothing.

    Raises:
        DataError: For an empty tag, and in strict mode for one that does not begin with B, I or O.
    """
    found: list[Entity] = []
    prefix, kind, first = "O", "", 0
    for i, tag in enumerate([*tags, "O"]):
        if not tag or (strict and tag[0] not in "BIO"):
            raise DataError(f"tag {i + 1}: `{tag}`; expected O, B-type or I-type.")
        now, its = tag[0], (tag[1:].strip("-") if strict else tag[1:].split("-", maxsplit=1)[-1]) or "_"
        ends, begins = (_strictly if strict else _loosely)(prefix, now, kind != its)
        if ends:
            found.append((kind, first, i - 1))
        if begins:
            first = i
        # In strict mode an I- that continues nothing is outside, and so is what follows it.
        prefix, kind = ("O" if strict and now == "I" and (ends or prefix == "O") else now), its
    return found


def _loosely(before: str, now: str, other_type: bool) -> tuple[bool, bool]:
    """Whether an entity ends before this tag and whether one begins with it."""
    ends = before in "ES" or (before in "BI" and now in "BSO") or (before not in "O." and other_type)
    begins = now in "BS" or (before in "ESO" and now in "EI")
    return ends, begins or (now not in "O." and other_type)


def _strictly(before: str, now: str, other_type: bool) -> tuple[bool, bool]:
    return before in "BI" and (now in "BO" or other_type), now == "B"


def entity_metrics(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    types: Sequence[str] = (),
    strict: bool = False,
) -> list[Metric]:
    """Micro, macro and weighted figures, then those of each type, as precision_micro or f1_of_person.

    As in seqeval, macro is the mean over types that occur, in the tags or in the predictions.

    Args:
        gold: The tags of each row's words.
        predicted: As many of each.
        types: All that the model knows, so that models can be compared; what occurs is added.

    Raises:
        DataError: If rows or words are not as many.
    """
    check_lengths("entities", gold=gold, predicted=predicted)
    for i, (one, other) in enumerate(zip(gold, predicted, strict=True)):
        if len(one) != len(other):
            raise DataError(f"entities: row {i + 1} has {len(one)} gold tags and {len(other)} predicted ones.")
    pairs = [(set(entities(g, strict)), set(entities(p, strict))) for g, p in zip(gold, predicted, strict=True)]
    kinds = sorted({*types} | {entity[0] for pair in pairs for side in pair for entity in side})
    at = {kind: i for i, kind in enumerate(kinds)}
    counts = np.zeros((len(gold), 3, len(kinds)))
    for row, (right, said) in enumerate(pairs):
        for column, some in enumerate((right & said, said, right)):
            for entity in some:
                counts[row, column, at[entity[0]]] += 1
    rows = counts.reshape(len(gold), -1)
    return [*averages(rows, ("micro", "macro", "weighted"), only_present=True), *per_label(rows, kinds)]
