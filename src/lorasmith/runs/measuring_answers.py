"""Figures of an answer finder on the evaluation questions, while it is trained and behind it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorasmith.console import say
from lorasmith.data.answer_spans import FoundAnswer, best_answers
from lorasmith.data.prepare_questions import PreparedQuestions
from lorasmith.data.squad import Question
from lorasmith.evaluation.metric import Metric
from lorasmith.evaluation.squad_metrics import best_null_thresholds, squad_metrics
from lorasmith.runs.predicting_answers import Reading, found_answers

BATCH = 32  # windows read at a time


class AnswerFigures:
    """transformers' compute_metrics of an answer finder, and the figures of what it answers in use.

    Where questions have no answer, all figures are those at the null threshold with the best f1 on these very rows.
    """

    def __init__(self, rows: PreparedQuestions, reading: Reading) -> None:
        self.questions: Sequence[Question] = rows.eval_rows  # type: ignore[assignment]
        self.windows, self.unanswerable, self.reading = rows.eval_windows, rows.unanswerable, reading
        self.threshold, self.chosen = 0.0, "not calibrated: it needs evaluation rows with an answer and without one"

    def __call__(self, given: Any) -> dict[str, float]:
        starts, ends = given.predictions[:2]
        found = best_answers(
            self.questions,
            self.windows,
            starts,
            ends,
            unanswerable=self.unanswerable,
            null_threshold=np.inf,
            max_answer_length=self.reading.max_answer_length,
        )
        threshold = null_threshold(found, self.questions) if self.unanswerable else None
        return {one.name: one.value for one in answer_figures(found, self.questions, threshold)}

    def settle(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """Let the model answer all evaluation questions, choose the null threshold, and give the figures."""
        answers: list[FoundAnswer | None] = [None] * len(self.questions)
        for index, one in found_answers(
            model, tokenizer, self.questions, self.reading, BATCH, np.inf if self.unanswerable else None
        ):
            answers[index] = one
        found = [one for one in answers if one is not None]
        if self.unanswerable and is_mixed(self.questions):
            self.threshold = null_threshold(found, self.questions)
            at_zero, best = (_value(found, self.questions, one) for one in (0.0, self.threshold))
            self.chosen = f"the best f1 on {len(found)} evaluation rows"
            say(f"null threshold: {self.threshold:.4f}, for {self.chosen}: {best:.4f}, and {at_zero:.4f} at 0")
        threshold = self.threshold if self.unanswerable else None
        return {f"eval_{one.name}": one.value for one in answer_figures(found, self.questions, threshold)}

    def settled(self) -> dict[str, Any]:
        """What task.json says of questions without an answer."""
        if not self.unanswerable:
            return {}
        return {"null_threshold": round(self.threshold, 6), "null_threshold_chosen_for": self.chosen}


def answer_figures(
    found: Sequence[FoundAnswer], questions: Sequence[Question], threshold: float | None
) -> list[Metric]:
    """exact_match and f1, and those of questions with and without an answer where there are both kinds.

    Args:
        found: The best answers, whatever their margins.
        threshold: Margin above which none is given; None: every question is answered.
    """
    answers = [one.text if threshold is None or one.null_margin <= threshold else "" for one in found]
    return squad_metrics(answers, references_of(questions))


def references_of(questions: Sequence[Question]) -> list[list[str]]:
    """The texts of the right answers of each question."""
    return [[text for text, _ in question.answers or ()] for question in questions]


def is_mixed(questions: Sequence[Question]) -> bool:
    """Whether some questions have an answer and others none."""
    return len({bool(question.answers) for question in questions}) == 2


def null_threshold(found: Sequence[FoundAnswer], questions: Sequence[Question]) -> float:
    """The margin with the best f1, found as the official script does, halfway to the next; 0 for rows of one kind."""
    if not is_mixed(questions):
        return 0.0
    margins, ranks = np.unique([one.null_margin for one in found], return_inverse=True)
    scores = [float(rank + 1) / len(margins) for rank in ranks]
    _, best = best_null_thresholds([one.text for one in found], references_of(questions), scores)["f1"]
    answered = round(best * len(margins))  # margins that are low enough for an answer
    finite = margins[np.isfinite(margins)]
    if answered == 0:
        return float(finite[0]) - 1.0 if len(finite) else 0.0
    if answered >= len(finite):
        return float(finite[-1]) + 1.0
    return float(margins[answered - 1] + margins[answered]) / 2


def _value(found: Sequence[FoundAnswer], questions: Sequence[Question], threshold: float) -> float:
    return next(one.value for one in answer_figures(found, questions, threshold) if one.name == "f1")
