"""Questions with their contexts to token ids, in windows that overlap, with the tokens at which the answer lies."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from lorasmith.data.audit import TOO_LONG_LIMIT, Account, quantiles
from lorasmith.data.render import BATCH, IGNORED, Ids, TokenRow
from lorasmith.data.squad import Question
from lorasmith.errors import DataError


@dataclass(frozen=True, slots=True)
class QuestionTokens:
    """A question with its whole context as token ids, int32.

    Attributes:
        head: The question and special tokens, up to the context; `tail`: what stands behind it.
        types: Token types of the three parts, or None where the model has none.
        starts: Where each token of the context begins, in characters; `ends`: where it ends. Both leave white space
            out, so that they are equal for a token of white space.
        answer: First and last token of the answer in `context`; None if there is none, or if it has no token.
        widened: Whether the answer begins or ends inside a token.
    """

    place: str
    head: Ids
    context: Ids
    tail: Ids
    types: tuple[Ids, Ids, Ids] | None
    starts: Ids
    ends: Ids
    answer: tuple[int, int] | None
    widened: bool

    def room(self, max_length: int | None) -> int:
        """Tokens that a window has for the context."""
        return len(self.context) if max_length is None else max_length - len(self.head) - len(self.tail)

    def fits(self, max_length: int | None, stride: int) -> bool:
        """Whether the context has enough room behind the question to be cut into windows."""
        room = self.room(max_length)
        return room >= len(self.context) or room > stride


@dataclass(frozen=True, slots=True)
class QuestionWindow:
    """A question with as much of its context as the model takes at once.

    Attributes:
        question: Index of the question.
        first: Index of the context's first token in `input_ids`.
        starts: Where each token of this part of the context begins, in characters; `ends`: where it ends. They are
            equal for a token that is in no answer.
        null: Index of the token that stands for "no answer here": CLS, or else the first one.
        start: Index of the answer's first token in `input_ids`, or `null`; `end`: of its last one.
    """

    question: int
    place: str
    input_ids: Ids
    token_type_ids: "Ids | None"
    first: int
    starts: Ids
    ends: Ids
    null: int
    start: int
    end: int

    def row(self) -> TokenRow:
        """The window as a row of which the answer is trained, for the audit."""
        labels = array("i", [IGNORED]) * len(self.input_ids)
        if self.start != self.null:
            labels[self.start : self.end + 1] = self.input_ids[self.start : self.end + 1]
        return TokenRow(self.place, self.input_ids, labels)


def encode_questions(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Question]) -> list[QuestionTokens]:
    """The tokens of each question and its context, in the tokenizer's own format of pairs.

    Of several answers, the first is the one to learn.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    gap = between(tokenizer)
    typed = "token_type_ids" in tokenizer.model_input_names
    result = []
    for begin in range(0, len(rows), BATCH):
        batch = rows[begin : begin + BATCH]
        pairs = [(row.question.strip() + gap, row.context) for row in batch]
        for row, encoding in zip(batch, backend.encode_batch(pairs), strict=True):
            inside = [at for at, part in enumerate(encoding.sequence_ids) if part == 1]
            first, last = (inside[0], inside[-1] + 1) if inside else (len(encoding.ids), len(encoding.ids))
            head, context, tail = _parts(encoding.ids, first, last)
            types = _parts(encoding.type_ids, first, last) if typed else None
            starts, ends = _trimmed(row.context, encoding.offsets[first:last])
            answer, widened = _answer_tokens(row, starts, ends)
            result.append(QuestionTokens(row.place, head, context, tail, types, starts, ends, answer, widened))
    return result


def between(tokenizer: PreTrainedTokenizerBase) -> str:
    """What is put between a question and its context: a line break where the tokenizer writes nothing there."""
    return "" if None in tokenizer.backend_tokenizer.encode("one", "two").sequence_ids[1:-1] else "\n"


def _parts(values: Sequence[int], first: int, last: int) -> tuple[Ids, Ids, Ids]:
    return array("i", values[:first]), array("i", values[first:last]), array("i", values[last:])


def _trimmed(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[Ids, Ids]:
    """Starts and ends of tokens without the white space that belongs to them in some tokenizers."""
    starts, ends = array("i"), array("i")
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        starts.append(start)
        ends.append(end)
    return starts, ends


def _answer_tokens(row: Question, starts: Ids, ends: Ids) -> tuple[tuple[int, int] | None, bool]:
    """First and last token that have a character of the first answer, and whether they have others too."""
    if not row.answers:
        return None, False
    text, start = row.answers[0]
    begin = start + len(text) - len(text.lstrip())
    end = start + len(text.rstrip())
    left, right = np.asarray(starts), np.asarray(ends)
    touching = np.flatnonzero((left < end) & (right > begin) & (left < right))
    if not len(touching):
        return None, False
    first, last = int(touching[0]), int(touching[-1])
    return (first, last), starts[first] < begin or ends[last] > end


def question_windows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Question], max_length: int | None, stride: int
) -> list[QuestionWindow]:
    """The windows in which the questions are answered.

    Args:
        max_length: Tokens of a window, or None for whole contexts.
        stride: Tokens that two windows of a context have in common.

    Raises:
        DataError: At the first question that leaves no room for its context.
    """
    encoded = encode_questions(tokenizer, rows)
    for tokens in encoded:
        if not tokens.fits(max_length, stride):
            raise _too_long(tokens, 1, len(rows), max_length, stride)
    return [window for i, tokens in enumerate(encoded) for window in _windows(tokenizer, i, tokens, max_length, stride)]


def tokenize_questions(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Question], max_length: int | None, stride: int, on_too_long: str
) -> tuple[list[QuestionWindow], Account]:
    """The windows to train on, as `question_windows` makes them, and the account of the questions.

    A window without the answer points at its `null` token. A question whose answer is whole in no window is left out,
    since all of its windows would teach that there is none.

    Args:
        on_too_long: "error" drops up to 1 % of the questions that leave no room for their context, and refuses above;
            "drop" and "truncate" drop them all.

    Raises:
        DataError: If too many questions are too long, or none is left.
    """
    encoded = encode_questions(tokenizer, rows)
    long = [tokens for tokens in encoded if not tokens.fits(max_length, stride)]
    if on_too_long == "error" and len(long) > TOO_LONG_LIMIT * len(rows):
        raise _too_long(long[0], len(long), len(rows), max_length, stride)
    account = Account(read=len(rows), max_length=max_length, labelled=True)
    account.unrolled_by = "cutting long contexts into windows"
    kept: list[QuestionWindow] = []
    used: list[QuestionTokens] = []
    for i, (row, tokens) in enumerate(zip(rows, encoded, strict=True)):
        assert row.answers is not None, "rows to train on are read with their answers"
        reason = "" if tokens.fits(max_length, stride) else "question too long"
        windows = [] if reason else list(_windows(tokenizer, i, tokens, max_length, stride))
        if row.answers and tokens.answer is None:
            reason = reason or "answer without a token"
        elif row.answers and all(window.start == window.null for window in windows):
            reason = reason or "answer whole in no window"
        if reason:
            account.dropped[reason] = account.dropped.get(reason, 0) + 1
        else:
            kept += windows
            used.append(tokens)
    if not kept:
        raise DataError(f"no question is left of {len(rows)}: {account.dropped}. Raise trainer.max_length.")
    lengths = sorted(len(window.input_ids) for window in kept)
    account.trained, account.unrolled = len(kept), len(kept) - len(used)
    account.tokens = sum(lengths)
    account.supervised_tokens = sum(window.row().supervised for window in kept)
    account.length_quantiles = quantiles(lengths)
    account.notes = _notes(used, kept)
    return kept, account


def _notes(used: Sequence[QuestionTokens], windows: Sequence[QuestionWindow]) -> list[str]:
    unanswerable = sum(tokens.answer is None for tokens in used)
    empty = sum(window.start == window.null for window in windows)
    widened = sum(tokens.widened for tokens in used)
    told = [
        f"questions: {len(used):,} in {len(windows):,} windows; {unanswerable:,} have no answer, and {empty:,} windows "
        "point at the token that stands for none"
    ]
    if widened:
        told.append(f"answers: {widened:,} begin or end inside a token, which counts as a whole")
    return told


def _too_long(tokens: QuestionTokens, count: int, of: int, max_length: int | None, stride: int) -> DataError:
    around = len(tokens.head) + len(tokens.tail)
    others = f" (the first of {count} such among {of})" if count > 1 else ""
    return DataError(
        f"{tokens.place}: question: {around} tokens with the special ones{others}; with {stride + 1} for the context "
        f"that is over trainer.max_length ({max_length}). Shorten it, raise trainer.max_length, or lower task.stride."
    )


def _windows(
    tokenizer: PreTrainedTokenizerBase, question: int, tokens: QuestionTokens, max_length: int | None, stride: int
) -> Iterator[QuestionWindow]:
    room, count = tokens.room(max_length), len(tokens.context)
    begin = 0
    while True:
        end = min(count, begin + room)
        ids = tokens.head + tokens.context[begin:end] + tokens.tail
        types = None
        if tokens.types is not None:
            head, context, tail = tokens.types
            types = head + context[begin:end] + tail
        first = len(tokens.head)
        start = last = null = _null(tokenizer, ids)
        if tokens.answer is not None and begin <= tokens.answer[0] and tokens.answer[1] < end:
            start, last = (first + at - begin for at in tokens.answer)
        starts, ends = tokens.starts[begin:end], tokens.ends[begin:end]
        yield QuestionWindow(question, tokens.place, ids, types, first, starts, ends, null, start, last)
        if end == count:
            return
        begin += room - stride


def _null(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> int:
    """The index of CLS, which a few tokenizers write at the end, or else of the first token."""
    cls = tokenizer.cls_token_id
    return ids.index(cls) if cls is not None and cls in ids else 0
