"""Pairs of answers to token ids: one prompt, what is preferred, and what is not, each complete."""

from array import array
from collections import Counter
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorasmith.data.answers import Said
from lorasmith.data.audit import TOO_LONG_LIMIT, Account, quantiles, too_many
from lorasmith.data.pairs import Judged, Pair
from lorasmith.data.render import IGNORED, Ids, TokenRow, tokenize
from lorasmith.data.rows import ASSISTANT, Row, conversation
from lorasmith.errors import DataError

CHOSEN, REJECTED = "chosen", "rejected"


@dataclass(frozen=True, slots=True)
class PairTokens:
    """One pair as token ids, int32: either answer stands behind the prompt and ends with its stop token."""

    place: str
    prompt: Ids
    chosen: Ids
    rejected: Ids

    @property
    def tokens(self) -> int:
        """Tokens of both sequences."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def rows(self) -> tuple[TokenRow, TokenRow]:
        """Both sequences as rows of which the answer is trained, the preferred one first."""
        return sequence(self.place, self.prompt, self.chosen), sequence(self.place, self.prompt, self.rejected)


def sequence(place: str, prompt: Ids, answer: Ids) -> TokenRow:
    """A prompt and an answer as a row of which the answer is trained."""
    return TokenRow(place, prompt + answer, array("i", [IGNORED]) * len(prompt) + answer)


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: list[Pair], rejected: list[str] | None = None
) -> list[PairTokens]:
    """Token ids of pairs, rendered as `render` renders a conversation.

    Args:
        rejected: Where refusals of single pairs go, which are then left out; by default the first one ends it.

    Raises:
        DataError: If the template does not begin both sequences with the same prompt, or writes both answers alike.
    """
    lines: dict[str, str] | None = None if rejected is None else {}
    chosen = tokens_by_place(tokenizer, [answered(pair, pair.chosen) for pair in pairs], CHOSEN, lines)
    others = tokens_by_place(tokenizer, [answered(pair, pair.rejected) for pair in pairs], REJECTED, lines)
    result = []
    for pair in pairs:
        try:
            if lines is not None and pair.place in lines:
                raise DataError(lines[pair.place])
            result.append(_joined(pair.place, chosen[pair.place], others[pair.place]))
        except DataError as error:
            if rejected is None:
                raise
            rejected.append(str(error))
    return result


def tokens_by_place(
    tokenizer: PreTrainedTokenizerBase, rows: list[Row], name: str, refused: dict[str, str] | None
) -> dict[str, TokenRow]:
    """The token row of each place; rows that stand there several times, by their source's weight, are the same.

    Args:
        name: Of the field that holds the answer.
        refused: Where refusals go, by place; by default the first one ends it.

    Raises:
        DataError: If a row cannot be trained on as one text.
    """
    told: list[str] | None = None if refused is None else []
    found = tokenize(tokenizer, list({row.place: row for row in rows}.values()), ASSISTANT, told)
    counts = Counter(row.place for row in found)
    for place in (place for place, count in counts.items() if count > 1):
        line = f"{place}: {name}: the chat template rewrites earlier turns. Keep one answer."
        if told is None:
            raise DataError(line)
        told.append(line)
    if refused is not None:
        refused |= {line.partition(": ")[0]: line for line in told or []}
    return {row.place: row for row in found if counts[row.place] == 1}


def answered(pair: Pair | Judged, answer: Said) -> Row:
    """A prompt with an answer, which alone is trained."""
    if isinstance(pair.prompt, str) or isinstance(answer, str):
        return Row(pair.place, prompt=str(pair.prompt), completion=str(answer))
    trained = [False] * len(pair.prompt) + [turn["role"] == ASSISTANT for turn in answer]
    return conversation(pair.place, [*pair.prompt, *answer], trained, pair.tools)


def _joined(place: str, chosen: TokenRow, rejected: TokenRow) -> PairTokens:
    (prompt, preferred), (other_prompt, other) = parted(chosen), parted(rejected)
    if prompt != other_prompt:
        raise DataError(
            f"{place}: the prompt's tokens differ before the two answers. End the prompt, or begin the answers, at a "
            "token's end, or set model.chat_template to one that writes the prompt the same before both."
        )
    if preferred == other:
        raise DataError(f"{place}: chosen and rejected have the same tokens, so that none is preferred.")
    return PairTokens(place, prompt, preferred, other)


def parted(row: TokenRow) -> tuple[Ids, Ids]:
    """What stands before the first trained token, and all from there to the last."""
    trained = [i for i, label in enumerate(row.labels) if label != IGNORED]
    return row.input_ids[: trained[0]], row.input_ids[trained[0] : trained[-1] + 1]


def fit_pairs(pairs: list[PairTokens], max_length: int | None, on_too_long: str) -> tuple[list[PairTokens], Account]:
    """Apply `max_length` to the longer sequence of each pair, keeping both answers and their stop tokens whole.

    Args:
        max_length: Tokens that a sequence may have, or None for no limit.
        on_too_long: "error" drops up to 1 % of the pairs and refuses above; "drop"; "truncate" cuts the prompt's start,
            by as much for both answers, so that they still answer the same.

    Returns:
        The pairs, and their account: tokens of both sequences, the answers' counted as trained.

    Raises:
        DataError: If too many pairs are too long, or none is left.
    """
    account = Account(read=len(pairs), max_length=max_length)
    kept: list[PairTokens] = []
    long = [pair for pair in pairs if max_length is not None and pair.longest > max_length]
    if max_length is not None and on_too_long == "error" and len(long) > TOO_LONG_LIMIT * len(pairs):
        raise too_many(long[0].place, len(long), sorted(pair.longest for pair in pairs), max_length)
    for pair in pairs:
        over = pair.longest - max_length if max_length is not None else 0
        if over > 0 and on_too_long != "truncate":
            account.dropped["too long"] = account.dropped.get("too long", 0) + 1
        elif over >= len(pair.prompt) > 0 or (over > 0 and not pair.prompt):
            account.dropped["answer too long"] = account.dropped.get("answer too long", 0) + 1
        else:
            account.truncated += over > 0
            kept.append(PairTokens(pair.place, pair.prompt[max(0, over) :], pair.chosen, pair.rejected))
    if not kept:
        raise DataError(f"no pair is left of {len(pairs)}: {account.dropped}. Raise trainer.max_length.")
    account.trained = len(kept)
    account.tokens = sum(pair.tokens for pair in kept)
    account.supervised_tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in kept)
    account.length_quantiles = quantiles(sorted(pair.longest for pair in kept))
    return kept, account


def balance_line(pairs: list[PairTokens]) -> str:
    """How the answers compare in length: a preference for longer ones is learnt before one for what they say."""
    chosen, rejected = (sum(len(getattr(pair, name)) for pair in pairs) for name in (CHOSEN, REJECTED))
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    return (
        f"pairs: the preferred answer has {chosen / len(pairs):.0f} tokens on average, the other "
        f"{rejected / len(pairs):.0f}; it is the longer one in {longer / len(pairs):.0%} of them"
    )
