"""What eval.py asks of classifiers, taggers, answer finders and sequence-to-sequence models, and makes of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorasmith.console import say, track
from lorasmith.data.labelled import MULTI, REGRESSION, SINGLE, name_of, read_labelled
from lorasmith.data.rows import Row
from lorasmith.data.source_target import read_source_target
from lorasmith.data.squad import read_questions
from lorasmith.data.tagged import OUTSIDE, read_tagged
from lorasmith.errors import ModelError
from lorasmith.evaluation import label_metrics
from lorasmith.evaluation.metric import Metric, mean_of_rows
from lorasmith.evaluation.squad_metrics import squad_metrics
from lorasmith.evaluation.tag_metrics import tag_metrics
from lorasmith.hardware import find_hardware
from lorasmith.runs.measuring_texts import text_figures
from lorasmith.runs.opening import Opened
from lorasmith.runs.predicting import WAYS, problem_in
from lorasmith.runs.results import ResultFile
from lorasmith.runs.task_file import task_of

LEAST = 1e-6  # probability that a loss is taken of: predictions are kept with so many digits
BATCH = 32  # rows at a time, where nobody says
NAMED_BY = 256  # rows, by which the names of figures are known
ANSWER = "answer"  # the key of what is told, in words


@dataclass(frozen=True, slots=True)
class TaskRows:
    """Rows of a task with what is right for each.

    Attributes:
        task: What the model is for (`task_file.task_of`).
        rows: As the task's reader gives them.
        shown: The same as people read them: what is asked, and what is right.
    """

    task: dict[str, Any]
    rows: list[Any]
    shown: list[Row]

    @property
    def method(self) -> str:
        """The training script."""
        return str(self.task["method"])

    def names(self) -> list[str]:
        """The figures that there will be."""
        some = range(min(NAMED_BY, len(self.rows)))
        return [one.name for one in figures(self, some, [self._nothing(self.rows[at]) for at in some])]

    def first(self, limit: int | None) -> "TaskRows":
        """So many of the rows."""
        return TaskRows(self.task, self.rows[:limit], self.shown[:limit])

    def _nothing(self, row: Any) -> dict[str, Any]:
        """A prediction that tells nothing, which figures can be made of."""
        if self.method == "text_classification":
            names = self.task["labels"]
            return {"label": names[0], "labels": [], "value": 0.0, "probabilities": dict.fromkeys(names, 0.5)}
        return {"tags": [OUTSIDE] * len(getattr(row, "words", ())), "answer": "", "text": ""}


def read_task_rows(
    task: dict[str, Any], source: str, subset: str | None, split: str, columns: dict[str, str] | None
) -> TaskRows:
    """Rows of the kind that a model was trained on, all with what is right.

    Raises:
        DataError: At the first row that is broken, naming its line.
    """
    options: dict[str, Any] = {"columns": columns or {}}
    method = task["method"]
    if method == "text_classification":
        found = read_labelled(source, subset, split, **options).rows
        problem = problem_in(task)
        for row in found:
            problem.target(row.label, row.place)
        shown = [Row(row.place, prompt=row.prompt_key, completion=_in_words(row.label)) for row in found]
        return TaskRows(task, found, shown)
    if method == "token_classification":
        tagged = read_tagged(source, subset, split, names=task["labels"], **options).rows
        shown = [Row(row.place, prompt=" ".join(row.words), completion=" ".join(row.tags or ())) for row in tagged]
        return TaskRows(task, tagged, shown)
    if method == "question_answering":
        asked = read_questions(source, subset, split, **options).rows
        shown = [
            Row(
                row.place,
                prompt=f"{row.question}\n{row.context}",
                completion=" | ".join(t for t, _ in row.answers or ()),
            )
            for row in asked
        ]
        return TaskRows(task, asked, shown)
    pairs = read_source_target(source, subset, split, **options).rows
    return TaskRows(task, pairs, pairs)


def check_alike(path: str, others: Sequence[str]) -> None:
    """Refuse, before weights are read, to compare models that tell other things.

    Raises:
        ModelError: Naming both.
    """
    ours = task_of(path)
    for other in others:
        theirs = task_of(other)
        if ours.get("method") != theirs.get("method"):
            kinds = [one.get("method", "language model") for one in (theirs, ours)]
            raise ModelError(f"--compare {other}: of {kinds[0]}, and {path} of {kinds[1]}. Compare models of one kind.")
        if ours.get("labels") != theirs.get("labels"):
            raise ModelError(f"--compare {other}: tells other labels than {path}, or in another order.")


def predict(one: Any, given: TaskRows, keys: Sequence[str], known: ResultFile, batch: int | None) -> None:
    """Let a contestant tell of the rows that are not known yet.

    Args:
        one: A `contestants.Contestant`.
        keys: Of the rows, in their order.
    """
    places = {key: at for at, key in enumerate(keys)}
    missing = known.lacking(places, ANSWER)
    if len(missing) < len(places):
        say(f"{one.name}: {len(places) - len(missing)} of {len(places)} rows are known from before")
    if one.name == "base" and given.method != "seq2seq":
        say("base: its head is not trained, so that it guesses")
    opened = Opened(one.model, one.tokenizer, {}, find_hardware(), given.task)
    rows = [given.rows[places[key]] for key in missing]
    stream = WAYS[given.method][1](opened, rows, batch or BATCH) if rows else iter(())
    for index, found in track(stream, f"rows answered ({one.name})", total=len(rows)):
        known.add(missing[index], found | {ANSWER: told(given.method, found)})


def told(method: str, found: dict[str, Any]) -> str:
    """A prediction in words, as the right one stands in `TaskRows.shown`."""
    if method == "text_classification":
        given = found["label"] if "label" in found else found["labels"] if "labels" in found else found["value"]
        return _in_words(given)
    if method == "token_classification":
        return " ".join(found["tags"])
    return str(found["answer"] if method == "question_answering" else found["text"])


def _in_words(label: Any) -> str:
    if isinstance(label, list):
        return ", ".join(sorted(name_of(one) for one in label)) or "no label"
    return f"{label:g}" if isinstance(label, float) else name_of(label)


def figures(given: TaskRows, at: Sequence[int], found: Sequence[dict[str, Any]]) -> list[Metric]:
    """The figures of a task.

    Args:
        at: Indices of the rows.
        found: The prediction of each.
    """
    rows = [given.rows[i] for i in at]
    if given.method == "text_classification":
        return _of_labels(given, rows, found)
    if given.method == "token_classification":
        return tag_metrics([row.tags for row in rows], [one["tags"] for one in found], given.task["labels"])
    if given.method == "question_answering":
        references = [[text for text, _ in row.answers or ()] for row in rows]
        return squad_metrics([one["answer"] for one in found], references)
    return text_figures([one["text"] for one in found], [row.completion for row in rows])


def _of_labels(given: TaskRows, rows: Sequence[Any], found: Sequence[dict[str, Any]]) -> list[Metric]:
    problem = problem_in(given.task)
    targets: list[Any] = [problem.target(row.label, row.place) for row in rows]
    if problem.kind == REGRESSION:
        return label_metrics.regression(targets, [one["value"] for one in found])
    if problem.kind == MULTI:
        chosen = [[int(name in one["labels"]) for name in problem.labels] for one in found]
        return label_metrics.multi_label([[int(x) for x in row] for row in targets], chosen, problem.labels)
    assert problem.kind == SINGLE
    said = [problem.labels.index(one["label"]) for one in found]
    right = [one["probabilities"][problem.labels[target]] for one, target in zip(found, targets, strict=True)]
    loss = mean_of_rows("loss", [-math.log(max(one, LEAST)) for one in right], lower_is_better=True)
    return [loss, *label_metrics.single_label(targets, said, problem.labels)]
