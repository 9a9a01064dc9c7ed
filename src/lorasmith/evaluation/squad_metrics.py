"""Exact match and F1 of answers to questions by the rules of the official SQuAD 1.1 and 2.0 scripts."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.metric import Metric, check_lengths, mean_of_rows, ratio_of_sums

Version = Literal["1.1", "2.0"]

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, then without English articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_metrics(
    answers: Sequence[str], references: Sequence[Sequence[str]], version: Version | None = None
) -> list[Metric]:
    """exact_match and f1, 0 to 1, of the right answer that is closest; the official scripts give them in per cent.

    With version 2.0 also those of the questions that have an answer and of those that have none, where there are such:
    has_answer_exact_match, has_answer_f1, no_answer_exact_match, no_answer_f1.

    Args:
        answers: What was answered; empty for no answer.
        references: The right answers of each question; none for one without an answer.
        version: Whose rules; None: 1.1 if every question has an answer. They differ where an answer is empty once
            articles and punctuation are gone: 1.1 gives F1 0 even for two of them.

    Raises:
        DataError: If rows are not as many, or a question has no answer under version 1.1.
    """
    check_lengths("answers", answers=answers, references=references)
    has_answer = np.array([bool(some) for some in references])
    version = version or ("1.1" if has_answer.all() else "2.0")
    exact, f1 = _scores(answers, references, version)
    found = [mean_of_rows("exact_match", exact), mean_of_rows("f1", f1)]
    if version == "2.0":
        for name, chosen in (("has_answer", has_answer), ("no_answer", ~has_answer)):
            if chosen.any():
                found.append(ratio_of_sums(f"{name}_exact_match", exact * chosen, chosen))
                found.append(ratio_of_sums(f"{name}_f1", f1 * chosen, chosen))
    return found


def best_null_thresholds(
    answers: Sequence[str], references: Sequence[Sequence[str]], null_scores: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """The threshold of exact_match and that of f1 as the 2.0 script finds them.

    Args:
        answers: The best answer of each question, taken even where the model would rather give none.
        null_scores: How likely each question has no answer, 0 to 1.

    Returns:
        For each figure its best value, 0 to 1, and the threshold above which (>) a question is given no answer.

    Raises:
        DataError: If rows are not as many.
    """
    check_lengths("thresholds", answers=answers, references=references, null_scores=null_scores)
    exact, f1 = _scores(answers, references, "2.0")
    has_answer = [bool(some) for some in references]
    return {
        "exact_match": _best_threshold(answers, exact, null_scores, has_answer),
        "f1": _best_threshold(answers, f1, null_scores, has_answer),
    }


def with_null_threshold(answers: Sequence[str], null_scores: Sequence[float], threshold: float) -> list[str]:
    """The answers, empty where the question more likely has none than the threshold allows."""
    check_lengths("thresholds", answers=answers, null_scores=null_scores)
    return ["" if score > threshold else answer for answer, score in zip(answers, null_scores, strict=True)]


def _best_threshold(
    answers: Sequence[str], scores: np.ndarray, null_scores: Sequence[float], has_answer: Sequence[bool]
) -> tuple[float, float]:
    """find_best_thresh: from no answer at all on, one question more is answered at a time, the surest first."""
    now = best = float(len(has_answer) - sum(has_answer))
    threshold = 0.0
    for i in sorted(range(len(answers)), key=lambda i: null_scores[i]):
        now += float(scores[i]) if has_answer[i] else -float(bool(answers[i]))
        if now > best:
            best, threshold = now, float(null_scores[i])
    return best / len(answers), threshold


def _scores(
    answers: Sequence[str], references: Sequence[Sequence[str]], version: Version
) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and F1 of each row, the best over its right answers."""
    exact, f1 = np.zeros(len(answers)), np.zeros(len(answers))
    for row, (answer, some) in enumerate(zip(answers, references, strict=True)):
        if isinstance(some, str):
            raise DataError(f"row {row + 1}: its references are one text; expected a list of right answers.")
        if version == "1.1" and not some:
            raise DataError(f"row {row + 1} has no right answer. Score it by version 2.0.")
        wanted = [normalize_answer(one) for one in some]
        if version == "2.0":  # what normalizing leaves nothing of is no answer
            wanted = [one for one in wanted if one] or [""]
        said = normalize_answer(answer)
        exact[row] = max(said == one for one in wanted)
        f1[row] = max(_f1(said.split(), one.split(), version) for one in wanted)
    return exact, f1


def _f1(said: list[str], wanted: list[str], version: Version) -> float:
    """F1 of the words that two normalized answers share."""
    if version == "2.0" and not (said and wanted):
        return float(said == wanted)
    same = sum((Counter(said) & Counter(wanted)).values())
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(wanted)
    return 2 * precision * recall / (precision + recall)
