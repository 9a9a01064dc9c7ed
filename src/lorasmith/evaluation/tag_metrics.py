"""Figures of tagged words: of entities, or of the words where their tags name none."""

from collections.abc import Sequence

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.entity_metrics import entity_metrics
from lorasmith.evaluation.label_metrics import averages, per_label
from lorasmith.evaluation.metric import Metric, check_lengths, ratio_of_sums


def has_entities(labels: Sequence[str]) -> bool:
    """Whether the tags of a model name entities, as BIO tags do."""
    return any(label.startswith(("B-", "I-")) for label in labels)


def tag_metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> list[Metric]:
    """Figures of entities for BIO tags, else accuracy, precision, recall and F1 of words.

    Args:
        gold: The tags of each row's words.
        predicted: As many of each.
        labels: All tags of the model.

    Raises:
        DataError: If rows or words are not as many.
    """
    if has_entities(labels):
        kinds = dict.fromkeys(label[2:] for label in labels if has_entities([label]))
        return entity_metrics(gold, predicted, list(kinds))
    return word_metrics(gold, predicted, labels)


def word_metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> list[Metric]:
    """Accuracy over all words, precision, recall and F1 in macro and weighted over tags that occur, and of each tag.

    Raises:
        DataError: If rows or words are not as many.
    """
    check_lengths("tags", gold=gold, predicted=predicted)
    kinds = list(dict.fromkeys([*labels, *(tag for side in (gold, predicted) for row in side for tag in row)]))
    at = {kind: i for i, kind in enumerate(kinds)}
    counts = np.zeros((len(gold), 3, len(kinds)))
    for i, (right, said) in enumerate(zip(gold, predicted, strict=True)):
        if len(right) != len(said):
            raise DataError(f"tags: row {i + 1} has {len(right)} gold tags and {len(said)} predicted ones.")
        for one, other in zip(right, said, strict=True):
            counts[i, 0, at[one]] += one == other
            counts[i, 1, at[other]] += 1
            counts[i, 2, at[one]] += 1
    rows = counts.reshape(len(gold), -1)
    accuracy = ratio_of_sums("accuracy", counts[:, 0].sum(-1), counts[:, 2].sum(-1))
    return [accuracy, *averages(rows, ("macro", "weighted"), only_present=True), *per_label(rows, kinds)]
