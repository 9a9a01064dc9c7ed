"""What merge.py does for a task: what the live adapter tells of its evaluation rows, and what its merge tells."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import AutoTokenizer

from lorasmith.console import say
from lorasmith.data.labelled import Labelled
from lorasmith.data.mask import keeps_contract
from lorasmith.data.prepare_source_target import tokenize_rows
from lorasmith.data.rows import Row
from lorasmith.data.squad import Question
from lorasmith.data.tagged import Tagged, tagged_of
from lorasmith.errors import ModelError, RunError
from lorasmith.export import tensors
from lorasmith.export.proof import STAND_INS, Drift
from lorasmith.export.task_proof import TaskReference, Told, task_drift
from lorasmith.hardware import find_hardware
from lorasmith.limits import ROWS
from lorasmith.models import positions_of
from lorasmith.runs import proving
from lorasmith.runs.merging import BATCH, Source
from lorasmith.runs.opening import Opened, open_task
from lorasmith.runs.predicting import text_inputs
from lorasmith.runs.predicting_answers import reading_of, windows_read
from lorasmith.runs.predicting_tags import logits_of_words
from lorasmith.runs.task_file import TASK_FILE, task_of
from lorasmith.tasks.forward import outputs
from lorasmith.tasks.targets import target_logits
from lorasmith.upstream import TASKS

KINDS: dict[str, Any] = {
    "text_classification": Labelled,
    "token_classification": Tagged,
    "question_answering": Question,
    "seq2seq": Row,
}


def is_task(names: list[str], weights: list[float], fares: bool) -> bool:
    """Whether a task's adapter is to be merged.

    Raises:
        ModelError: If it is one of several, weighted, or to be compared on its rows.
    """
    chosen = next((name for name in names if task_of(name).get("method") in TASKS), None)
    if chosen is not None and (len(names) > 1 or weights != [1.0] or fares):
        raise ModelError(f"{chosen}: of {task_of(chosen)['method']}.py; merged alone, without --weights and --eval.")
    return chosen is not None


def ask(source: Source, name: str, base: str | None, trust_remote_code: bool) -> None:
    """Let the live adapter tell of the golden rows, in the precision it was trained in, and let it go again."""
    proving.check_memory(tensors.Weights(Path(source.base["folder"])).size)
    opened = open_task(name, base, None, trust_remote_code)
    rows, said = golden_rows(Path(name), source.task["method"])
    say(f"golden rows: {said}")
    source.live = TaskReference(rows, told_of(opened, rows))
    del opened
    gc.collect()


def golden_rows(folder: Path, method: str) -> tuple[list[Any], str]:
    """The rows that exports of a task's adapter are proven on, and where they come from.

    Raises:
        RunError: If the run's own rows cannot be read.
    """
    path = folder / "private" / "eval_rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        rows = [KINDS[method](**json.loads(line)) for line in lines[:ROWS]]
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{path}: not the rows that a run keeps. Remove the file; made-up rows stand in.") from None
    if rows:
        return rows, f"{len(rows)} rows of its own evaluation"
    made = [made_up(method, f"made up {n}", asked, answer) for n, (asked, answer) in enumerate(STAND_INS)]
    return made, f"{len(made)} made-up rows, since the run kept none"


def made_up(method: str, place: str, asked: str, answer: str) -> Any:
    """A row of a task, made of a question and its answer."""
    if method == "token_classification":
        return tagged_of({"text": asked}, place, need_tags=False)
    if method == "question_answering":
        return Question(place, place, asked, answer, None)
    if method == "seq2seq":
        return Row(place, prompt=asked, completion=answer)
    return Labelled(place, asked)


def told_of(opened: Opened, rows: list[Any]) -> list[Told]:
    """Logits of each thing that is told of each row: its labels, its number, each word's tag, or its answer."""
    if opened.task["method"] == "token_classification":
        tags = dict(logits_of_words(opened, rows, BATCH))
        return [[word.astype(np.float32) for word in tags[at] if not np.isnan(word).any()] for at in range(len(rows))]
    if opened.task["method"] == "question_answering":
        return spans_told(opened, rows)
    if opened.task["method"] == "seq2seq":
        return words_told(opened, rows)
    given, _ = text_inputs(opened, rows)
    found: dict[int, Told] = {}
    for index, one in outputs(opened.model, given, int(opened.tokenizer.pad_token_id), BATCH):
        logits = one["logits"]
        if opened.task["problem"] == "multi_label_classification":
            found[index] = [np.array([0.0, value], dtype=np.float32) for value in logits]
        else:
            found[index] = [logits]
    return [found[index] for index in range(len(rows))]


def spans_told(opened: Opened, rows: list[Question]) -> list[Told]:
    """Logits of where the answer begins and ends in each window of each question's context."""
    read = windows_read(opened.model, opened.tokenizer, rows, reading_of(opened), BATCH)
    found = {index: [np.asarray(one, dtype=np.float32) for one in (*part.starts, *part.ends)] for index, part in read}
    return [found[index] for index in range(len(rows))]


def words_told(opened: Opened, rows: list[Row]) -> list[Told]:
    """Logits of the first tokens of each row's target."""
    task = opened.task
    longest = task.get("max_length") or positions_of(opened.model.config)
    examples, _ = tokenize_rows(opened.tokenizer, rows, task.get("prefix", ""), longest, True)
    return [target_logits(opened.model, one.input_ids.tolist(), one.target) for one in examples]


def measure(source: Source, folder: Path) -> Drift:
    """A merged model against the live adapter, loaded as a stranger would load it; said."""
    assert isinstance(source.live, TaskReference)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device: Any = {"": find_hardware().device}
    kind = getattr(transformers, TASKS[source.task["method"]].auto)
    model = kind.from_pretrained(folder, dtype="auto", device_map=device)
    opened = Opened(model, tokenizer, {}, find_hardware(), source.task)
    found = task_drift("merged", source.live, told_of(opened, source.live.rows))
    found.template = keeps_contract(tokenizer, source.contract, "merged")
    for line in found.lines():
        say(line)
    return found


def keep_task(adapter: Path, out: Path) -> None:
    """Put task.json beside the merged model."""
    if (adapter / TASK_FILE).is_file():
        shutil.copy(adapter / TASK_FILE, out)
