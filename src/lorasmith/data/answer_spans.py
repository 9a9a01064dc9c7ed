"""The likeliest answers in the windows of a context, chosen as transformers' run_qa.py and BERT's own script do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorasmith.data.question_tokens import QuestionWindow
from lorasmith.data.squad import Question
from lorasmith.errors import ModelError

N_BEST = 20
MAX_ANSWER_LENGTH = 30  # tokens


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """The answer to a question.

    Attributes:
        text: A part of the context; empty if there is no answer.
        start: Where it stands, in characters; `end`: where it ends. Both -1 if there is no answer.
        probability: Among the likeliest answers, and no answer where that is allowed.
        null_margin: The score of no answer above that of the best answer, to compare with a threshold.
    """

    text: str
    start: int
    end: int
    probability: float
    null_margin: float


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Scores, and starts and ends in characters, each of shape (candidates,)."""

    scores: NDArray[np.float64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def best_answers(
    questions: Sequence[Question],
    windows: Sequence[QuestionWindow],
    start_logits: Sequence[NDArray[np.floating]],
    end_logits: Sequence[NDArray[np.floating]],
    *,
    unanswerable: bool = False,
    null_threshold: float = 0.0,
    n_best: int = N_BEST,
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> list[FoundAnswer]:
    """The best answer to each question over all of its windows.

    An answer's score is the logit of its first token as a start and of its last as an end; that of no answer is the
    same of the `null` token, the least over the windows. Beyond those scripts, only tokens of the context take one of
    the `n_best` places, and a span that stands in two windows counts once.

    Args:
        start_logits: Of each window, shape (tokens,); padding behind the tokens is not looked at. So `end_logits`.
        unanswerable: Whether a question may have no answer.
        null_threshold: By how much no answer must score above the best answer to be given.
        n_best: Starts and ends that are tried in each window, and answers that share the probability.
        max_answer_length: Tokens of an answer.

    Raises:
        ModelError: If the model gave numbers that are not finite.
    """
    found: list[list[_Candidates]] = [[] for _ in questions]
    null = np.full(len(questions), np.inf)
    for window, starts, ends in zip(windows, start_logits, end_logits, strict=True):
        count = len(window.input_ids)
        if not (np.isfinite(starts[:count]).all() and np.isfinite(ends[:count]).all()):
            raise ModelError("the model's outputs are not finite. Try model.dtype: float32.")
        found[window.question].append(_candidates(window, starts, ends, n_best, max_answer_length))
        null[window.question] = min(null[window.question], float(starts[window.null]) + float(ends[window.null]))
    return [
        _best(question, candidates, float(least), unanswerable, null_threshold, n_best)
        for question, candidates, least in zip(questions, found, null, strict=True)
    ]


def _candidates(
    window: QuestionWindow,
    start_logits: NDArray[np.floating],
    end_logits: NDArray[np.floating],
    n_best: int,
    max_answer_length: int,
) -> _Candidates:
    """All pairs of likely starts and ends of a window that are answers; tokens without a character are none."""
    left, right = np.asarray(window.starts, dtype=np.int64), np.asarray(window.ends, dtype=np.int64)
    usable = np.flatnonzero(left < right)
    starts = start_logits[window.first + usable].astype(np.float64)
    ends = end_logits[window.first + usable].astype(np.float64)
    first, last = (np.argsort(-scores, kind="stable")[:n_best] for scores in (starts, ends))
    length = usable[last][None, :] - usable[first][:, None] + 1
    i, j = np.nonzero((length >= 1) & (length <= max_answer_length))
    return _Candidates(starts[first[i]] + ends[last[j]], left[usable[first[i]]], right[usable[last[j]]])


def _best(
    question: Question, found: list[_Candidates], null: float, unanswerable: bool, threshold: float, n_best: int
) -> FoundAnswer:
    scores = np.concatenate([np.empty(0), *(part.scores for part in found)])
    if not len(scores):
        return FoundAnswer("", -1, -1, 1.0, np.inf)
    places = np.concatenate([np.stack([part.starts, part.ends], axis=1) for part in found])
    order = np.argsort(-scores, kind="stable")
    # A span that stands in two windows is one answer, with the better of its scores.
    _, kept = np.unique(places[order], axis=0, return_index=True)
    order = order[np.sort(kept)][:n_best]
    best = scores[order[0]]
    weighed = np.append(scores[order], null) if unanswerable else scores[order]
    shares = np.exp(weighed - weighed.max())
    shares /= shares.sum()
    margin = float(null - best)
    if unanswerable and margin > threshold:
        return FoundAnswer("", -1, -1, float(shares[-1]), margin)
    start, end = (int(at) for at in places[order[0]])
    return FoundAnswer(question.context[start:end], start, end, float(shares[0]), margin)
