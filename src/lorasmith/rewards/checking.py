"""Reward functions tried on the rows, before any weights are read."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import nearest
from lorasmith.rewards.loading import GIVEN, Reward

ROWS = 4  # that are tried
SECONDS = 30.0  # for one call with two completions a row
NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # trl hands these over by other names, or not at all
ANSWERS = ("answer", "completion", "solution", "response", "output", "final")  # columns that may hold a right answer


class TookTooLong(BaseException):
    """The time of one call is over; passes every `except Exception` of the user's."""


def check(rewards: Sequence[Reward], rows: Sequence[dict[str, Any]], seconds: float = SECONDS) -> list[str]:
    """Call each reward as trl will, with the rows' own answers and with nothing as the completions.

    Args:
        rows: A few rows as trl will have them: `prompt` and other columns.
        seconds: For one call, where there are signals to end it with (the main thread of macOS and Linux).

    Returns:
        A line for each reward: what it gave.

    Raises:
        RecipeError: If a reward takes a column that the rows lack, raises, takes too long, or returns anything but a
            finite number or None for each completion.
    """
    rows = rows[:ROWS]
    assert rows
    for reward in rewards:
        check_columns(reward, rows)
    lines = []
    for reward in rewards:
        texts = [answer_of(row) for row in rows]
        first = called(reward, [*rows, *rows], [*texts, *[""] * len(rows)], seconds)
        called(reward, rows[:1], texts[:1], seconds)  # another number of completions: nothing is kept between calls
        own, empty = mean(first[: len(rows)]), mean(first[len(rows) :])
        lines.append(
            f"reward {reward.name} (weight {reward.weight:g}): {own} for the rows' answers, {empty} for no text"
        )
    return lines


def check_columns(reward: Reward, rows: Sequence[dict[str, Any]]) -> None:
    """Refuse a reward that needs a column which the rows lack."""
    there = [key for key in rows[0] if key not in NOT_COLUMNS]
    for name in reward.columns:
        if name not in there:
            raise RecipeError(
                f"{reward.place}: the reward {reward.name} takes `{name}`, which is no column of the rows and not set "
                f"in the recipe. The rows have: {', '.join(there) or 'none but the prompt'}. {nearest(name, there)}"
            )


def called(reward: Reward, rows: Sequence[dict[str, Any]], texts: list[str], seconds: float) -> list[float | None]:
    """The reward of a text for each row."""
    given = as_trl(rows, texts)
    with limited(seconds, reward):
        return reward.function(**given)


def as_trl(rows: Sequence[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """The keyword arguments with which trl's GRPOTrainer calls a reward."""
    from transformers import TrainerState

    prompts = [row.get("prompt", "") for row in rows]
    turns = [
        [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key not in (*NOT_COLUMNS, *GIVEN)}
    return {
        "prompts": prompts,
        "completions": turns,
        "completion_ids": [list(text.encode("utf-8", "replace")) for text in texts],
        **columns,
        "trainer_state": TrainerState(),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def answer_of(row: dict[str, Any]) -> str:
    """A text of the row that may be a right answer."""
    return next((row[key] for key in ANSWERS if isinstance(row.get(key), str)), "")


def mean(values: Sequence[float | None]) -> str:
    given = [value for value in values if value is not None]
    return f"{sum(given) / len(given):.2f}" if given else "nothing"


@contextmanager
def limited(seconds: float, reward: Reward) -> Iterator[None]:
    """End the block after some seconds by the clock.

    Raises:
        RecipeError: If it took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TookTooLong:
        raise RecipeError(
            f"{reward.place}: the reward {reward.name} took more than {seconds:g} s for {ROWS} rows or fewer. Make "
            "it quicker: each update waits for it."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
