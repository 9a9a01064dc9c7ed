"""Rows of a text and what is said of it: one label, several, or a number."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lorasmith.data.formats import check_record
from lorasmith.data.messages import DROP, checked_text, named_kind
from lorasmith.data.pairs import Found, content_hash, found_in
from lorasmith.errors import DataError
from lorasmith.recipe_task import Task

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SHOWN_LABELS = 12  # in a sentence
Label = str | int | float | bool | list[Any] | None


@dataclass(frozen=True)
class Labelled:
    """A text, or two that are judged together, and its label as the row gives it; None where it is to be predicted.

    Attributes:
        place: `file:line`, to name in errors.
        group: What a row is told apart by in an evaluation, by the names of columns.
    """

    place: str
    text: str
    text_pair: str = ""
    label: Label = None
    group: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def prompt_key(self) -> str:
        """What the model is shown; equal for rows that must not straddle a split."""
        return f"{self.text}\n{self.text_pair}" if self.text_pair else self.text

    @cached_property
    def digest(self) -> str:
        """Hash of the content, wherever the row stands."""
        return content_hash(self.text, self.text_pair, self.label)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is told of a text.

    Attributes:
        kind: transformers' name: single_label_classification, multi_label_classification or regression.
        labels: Names of the outputs, in their order; one without meaning for a regression.
    """

    kind: str
    labels: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What run.json keeps."""
        return {"problem": self.kind, "labels": list(self.labels)}

    def target(self, label: Label, place: str) -> int | float | list[float]:
        """A row's label as the loss takes it: an index, a number, or 0 and 1 for each label.

        Raises:
            DataError: If it is none of the labels.
        """
        if self.kind == REGRESSION:
            return _number(label, place)
        if self.kind == MULTI:
            given = {self._index(one, place) for one in (label if isinstance(label, list) else [label])}
            return [float(index in given) for index in range(len(self.labels))]
        return self._index(label, place)

    def _index(self, label: Any, place: str) -> int:
        name = name_of(label)
        if name in self.labels:
            return self.labels.index(name)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.labels):
            return label
        raise DataError(f"{place}: label `{name}` is none of {_listed(self.labels)}. {DROP}")


def read_labelled(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
    labels: bool = True,
) -> Found[Labelled]:
    """All rows of a file, folder or hub data set; the arguments are those of `formats.read_rows`.

    Args:
        labels: Whether every row must have one.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """

    def parse(record: Any, place: str) -> Labelled:
        return labelled_of(record, place, labels=labels)

    return found_in(parse, source, subset, split, columns or {}, on_bad_row)


def labelled_of(record: Any, place: str, *, labels: bool = True) -> Labelled:
    """A checked row.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    check_record(record, place)
    if "text" not in record:
        raise DataError(
            f"{place}: field `text` is missing; found [{', '.join(map(str, list(record)[:8]))}]. Rename it, or map it: "
            "data.columns={text: ..., label: ...}."
        )
    text = checked_text(record["text"], "text", place)
    pair = record.get("text_pair")
    pair = "" if pair is None else checked_text(pair, "text_pair", place)
    if not text.strip():
        raise DataError(f"{place}: text: empty. {DROP}")
    name = "label" if "label" in record else "labels"
    label = record.get(name)
    if label is None and labels:
        raise DataError(f"{place}: field `label` is missing. {DROP}")
    if isinstance(label, list):
        for one in label:
            _checked_label(one, name, place)
        if len({name_of(one) for one in label}) < len(label):
            raise DataError(f"{place}: {name}: a label stands in it twice. {DROP}")
    elif label is not None:
        _checked_label(label, name, place)
    others = {key: value for key, value in record.items() if key not in ("text", "text_pair", name)}
    return Labelled(place, text, pair, label, others)


def _checked_label(label: Any, name: str, place: str) -> None:
    if not isinstance(label, str | int | float) or (isinstance(label, float) and not math.isfinite(label)):
        raise DataError(f"{place}: {name}: {named_kind(label)}; expected a word, a number, or a list of them. {DROP}")
    if isinstance(label, str) and not checked_text(label, name, place).strip():
        raise DataError(f"{place}: {name}: empty. {DROP}")


def name_of(label: Any) -> str:
    """A label as the model's configuration names it."""
    return str(label).lower() if isinstance(label, bool) else str(label).strip()


def problem_of(rows: Sequence[Labelled], task: Task) -> Problem:
    """What the rows' labels ask for, as the recipe says or as they show.

    Lists are several labels a row, fractions are a regression, all else is one label a row.

    Raises:
        DataError: If the labels are of several kinds, or there is nothing to tell apart.
    """
    kind = task.problem if task.problem != "auto" else _kind_of(rows)
    if kind == REGRESSION:
        return Problem(kind, ("value",))
    seen: dict[str, Any] = {}
    for row in rows:
        for one in row.label if isinstance(row.label, list) else [row.label]:
            if kind == SINGLE and isinstance(row.label, list):
                raise DataError(f"{row.place}: label: a list; expected one label, as task.problem says. {DROP}")
            seen.setdefault(name_of(one), one)
    numbered = all(isinstance(one, int) and not isinstance(one, bool) for one in seen.values())
    if task.labels:
        named = numbered and not set(seen) & set(task.labels) and all(0 <= n < len(task.labels) for n in seen.values())
        unknown = sorted(set(seen) - set(task.labels)) if not named else []
        if unknown:
            raise DataError(f"the rows have the label `{unknown[0]}`; task.labels are {_listed(task.labels)}. Add it.")
        names = tuple(task.labels)
    else:
        names = tuple(sorted(seen, key=lambda name: seen[name]) if numbered else sorted(seen))
    if len(names) < 2 and kind == SINGLE:
        raise DataError(f"all {len(rows)} rows have the label `{names[0]}`, so that there is nothing to tell apart.")
    if not names:
        raise DataError("no row has any label. Give some, or name them in task.labels.")
    return Problem(kind, names)


def _kind_of(rows: Sequence[Labelled]) -> str:
    kinds = {
        MULTI if isinstance(row.label, list) else REGRESSION if isinstance(row.label, float) else SINGLE: row.place
        for row in reversed(rows)
    }
    if REGRESSION in kinds and SINGLE in kinds:
        word = next((row for row in rows if isinstance(row.label, str | bool)), None)
        if word is None:
            return REGRESSION  # whole numbers among fractions
        raise DataError(f"{word.place}: label: `{name_of(word.label)}` among numbers. {DROP} Or set task.problem.")
    if len(kinds) > 1:
        raise DataError(
            f"{kinds[MULTI]}: label: a list, and others are none. Make all of them lists, or set task.problem."
        )
    return next(iter(kinds))


def _number(label: Label, place: str) -> float:
    try:
        value = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or isinstance(label, bool):
        raise DataError(f"{place}: label: `{label}`; expected a number, as a regression needs. {DROP}")
    return value


def balance(rows: Sequence[Labelled], problem: Problem) -> list[str]:
    """How often each label stands in the rows, rarest last, and texts that stand there with several, as sentences."""
    if problem.kind == REGRESSION:
        values = sorted(_number(row.label, row.place) for row in rows)
        mean = sum(values) / len(values)
        return [f"values: {values[0]:g} to {values[-1]:g}, mean {mean:.4g}, median {values[len(values) // 2]:g}"]
    counts = label_counts(rows, problem)
    shown = [f"{name} {count:,} ({count / len(rows):.1%})" for name, count in counts.most_common()]
    more = f" and {len(shown) - SHOWN_LABELS} more" if len(shown) > SHOWN_LABELS else ""
    lines = [f"labels: {', '.join(shown[:SHOWN_LABELS])}{more}"]
    said: dict[str, set[str]] = {}
    for row in rows:
        said.setdefault(row.prompt_key, set()).add(name_of(row.label))
    torn = sum(len(one) > 1 for one in said.values())
    if torn and problem.kind == SINGLE:
        lines.append(f"note: {torn} texts stand in the rows with more than one label")
    return lines


def label_counts(rows: Sequence[Labelled], problem: Problem) -> Counter[str]:
    """Rows of each label, 0 for those of none."""
    counts: Counter[str] = Counter(dict.fromkeys(problem.labels, 0))
    for row in rows:
        target = problem.target(row.label, row.place)
        chosen = [target] if isinstance(target, int) else [i for i, one in enumerate(target) if one]  # type: ignore[arg-type]
        counts.update(problem.labels[index] for index in chosen)
    return counts


def class_weights(rows: Sequence[Labelled], problem: Problem, wanted: str | dict[str, float]) -> list[float] | None:
    """The weight of each label in the loss, or None where all count the same.

    `balanced` is scikit-learn's: rows / (labels x rows of the label); for several labels a row it is the negative rows
    of a label over the positive ones, torch's `pos_weight`.

    Raises:
        DataError: If a label that is named is none, or one to be balanced has no rows.
    """
    if wanted == "none" or problem.kind == REGRESSION:
        return None
    if isinstance(wanted, dict):
        unknown = sorted(set(wanted) - set(problem.labels))
        if unknown:
            raise DataError(f"task.class_weights has `{unknown[0]}`; the labels are {_listed(problem.labels)}.")
        return [wanted.get(name, 1.0) for name in problem.labels]
    counts = label_counts(rows, problem)
    missing = [name for name, count in counts.items() if not count]
    if missing:
        raise DataError(f"task.class_weights `balanced`: no row has the label `{missing[0]}`. Give its weight by hand.")
    if problem.kind == MULTI:
        return [max(1, len(rows) - counts[name]) / counts[name] for name in problem.labels]
    return [len(rows) / (len(problem.labels) * counts[name]) for name in problem.labels]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_LABELS} more" if len(names) > SHOWN_LABELS else ""
    return f"{', '.join(names[:SHOWN_LABELS])}{more}"
