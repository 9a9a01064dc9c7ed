"""Rows of any shape as what a reward model scores: answers behind their prompts, one to a row or a pair of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorasmith.data.answers import divided, last_answer
from lorasmith.data.files import records
from lorasmith.data.formats import check_record, renamed
from lorasmith.data.messages import checked_tools
from lorasmith.data.pair_tokens import CHOSEN, REJECTED, answered, parted, tokenize_pairs, tokens_by_place
from lorasmith.data.pairs import Judged, Pair, checked_said, is_pair, pair_of
from lorasmith.data.rows import Row
from lorasmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Scored:
    """The answers of one row, each as the ids of prompt and answer up to its stop token.

    Attributes:
        place: `file:line`.
        sequences: By name: chosen and rejected of a pair, or score.
    """

    place: str
    sequences: dict[str, list[int]]


SCORE = "score"


def read_scored(
    source: str, subset: str | None = None, split: str = "train", columns: dict[str, str] | None = None
) -> tuple[list[Pair] | list[Judged], str]:
    """All rows of a file, folder or hub data set, and what they are called; the first row says whether they are pairs.

    Of a conversation what follows the last question is scored; a verdict on it is passed over.

    Raises:
        DataError: At the first broken row, naming its line, or if there is none.
    """
    found = [(place, renamed(value, columns or {})) for place, value in records(source, subset, split)]
    if not found:
        raise DataError(f"{source}: no rows. Give at least one.")
    check_record(found[0][1], found[0][0])
    if is_pair(found[0][1]):
        return [pair_of(value, place) for place, value in found], "preference"
    return [_answer_of(value, place) for place, value in found], "answers"


def _answer_of(value: object, place: str) -> Judged:
    check_record(value, place)
    assert isinstance(value, dict)
    prompt, completion = divided(value, place, last_answer)
    asked = checked_said(prompt, "prompt", place, answer=False)
    return Judged(place, asked, checked_said(completion, "completion", place), True, checked_tools(value, place))


def tokens_to_score(tokenizer: PreTrainedTokenizerBase, rows: list[Pair] | list[Judged]) -> list[Scored]:
    """Token ids as training sees them.

    Raises:
        DataError: If the template does not write an answer as one text behind its prompt.
    """
    pairs = [row for row in rows if isinstance(row, Pair)]
    if pairs:
        found = tokenize_pairs(tokenizer, pairs)
        return [
            Scored(
                one.place, {CHOSEN: (one.prompt + one.chosen).tolist(), REJECTED: (one.prompt + one.rejected).tolist()}
            )
            for one in found
        ]
    singles = [row for row in rows if isinstance(row, Judged)]
    return _answers_to_score(tokenizer, [answered(row, row.completion) for row in singles])


def pairs_to_score(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Scored]:
    """Preferred and other answers in turn (`prepare_pairs.both_answers`) as pairs; one that is left over is none."""
    pairs = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=False):
        [first], [second] = (_answers_to_score(tokenizer, [row]) for row in (chosen, rejected))
        pairs.append(Scored(chosen.place, {CHOSEN: first.sequences[SCORE], REJECTED: second.sequences[SCORE]}))
    return pairs


def _answers_to_score(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> list[Scored]:
    found = tokens_by_place(tokenizer, rows, "completion", None)
    scored = []
    for row in rows:
        prompt, answer = parted(found[row.place])
        scored.append(Scored(row.place, {SCORE: (prompt + answer).tolist()}))
    return scored
