"""What an evaluation is to find out, as its command line and its rows say, refused before weights are read."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.data.files import records
from lorasmith.data.formats import read_rows
from lorasmith.data.rows import Row
from lorasmith.errors import DataError, LorasmithError
from lorasmith.evaluation import bias, harness
from lorasmith.evaluation.judge import PROMPT, Judge, check_judge
from lorasmith.evaluation.text_metrics import regular_expression
from lorasmith.runs.evaluating import GENERAL_TEXTS, METRICS, Wanted, metrics_of
from lorasmith.runs.evaluating_tasks import check_alike, read_task_rows
from lorasmith.runs.folder import read_json
from lorasmith.runs.opening import refuse_scorer
from lorasmith.runs.results import fingerprint
from lorasmith.runs.task_file import task_of
from lorasmith.upstream import TASKS

FINAL = "final"  # a column with the result as a number, as GSM8K's rows have in some copies


def wanted_of(arguments: argparse.Namespace) -> tuple[Wanted, Path]:
    """What is to be found out, and the folder that results go into.

    Raises:
        LorasmithError: If something asked for does not exist or does not fit the rows.
    """
    recipe = read_json(Path(arguments.model) / "run.json").get("recipe", {}).get("data", {})
    task = task_of(arguments.model)
    check_alike(arguments.model, arguments.compare)
    if task.get("method") in TASKS:
        return _wanted_of_task(arguments, task, recipe.get("columns"))
    refuse_scorer(arguments.model, "answers")
    read = read_rows(arguments.data, arguments.subset, arguments.split, columns=recipe.get("columns"))
    rows = read.rows[: arguments.limit]
    say(f"rows: {len(rows)} of {arguments.data}, recognised as {read.kind}")
    columns = _columns(arguments, rows)
    finals = [None if one.get(FINAL) is None else str(one[FINAL]) for one in columns]
    is_adapter = (Path(arguments.model) / "adapter_config.json").is_file()
    forgetting = is_adapter and arguments.forgetting
    pairs = bias.read_pairs(arguments.bias, records(arguments.bias)) if arguments.bias else []
    if arguments.regex is not None:
        regular_expression([""], arguments.regex)
    tasks = tuple(arguments.tasks)
    wanted = Wanted(
        rows,
        finals,
        metrics=_metrics(arguments.metrics, rows, finals),
        groups=_groups(arguments.group, columns, rows),
        pattern=arguments.regex,
        train_on=recipe.get("train_on", "assistant"),
        max_new_tokens=arguments.max_new_tokens,
        batch=arguments.batch,
        general=read_rows(str(GENERAL_TEXTS)).rows if forgetting else [],
        pairs=pairs,
        tasks=tasks,
        manager=harness.task_manager(tasks, arguments.include_path) if tasks else None,
        task_files=harness.files_fingerprint(arguments.include_path),
        limit=arguments.limit,
        expected=[row.answer for row in read.rows],
    )
    if (arguments.regex is not None or arguments.judge) and not wanted.answered:
        raise LorasmithError(f"{arguments.data} is plain text, which nobody answers: --regex and --judge need prompts.")
    return wanted, _folder(arguments, read.rows, is_adapter)


def _wanted_of_task(
    arguments: argparse.Namespace, task: dict[str, Any], names: dict[str, str] | None
) -> tuple[Wanted, Path]:
    """`wanted_of` for a model that is no language model: its figures come by themselves.

    Raises:
        LorasmithError: If something is asked for that only language models have.
    """
    for option in ("metrics", "regex", "bias", "tasks", "judge", "max_new_tokens"):
        if getattr(arguments, option):
            flag = f"--{option.replace('_', '-')}"
            raise LorasmithError(
                f"{flag} is for language models; {arguments.model} is of {task['method']}.py. Drop it."
            )
    every = read_task_rows(task, arguments.data, arguments.subset, arguments.split, names)
    given = every.first(arguments.limit)
    say(f"rows: {len(given.rows)} of {arguments.data}, for {task['method']}")
    columns = _columns(arguments, given.shown)
    wanted = Wanted(
        given.shown,
        [None] * len(given.rows),
        metrics=(),
        groups=_groups(arguments.group, columns, given.shown),
        batch=arguments.batch,
        limit=arguments.limit,
        given=given,
    )
    is_adapter = (Path(arguments.model) / "adapter_config.json").is_file()
    return wanted, _folder(arguments, every.shown, is_adapter)


def judge_of(arguments: argparse.Namespace) -> Judge | None:
    """The judge, if one was named.

    Raises:
        LorasmithError: If something of it is missing.
    """
    if arguments.judge is None:
        return None
    prompt = PROMPT
    if arguments.judge_prompt is not None:
        path = Path(arguments.judge_prompt)
        if not path.is_file():
            raise LorasmithError(f"--judge-prompt is `{path}`; no such file.")
        prompt = path.read_text(encoding="utf-8")
    return check_judge(arguments.judge, arguments.judge_model, prompt)


def _metrics(names: Sequence[str], rows: Sequence[Row], finals: Sequence[str | None]) -> tuple[str, ...]:
    """The metrics that were named, else those that the rows ask for."""
    if not names:
        return metrics_of(rows, finals)
    for name in names:
        if name not in METRICS and name not in ("loss", "perplexity"):
            raise LorasmithError(f"--metrics: no metric `{name}`. There are: {', '.join(['loss', *METRICS])}.")
    chosen = tuple(name for name in dict.fromkeys(names) if name in METRICS)
    if chosen and rows[0].text:
        raise LorasmithError(f"--metrics {chosen[0]}: the rows are plain text, which has only loss and perplexity.")
    return chosen


def _columns(arguments: argparse.Namespace, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The other columns of each row that an evaluation reads."""
    names = (FINAL, arguments.group)
    places = {row.place for row in rows}
    found = {
        place: {name: record[name] for name in names if name in record}
        for place, record in records(arguments.data, arguments.subset, arguments.split)
        if place in places and isinstance(record, dict)
    }
    return [found.get(row.place, {}) for row in rows]


def _groups(name: str | None, columns: Sequence[dict[str, Any]], rows: Sequence[Row]) -> list[str] | None:
    """The group of each row.

    Raises:
        DataError: At the first row that is in none, or if all are in one.
    """
    if name is None:
        return None
    for row, cells in zip(rows, columns, strict=True):
        if cells.get(name) is None:
            raise DataError(f"{row.place}: no column `{name}`, which --group names. Name another, or fill it.")
    found = [str(cells[name]) for cells in columns]
    if len(set(found)) < 2:
        raise DataError(f"--group {name}: all rows are of the group `{found[0]}`; nothing to compare.")
    return found


def _folder(arguments: argparse.Namespace, rows: Sequence[Row], is_adapter: bool) -> Path:
    """Where results go: into the adapter's own folder, where they stay private, unless told."""
    if arguments.output:
        return Path(arguments.output)
    name = re.sub(r"[^\w.-]", "_", Path(arguments.data).name.split(".")[0]) or "rows"
    last = f"{name}-{fingerprint(*(row.digest for row in rows))}"
    if is_adapter:
        return Path(arguments.model) / "private" / "evaluations" / last
    return Path("evaluations") / re.sub(r"[^\w.-]", "_", Path(arguments.model).name) / last
