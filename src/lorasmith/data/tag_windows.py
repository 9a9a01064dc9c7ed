"""Rows of tagged words in windows of what the model takes, and its outputs for them back to a tag for each word."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorasmith.data.render import Ids
from lorasmith.data.tag_tokens import WordTokens, word_end
from lorasmith.data.tagged import OUTSIDE
from lorasmith.errors import DataError, ModelError

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TagWindow:
    """As much of a row as the model takes at once.

    Attributes:
        row: Index of the row.
        words: For each token, the index of the word whose label is read there, or -1.
    """

    row: int
    input_ids: Ids
    words: Ids

    @property
    def is_read(self) -> bool:
        """Whether any word's label is read here."""
        return max(self.words, default=-1) >= 0


def tag_windows(encoded: Sequence[WordTokens], max_length: int | None) -> list[TagWindow]:
    """The windows in which the rows are predicted: whole rows, or parts of long ones that overlap by a quarter.

    Each word's label is read in the window where the fewer of the tokens before and behind it are most.

    Raises:
        DataError: If special tokens alone fill `max_length`.
    """
    return [window for i, tokens in enumerate(encoded) for window in _windows(i, tokens, max_length)]


def _windows(row: int, tokens: WordTokens, max_length: int | None) -> list[TagWindow]:
    room = len(tokens.body) if max_length is None else max_length - len(tokens.head) - len(tokens.tail)
    if room < 1 and tokens.body:
        raise DataError(f"{tokens.place}: max_length ({max_length}) has no room for a word. Raise it.")
    parts = _parts(tokens, room)
    read = [array("i", [-1]) * (end - start) for start, end in parts]
    for word, at in tokens.firsts.items():
        best = max(range(len(parts)), key=lambda i: _context(parts, i, at))
        read[best][at - parts[best][0]] = word
    head, tail = (array("i", [-1]) * len(part) for part in (tokens.head, tokens.tail))
    return [
        TagWindow(row, tokens.head + tokens.body[start:end] + tokens.tail, head + words + tail)
        for (start, end), words in zip(parts, read, strict=True)
    ]


def _parts(tokens: WordTokens, room: int) -> list[tuple[int, int]]:
    """Start and end of each window of up to `room` tokens, cut between words."""
    starts = [at for at, word in enumerate(tokens.words) if at == 0 or word != tokens.words[at - 1]]
    parts = []
    start = 0
    while True:
        end = word_end(tokens, start, start + room)
        parts.append((start, end))
        later = [at for at in starts if start < at]
        if end >= len(tokens.body) or not later:
            return parts
        overlapping = [at for at in later if at <= max(end - room // 4, later[0])]
        start = overlapping[-1]


def _context(parts: list[tuple[int, int]], i: int, at: int) -> float:
    """The fewer of the tokens before and behind a place in a window; none are missing where the row begins or ends."""
    start, end = parts[i]
    if not start <= at < end:
        return -1.0
    before = np.inf if start == 0 else at - start
    behind = np.inf if i == len(parts) - 1 else end - 1 - at
    return float(min(before, behind))


def word_logits(
    windows: Sequence[TagWindow], logits: Sequence[NDArray[np.floating]], words: Sequence[int]
) -> list[Values]:
    """The logits of each row's words, float64, shape (words, labels); NaN for a word that has no token.

    Args:
        logits: Of each window, shape (tokens, labels); padding behind the tokens is not looked at.
        words: How many words each row has.

    Raises:
        ModelError: If the model gave numbers that are not finite.
    """
    outputs = logits[0].shape[-1] if logits else 0
    result = [np.full((count, outputs), np.nan) for count in words]
    for window, values in zip(windows, logits, strict=True):
        at = [i for i, word in enumerate(window.words) if word >= 0]
        if not np.isfinite(values[at]).all():
            raise ModelError("the model's outputs are not finite. Try model.dtype: float32.")
        result[window.row][[window.words[i] for i in at]] = values[at]
    return result


def decoded_tags(logits: Values, labels: Sequence[str]) -> tuple[list[str], Values]:
    """The likeliest tag of each word and its probability; `O` with probability 0 where a word has no token.

    Args:
        logits: Shape (words, labels), as `word_logits` gives them.
    """
    known = ~np.isnan(logits[:, 0])
    filled = np.where(known[:, None], logits, 0.0)
    exponents = np.exp(filled - filled.max(axis=-1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=-1, keepdims=True)
    best = probabilities.argmax(axis=-1)
    tags = [labels[i] if seen else OUTSIDE for i, seen in zip(best, known, strict=True)]
    return tags, np.where(known, probabilities[np.arange(len(best)), best], 0.0)
