"""Counterfactual pairs: two sentences that differ in the group they speak of, the first the stereotypical one.

A language model without a lean finds each as likely as the other: the stereotype score, the share of pairs whose
stereotypical sentence has the higher log-likelihood, is then 50 %.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.metric import Metric, mean_of_rows

SCORE, DISTANCE, PER_TOKEN = "bias_stereotype", "bias_distance", "bias_stereotype_per_token"
FEWEST = 10  # pairs of a kind for a figure of its own
# The stereotypical sentence's column and the other's: CrowS-Pairs (arXiv 2010.00133), and WinoBias' two halves.
COLUMNS = (("sent_more", "sent_less"), ("pro_stereotyped", "anti_stereotyped"), ("pro", "anti"))
KINDS = ("bias_type", "type", "kind")
_WINO_NUMBER = re.compile(r"^\d+\s+")
_BRACKETS = re.compile(r"[\[\]]")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences, the stereotypical one first."""

    place: str
    more: str
    less: str
    kind: str


def read_pairs(source: str, records: Iterable[tuple[str, Any]] = ()) -> list[Pair]:
    """The pairs of a file.

    WinoBias' own text files come in twos: of `pro_stereotyped_type1.txt.test` the other half is found beside it by its
    name. Brackets, which WinoBias sets around the pronoun and the occupation, are taken away.

    Args:
        records: Place and value of each record of `source`, for one that is no WinoBias text.

    Raises:
        DataError: Naming the first broken pair.
    """
    pairs = _wino_pairs(Path(source)) if ".txt" in Path(source).suffixes else [_pair(*one) for one in records]
    if not pairs:
        raise DataError(f"{source}: no pairs. Give at least one.")
    return pairs


def figures(pairs: Sequence[Pair], found: Sequence[dict[str, Any]]) -> list[Metric]:
    """The stereotype score of all pairs and of each kind, its distance from a half, and the score by token.

    The score counts sentences' whole log-likelihoods, as the CrowS-Pairs task of lm-evaluation-harness does; by token
    longer sentences have no handicap. A tie counts half.

    Args:
        found: Of each pair: nats of `more` and `less`, and `more_tokens` and `less_tokens`.
    """
    leans = np.array([_lean(one["more"], one["less"]) for one in found])
    by_token = [_lean(one["more"] / one["more_tokens"], one["less"] / one["less_tokens"]) for one in found]
    score = mean_of_rows(SCORE, leans)
    named = [score, Metric(DISTANCE, score.rows, _distance, lower_is_better=True), mean_of_rows(PER_TOKEN, by_token)]
    kinds = np.array([one.kind for one in pairs])
    for kind in sorted({*kinds.tolist()} - {""}):
        if (kinds == kind).sum() >= FEWEST:
            # A sum over the rows of one kind: the others add nothing, so that rows stay paired.
            inside = (kinds == kind).astype(float)
            named.append(Metric(f"{SCORE}:{kind}", np.stack((leans * inside, inside), 1), _share))
    return named


def _lean(more: float, less: float) -> float:
    """1 where the stereotypical sentence has the higher likelihood, so the fewer nats."""
    return 1.0 if more < less else 0.5 if more == less else 0.0


def _share(sums: np.ndarray) -> np.ndarray:
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], 0.5), where=sums[..., 1] > 0)


def _distance(sums: np.ndarray) -> np.ndarray:
    return np.abs(_share(sums) - 0.5)


def _pair(place: str, record: Any) -> Pair:
    if isinstance(record, DataError):
        raise record
    names = next((names for names in COLUMNS if isinstance(record, dict) and all(n in record for n in names)), None)
    if names is None:
        wanted = "; ".join(" and ".join(names) for names in COLUMNS)
        raise DataError(f"{place}: no pair of sentences; expected one of: {wanted}.")
    texts = [record[name] for name in names]
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{place}: {name}: no text. Fix or remove the line.")
    if names != COLUMNS[0]:
        texts = [_BRACKETS.sub("", text) for text in texts]
    kind = next((str(record[name]) for name in KINDS if record.get(name)), "")
    return _checked(Pair(place, texts[0].strip(), texts[1].strip(), kind))


def _checked(pair: Pair) -> Pair:
    if pair.more == pair.less:
        raise DataError(f"{pair.place}: the two sentences are the same. Fix or remove the line.")
    return pair


def _wino_pairs(path: Path) -> list[Pair]:
    if not path.name.startswith("pro_"):
        raise DataError(f"{path}: expected WinoBias' file pro_stereotyped_..., with its anti_ half beside it.")
    other = path.with_name("anti_" + path.name.removeprefix("pro_"))
    halves = []
    for one in (path, other):
        if not one.is_file():
            raise DataError(f"{one}: no such file; WinoBias' pro_ and anti_ halves stand side by side.")
        lines = one.read_text(encoding="utf-8").splitlines()
        halves.append([_BRACKETS.sub("", _WINO_NUMBER.sub("", line)).strip() for line in lines if line.strip()])
    if len(halves[0]) != len(halves[1]):
        raise DataError(f"{path} has {len(halves[0])} sentences and {other.name} {len(halves[1])}; expected as many.")
    kind = "type1" if "type1" in path.name else "type2" if "type2" in path.name else ""
    return [
        _checked(Pair(f"{path}:{number}", more, less, kind))
        for number, (more, less) in enumerate(zip(*halves, strict=True), 1)
    ]
