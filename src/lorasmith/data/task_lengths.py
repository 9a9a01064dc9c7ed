"""How long the rows of a task are, as its tokenizer gives them; nothing here loads torch."""

from dataclasses import dataclass
from typing import Any

from lorasmith.data.labelled import MULTI, REGRESSION, problem_of, read_labelled
from lorasmith.data.source_target import read_source_target
from lorasmith.data.squad import read_questions
from lorasmith.data.tagged import labels_of, read_tagged
from lorasmith.errors import DataError
from lorasmith.recipe import Recipe

BYTES_A_TOKEN = 4  # of English, where no tokenizer is at hand


@dataclass(frozen=True, slots=True)
class Texts:
    """What of a row is tokenized: one text, or two as a pair; and the target that is written for it."""

    text: str
    pair: str | None = None
    target: str = ""


def read_task(path: str, recipe: Recipe, method: str) -> list[Any]:
    """All rows of a file as a task reads them.

    Raises:
        DataError: At the first broken row.
    """
    section = recipe.data
    options: dict[str, Any] = {"columns": section.columns, "on_bad_row": section.on_bad_row}
    given = (path, section.subset, section.split)
    if method == "text_classification":
        return list(read_labelled(*given, **options).rows)
    if method == "token_classification":
        return list(read_tagged(*given, names=recipe.task.labels or None, **options).rows)
    if method == "question_answering":
        return list(read_questions(*given, **options).rows)
    return list(read_source_target(*given, kind=section.format, **options).rows)


def outputs_of(rows: list[Any], recipe: Recipe, method: str) -> int:
    """Outputs of the head that rows ask for; 2 where it has a number of its own."""
    try:
        if method == "text_classification":
            problem = problem_of(rows, recipe.task)
            return len(problem.labels) if problem.kind in (MULTI, REGRESSION) else max(2, len(problem.labels))
        if method == "token_classification":
            return len(recipe.task.labels or labels_of(rows))
    except DataError:
        pass  # of a part of the rows, which may lack a label; the run tells
    return 2


def sizes_of(rows: list[Any], recipe: Recipe, method: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Tokens of each sequence that the model reads, and of the target that it writes, 0 where it writes none.

    Args:
        tokenizer: Or None, where it is not at hand.
    """
    texts = [_texts(row, recipe, method) for row in rows]
    if tokenizer is None:
        sizes = [(_by_bytes(one.text) + _by_bytes(one.pair or ""), _by_bytes(one.target)) for one in texts]
    else:
        pairs = [one.pair for one in texts] if any(one.pair for one in texts) else None
        read = tokenizer([one.text for one in texts], pairs, verbose=False)["input_ids"]
        targets = tokenizer([one.target for one in texts], verbose=False)["input_ids"]
        sizes = [
            (len(ids), len(target) * bool(one.target)) for ids, target, one in zip(read, targets, texts, strict=True)
        ]
    return _in_windows(sizes, recipe) if method == "question_answering" else sizes


def _in_windows(sizes: list[tuple[int, int]], recipe: Recipe) -> list[tuple[int, int]]:
    """A question with a long context as its windows, which overlap by `task.stride`."""
    longest = int(recipe.trainer.get("max_length") or 0)
    found = []
    for size, _ in sizes:
        while longest and size > longest:
            found.append((longest, 0))
            size -= max(1, longest - recipe.task.stride)
        found.append((size, 0))
    return found


def _texts(row: Any, recipe: Recipe, method: str) -> Texts:
    if method == "text_classification":
        return Texts(row.text, row.text_pair or None)
    if method == "token_classification":
        return Texts(" ".join(row.words))
    if method == "question_answering":
        return Texts(row.question, row.context)
    return Texts(recipe.task.prefix + row.prompt, None, row.completion)


def _by_bytes(text: str) -> int:
    return len(text.encode()) // BYTES_A_TOKEN + 2 if text else 0
