"""Figures of written answers: matches, JSON, ROUGE, BLEU, chrF, loss and perplexity. None needs the network."""

import json
import os
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.metric import Metric, check_lengths, divide, mean_of_rows, ratio_of_sums
from lorasmith.evaluation.scores import RowLoss
from lorasmith.hostile import limited

Reference = str | Sequence[str]  # one right text, or several of which the closest counts

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TOKENIZERS = ("13a", "intl", "char", "zh", "none", "ja-mecab", "ko-mecab")  # of sacrebleu; the others are downloaded
_LARGEST = 700.0  # nats whose exponential is still a float

# A minus counts as a sign unless something stands before it that it could be taken from, as in 10-5.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)%])[-\u2212](?=[$€£¥.\d]))?[$€£¥]?"
    r"(?P<number>\d+(?:/\d+)+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)|\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
    r"(?P<power>[eE][-+]?\d{1,4}(?!\w))?"
)


def exact_match(answers: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
    """Share of answers that are a reference, white space at both ends aside."""
    return [_best_of("exact_match", answers, references, lambda answer, wanted: answer.strip() == wanted.strip())]


def numeric_match(answers: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
    """Share of answers whose number is that of a reference, as GSM8K is scored; see `number_in`.

    An answer or a reference without a number matches nothing.
    """

    def same(answer: str, wanted: str) -> bool:
        found = number_in(answer)
        return found is not None and found == number_in(wanted)

    return [_best_of("numeric_match", answers, references, same)]


def number_in(text: str) -> Decimal | str | None:
    """The number that a text gives as its result: the first behind its last ####, or else the last of all.

    Thousands separators, a currency sign and % are left out, so $1,250.00 is 1250 and 50% is 50. A fraction or a date
    such as 3/4 is not worked out: it is its own text, equal to 3/4 alone, and to neither 0.75 nor 4.
    """
    _, mark, behind = text.rpartition("####")
    found = list(_NUMBER.finditer(behind if mark else text))
    if mark and not found:
        found = list(_NUMBER.finditer(text))
        mark = ""
    if not found:
        return None
    one = found[0] if mark else found[-1]
    number = one["number"].replace(",", "")
    sign = "-" if one["sign"] else ""
    return sign + number if "/" in number else Decimal(f"{sign}{number}{one['power'] or ''}")


def json_valid(answers: Sequence[str]) -> list[Metric]:
    """Share of answers that are JSON and nothing else; NaN and Infinity are none."""
    return [mean_of_rows("json_valid", [_json(answer) is not _NO_JSON for answer in answers])]


def json_equal(answers: Sequence[str], references: Sequence[Reference]) -> list[Metric]:
    """Share of answers that are the same JSON value as a reference, whatever the order of keys; 1 is 1.0, not true."""

    def same(answer: str, wanted: str) -> bool:
        one, other = _json(answer), _json(wanted)
        return one is not _NO_JSON and _same_value(one, other)

    return [_best_of("json_equal", answers, references, same)]


def regular_expression(answers: Sequence[str], pattern: str) -> list[Metric]:
    """Share of answers in which a pattern of Python's is found.

    Raises:
        DataError: If the pattern is none, or takes longer on these answers than `lorasmith.hostile` allows.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"regular expression `{pattern}`: {error}. Mend the pattern.") from None
    if hasattr(os, "fork"):
        passed = limited(lambda: [compiled.search(answer) for answer in answers])
        if passed:
            raise DataError(
                f"regular expression `{pattern}`: takes more than {passed} on {len(answers)} answers. "
                "Write it without repeats inside repeats."
            )
    return [mean_of_rows("regular_expression", [compiled.search(answer) is not None for answer in answers])]


def rouge(
    answers: Sequence[str], references: Sequence[Reference], kinds: Sequence[str] = ROUGE, stemmer: bool = False
) -> list[Metric]:
    """ROUGE F-measures by rouge-score, 0 to 1, mean of rows; of several references the best counts.

    It sees the letters a to z and digits alone. rougeLsum takes lines for sentences.

    Args:
        stemmer: Whether words are cut to their stems (Porter, English) before.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_lengths("rouge", answers=answers, references=references)
    scorer = RougeScorer(list(kinds), use_stemmer=stemmer)
    scores = [
        scorer.score_multi(_several("rouge", i, wanted), answer)
        for i, (answer, wanted) in enumerate(zip(answers, references, strict=True))
    ]
    return [mean_of_rows(kind, [row[kind].fmeasure for row in scores]) for kind in kinds]


def bleu(answers: Sequence[str], references: Sequence[Reference], tokenizer: str = "13a") -> list[Metric]:
    """BLEU of the whole set by sacrebleu, 0 to 100.

    Raises:
        DataError: For a tokenizer that would be downloaded, or whose package is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU

    if tokenizer not in TOKENIZERS:
        raise DataError(f"bleu: tokenizer `{tokenizer}`; expected one without a download: {', '.join(TOKENIZERS)}.")
    try:
        scorer = BLEU(tokenize=tokenizer, force=True)
    except (ImportError, RuntimeError):
        extra = tokenizer[:2]
        raise DataError(
            f"bleu: tokenizer `{tokenizer}` needs a package. Install it: pip install 'sacrebleu[{extra}]'."
        ) from None
    return [_of_corpus("bleu", scorer, answers, references)]


def chrf(answers: Sequence[str], references: Sequence[Reference], words: int = 0) -> list[Metric]:
    """chrF of the whole set by sacrebleu, 0 to 100.

    Args:
        words: Longest n-gram of words that counts too; 2 makes it chrF++.
    """
    from sacrebleu.metrics.chrf import CHRF

    return [_of_corpus("chrf", CHRF(word_order=words), answers, references)]


def loss_and_perplexity(rows: Sequence[RowLoss]) -> list[Metric]:
    """Loss in nats per supervised token and its exponential, cut at e^700."""
    loss = ratio_of_sums("loss", [row.nats for row in rows], [row.tokens for row in rows], lower_is_better=True)

    def exponential(sums: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(divide(sums[..., 0], sums[..., 1]), _LARGEST))

    return [loss, Metric("perplexity", loss.rows, exponential, lower_is_better=True)]


def _best_of(
    name: str, answers: Sequence[str], references: Sequence[Reference], matches: Callable[[str, str], bool]
) -> Metric:
    """Whether an answer matches any of its references, mean of rows."""
    check_lengths(name, answers=answers, references=references)
    pairs = enumerate(zip(answers, references, strict=True))
    return mean_of_rows(
        name, [any(matches(answer, one) for one in _several(name, i, some)) for i, (answer, some) in pairs]
    )


def _several(name: str, row: int, references: Reference) -> list[str]:
    """The references of a row as a list.

    Raises:
        DataError: If it has none.
    """
    found = [references] if isinstance(references, str) else list(references)
    if not found:
        raise DataError(f"{name}: row {row + 1} has no reference. Give it one or more.")
    return found


def _of_corpus(name: str, scorer: Any, answers: Sequence[str], references: Sequence[Reference]) -> Metric:
    """A figure of sacrebleu as a function of its own statistics of each sentence."""
    check_lengths(name, answers=answers, references=references)
    several = [_several(name, i, one) for i, one in enumerate(references)]
    most = max(len(one) for one in several)
    # sacrebleu takes the first references of all rows, then the second ones, None where a row has fewer.
    streams = [[one[i] if i < len(one) else None for one in several] for i in range(most)]
    rows = np.array(scorer._extract_corpus_statistics(list(answers), streams), dtype=np.float64)

    def score(sums: np.ndarray) -> np.ndarray:
        each = sums.reshape(-1, sums.shape[-1]).tolist()
        return np.array([scorer._compute_score_from_stats(one).score for one in each]).reshape(sums.shape[:-1])

    return Metric(name, rows, score)


_NO_JSON = object()


def _json(text: str) -> Any:
    """The value of a JSON text, numbers exact; _NO_JSON if it is none."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=refuse)
    except (ValueError, ArithmeticError, RecursionError):
        return _NO_JSON


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_value(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_value, one, other))
    return type(one) is type(other) and bool(one == other)
