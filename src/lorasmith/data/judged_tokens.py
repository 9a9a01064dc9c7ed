"""Judged answers to token ids: a prompt, one whole answer, and whether it is wanted."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorasmith.data.audit import Account, fit_lengths
from lorasmith.data.pair_tokens import answered, parted, tokens_by_place
from lorasmith.data.pairs import Judged
from lorasmith.data.render import Ids
from lorasmith.errors import DataError


@dataclass(frozen=True, slots=True)
class JudgedTokens:
    """One judged answer as token ids, int32; the answer ends with its stop token."""

    place: str
    prompt: Ids
    completion: Ids
    label: bool


def tokenize_judged(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Judged],
    max_length: int | None,
    on_too_long: str,
    rejected: list[str] | None = None,
) -> tuple[list[JudgedTokens], Account]:
    """Token ids of judged answers, cut to length as sft.py cuts its rows, and their account.

    Args:
        rejected: Where refusals of single rows go, which are then left out; by default the first one ends it.

    Raises:
        DataError: If the rows cannot be trained on as asked.
    """
    labels = {row.place: row.label for row in rows}
    lines: dict[str, str] | None = None if rejected is None else {}
    found = tokens_by_place(tokenizer, [answered(row, row.completion) for row in rows], "completion", lines)
    if rejected is not None and lines is not None:
        rejected += [lines[row.place] for row in rows if row.place in lines]
    kept, account = fit_lengths([found[row.place] for row in rows if row.place in found], max_length, on_too_long)
    return [JudgedTokens(row.place, *parted(row), labels[row.place]) for row in kept], account


def balance_line(rows: list[JudgedTokens]) -> str:
    """How many answers are wanted, and how long they are beside the others."""
    sides = {label: [len(row.completion) for row in rows if row.label == label] for label in (True, False)}
    if not all(sides.values()):
        missing = "wanted" if not sides[True] else "unwanted"
        raise DataError(f"no answer is {missing} among {len(rows)} rows; both kinds are needed. Add some.")
    means = [sum(lengths) / len(lengths) for lengths in sides.values()]
    return (
        f"judged: {len(sides[True])} answers are wanted, of {means[0]:.0f} tokens on average, and {len(sides[False])} "
        f"are not, of {means[1]:.0f}"
    )


def balanced_weights(rows: list[JudgedTokens]) -> dict[str, float]:
    """Weights under which both kinds count the same in all, the rarer one's above 1 (Eq. 8 of arXiv 2402.01306)."""
    wanted = sum(row.label for row in rows)
    others = len(rows) - wanted
    more = max(wanted, others) / max(1, min(wanted, others))
    return {
        "desirable_weight": more if wanted < others else 1.0,
        "undesirable_weight": more if others < wanted else 1.0,
    }
