"""From the recipe's `data:` to audited windows of questions with their contexts."""

from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.data.audit import Account
from lorasmith.data.examples import Example, PreparedTask, prepared_task
from lorasmith.data.prepare import read_each, uncollected
from lorasmith.data.question_tokens import QuestionWindow, encode_questions, tokenize_questions
from lorasmith.data.squad import Question, read_questions
from lorasmith.recipe import Data
from lorasmith.recipe_task import Task

NO_ANSWER = "no answer here"


@dataclass(slots=True)
class PreparedQuestions(PreparedTask):
    """What an answer finder's run trains and evaluates on: windows; `eval_rows` are the questions.

    Attributes:
        eval_windows: Those of `eval`, in its order, each with the index of its question in `eval_rows`.
        unanswerable: Whether a question has no answer.
    """

    eval_windows: list[QuestionWindow] = field(default_factory=list)
    unanswerable: bool = False


@uncollected()
def read_train_and_eval_questions(section: Data, seed: int) -> tuple[list[Question], list[Question], list[str]]:
    """All questions of the recipe, split by their contexts, weighted, and the refusals of dropped ones.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    return read_each(section, seed, read_questions, "questions about contexts")


@uncollected()
def prepare_questions(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Question],
    held_out: list[Question],
    rejected: list[str],
    task: Task,
    max_length: int | None,
) -> PreparedQuestions:
    """Tokenize, cut contexts into windows, account for every question, and show some as the model sees them.

    Raises:
        DataError: If questions cannot be trained on as asked.
    """
    parts: dict[str, Any] = {}
    held_out_windows: list[QuestionWindow] = []
    asked: list[Question] = []
    for name, rows in (("train", train), ("eval", held_out)):
        if not rows:
            continue
        windows, account = tokenize_questions(tokenizer, rows, max_length, task.stride, section.on_too_long)
        parts[name] = [example_of(window, rows[window.question]) for window in windows], account, rows
        if name == "eval":
            held_out_windows = windows
            asked = _readable(tokenizer, rows, account, task.stride)
    found = prepared_task(parts, tokenizer, rejected, "")
    places = {row.place: at for at, row in enumerate(asked)}
    return PreparedQuestions(
        found.train,
        found.eval,
        asked,  # type: ignore[arg-type]
        found.accounts,
        found.rejected,
        found.fingerprint,
        found.mask_check,
        eval_windows=[replace(window, question=places[window.place]) for window in held_out_windows],
        unanswerable=any(not row.answers for row in [*train, *held_out]),
    )


def _readable(
    tokenizer: PreTrainedTokenizerBase, rows: list[Question], account: Account, stride: int
) -> list[Question]:
    """Questions that leave room for their contexts, also those without a window to learn from, whose figures count."""
    if not account.dropped:
        return rows
    encoded = encode_questions(tokenizer, rows)
    return [row for row, tokens in zip(rows, encoded, strict=True) if tokens.fits(account.max_length, stride)]


def example_of(window: QuestionWindow, row: Question) -> Example:
    """A window as it is trained: its target is the answer's first and last token, or twice that of no answer."""
    shown = window.row()
    is_there = window.start != window.null
    wanted = row.answers[0][0] if is_there and row.answers else NO_ANSWER
    return Example(
        window.place, window.input_ids, shown.labels, [window.start, window.end], wanted, window.token_type_ids
    )


def model_input(window: QuestionWindow) -> dict[str, list[int]]:
    """A window as the model reads it."""
    types = window.token_type_ids
    return {"input_ids": window.input_ids.tolist()} | ({} if types is None else {"token_type_ids": types.tolist()})
