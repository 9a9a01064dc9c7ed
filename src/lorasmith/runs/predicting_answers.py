"""What answer finders say of questions with their contexts: predict.py's part, and that of proofs and final figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorasmith.console import say
from lorasmith.data.answer_spans import MAX_ANSWER_LENGTH, FoundAnswer, best_answers
from lorasmith.data.prepare_questions import model_input
from lorasmith.data.question_tokens import QuestionWindow, question_windows
from lorasmith.data.squad import Question, read_questions
from lorasmith.runs.opening import Opened, columns_of
from lorasmith.tasks.forward import outputs

LONGEST_WINDOW, STRIDE = 384, 128  # tokens, for a model that says nothing of its own
DIGITS = 6  # of probabilities


@dataclass(frozen=True, slots=True)
class Reading:
    """How contexts are read.

    Attributes:
        max_length: Tokens of a window; `stride`: that two windows share; `max_answer_length`: of an answer.
    """

    max_length: int | None
    stride: int
    max_answer_length: int


@dataclass(slots=True)
class Read:
    """The windows of one question with what the model gave for each, float32, shape (tokens,)."""

    windows: list[QuestionWindow] = field(default_factory=list)
    starts: list[NDArray[np.floating]] = field(default_factory=list)
    ends: list[NDArray[np.floating]] = field(default_factory=list)


def reading_of(opened: Opened) -> Reading:
    """How the model was taught to read, or else as transformers' run_qa.py reads."""
    task = opened.task
    positions = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None) or LONGEST_WINDOW
    longest = task["max_length"] if "max_length" in task else min(LONGEST_WINDOW, int(positions))
    return Reading(longest, task.get("stride", STRIDE), task.get("max_answer_length", MAX_ANSWER_LENGTH))


def read_questions_of(opened: Opened, source: str) -> list[Question]:
    """Questions with their contexts, answered or not."""
    found = read_questions(source, columns=columns_of(opened.run), need_answers=False)
    say(f"rows: {len(found.rows)} of {source}")
    return found.rows


def answer_questions(opened: Opened, rows: Sequence[Question], batch: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index of each question and its answer: text, start, end, probability; where there may be none, that of none."""
    threshold = opened.task.get("null_threshold")
    for index, found in found_answers(opened.model, opened.tokenizer, rows, reading_of(opened), batch, threshold):
        told = {"answer": found.text, "start": found.start, "end": found.end}
        told["probability"] = round(found.probability, DIGITS)
        if threshold is not None:
            told["no_answer"] = round(no_answer(found), DIGITS)
        yield index, told


def no_answer(found: FoundAnswer) -> float:
    """The probability that there is none, of an answer that was chosen among others and none."""
    return found.probability * float(np.exp(found.null_margin)) if found.text else found.probability


def found_answers(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Question],
    reading: Reading,
    batch: int,
    null_threshold: float | None,
) -> Iterator[tuple[int, FoundAnswer]]:
    """Index of each question and its answer, as soon as all of its windows are read.

    Args:
        batch: Windows read at a time, at most.
        null_threshold: By how much no answer must score above the best one; None: every question has an answer.

    Raises:
        DataError: At the first question that leaves no room for its context.
        ModelError: If the model gave numbers that are not finite.
    """
    for index, read in windows_read(model, tokenizer, rows, reading, batch):
        [found] = best_answers(
            [rows[index]],
            [replace(window, question=0) for window in read.windows],
            read.starts,
            read.ends,
            unanswerable=null_threshold is not None,
            null_threshold=null_threshold or 0.0,
            max_answer_length=reading.max_answer_length,
        )
        yield index, found


def windows_read(
    model: Any, tokenizer: Any, rows: Sequence[Question], reading: Reading, batch: int
) -> Iterator[tuple[int, Read]]:
    """Index of each question and what the model gave for its windows, in their order; windows are read by length."""
    windows = question_windows(tokenizer, rows, reading.max_length, reading.stride)
    of: list[list[int]] = [[] for _ in rows]
    for at, window in enumerate(windows):
        of[window.question].append(at)
    waiting: dict[int, dict[str, NDArray[np.floating]]] = {}
    given = [model_input(window) for window in windows]
    for at, found in outputs(model, given, int(tokenizer.pad_token_id), batch):
        waiting[at] = found
        question = windows[at].question
        if all(other in waiting for other in of[question]):
            done = [(windows[other], waiting.pop(other)) for other in of[question]]
            yield (
                question,
                Read(
                    [window for window, _ in done],
                    [one["start_logits"] for _, one in done],
                    [one["end_logits"] for _, one in done],
                ),
            )
