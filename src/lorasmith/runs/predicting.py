"""What models of all tasks say of rows, one record a row: predict.py's work, and eval.py's with them."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from lorasmith.console import say
from lorasmith.data.formats import read_prompts
from lorasmith.data.labelled import MULTI, REGRESSION, Labelled, Problem, read_labelled
from lorasmith.data.languages import has_languages
from lorasmith.data.prepare_labelled import encoded
from lorasmith.data.prepare_source_target import source_ids
from lorasmith.data.render import answer_prompt
from lorasmith.data.rows import Row
from lorasmith.data.source_target import read_sources
from lorasmith.evaluation.answering import answers
from lorasmith.models import positions_of, weight_fingerprint
from lorasmith.runs import predicting_tags
from lorasmith.runs.opening import Opened, columns_of, refuse_scorer
from lorasmith.runs.predicting_answers import answer_questions, read_questions_of
from lorasmith.runs.results import ROW
from lorasmith.runs.task_file import REWARD, task_of
from lorasmith.tasks.forward import outputs, probabilities
from lorasmith.tasks.generating import generation_settings, written

Prediction = dict[str, Any]
DIGITS = 6  # of probabilities
PLACE = "place"
SHOWN = 8  # labels in a sentence
LONGEST_ANSWER = 512  # tokens
LONGEST_TARGET = 256  # tokens, where task.json is missing


def problem_in(task: dict[str, Any]) -> Problem:
    """What a classifier tells, from its task.json."""
    return Problem(str(task["problem"]), tuple(task["labels"]))


def read_texts(opened: Opened, source: str, *, labels: bool = False) -> list[Labelled]:
    """Rows of a text; labels are read where they are, or demanded."""
    found = read_labelled(source, columns=columns_of(opened.run), labels=labels)
    say(f"rows: {len(found.rows)} of {source}")
    return found.rows


def label_texts(opened: Opened, rows: Sequence[Labelled], batch: int) -> Iterator[tuple[int, Prediction]]:
    """Index of each row and what it is told: label and probability, labels, or value; probabilities by label."""
    problem = problem_in(opened.task)
    thresholds = opened.task.get("thresholds") or [0.5] * len(problem.labels)
    given, cut = text_inputs(opened, rows)
    if cut:
        say(f"rows: {cut} are longer than the model reads; their ends are left out")
    for index, found in outputs(opened.model, given, int(opened.tokenizer.pad_token_id), batch):
        yield index, told(problem, probabilities(found["logits"], problem.kind), thresholds)


def text_inputs(opened: Opened, rows: Sequence[Labelled]) -> tuple[list[dict[str, list[int]]], int]:
    """Each row as the model reads it, and how many were cut."""
    positions = opened.task.get("max_length") or positions_of(opened.model.config)
    given, cut = [], 0
    for ids, types, _, was_cut in encoded(opened.tokenizer, rows, positions, truncate=True):
        given.append({"input_ids": ids.tolist()} | ({"token_type_ids": types.tolist()} if types is not None else {}))
        cut += was_cut
    return given, cut


def told(problem: Problem, found: np.ndarray, thresholds: Sequence[float]) -> Prediction:
    """A prediction from probabilities, shape (labels,)."""
    if problem.kind == REGRESSION:
        return {"value": round(float(found[0]), DIGITS)}
    each = {name: round(float(one), DIGITS) for name, one in zip(problem.labels, found, strict=True)}
    if problem.kind == MULTI:
        chosen = [name for name, one, least in zip(problem.labels, found, thresholds, strict=True) if one >= least]
        return {"labels": chosen, "probabilities": each}
    best = problem.labels[int(found.argmax())]
    return {"label": best, "probability": each[best], "probabilities": each}


def read_prompts_of(opened: Opened, source: str) -> list[Row]:
    """Rows that ask a language model something."""
    rows = read_prompts(source)
    say(f"rows: {len(rows)} of {source}")
    return rows


def answer_prompts(opened: Opened, rows: Sequence[Row], batch: int) -> Iterator[tuple[int, Prediction]]:
    """Index of each row and the model's likeliest answer, up to LONGEST_ANSWER tokens."""
    prompts = [answer_prompt(opened.tokenizer, row) for row in rows]
    model: Any = opened.model
    for index, text in answers(model, opened.tokenizer, prompts, LONGEST_ANSWER, batch):
        yield index, {"answer": text}


def read_sources_of(opened: Opened, source: str) -> list[Row]:
    """Rows to be written for."""
    rows = read_sources(source, columns_of(opened.run))
    say(f"rows: {len(rows)} of {source}")
    return rows


def write_targets(opened: Opened, rows: Sequence[Row], batch: int) -> Iterator[tuple[int, Prediction]]:
    """Index of each row and the text that is written for it, with its score where there are beams."""
    task, tokenizer = opened.task, opened.tokenizer
    positions = task.get("max_length") or positions_of(opened.model.config)
    sources, cut = source_ids(tokenizer, [task.get("prefix", "") + row.prompt for row in rows], positions)
    if cut:
        say(f"rows: {len(cut)} are cut to {positions} tokens")
    beams, longest = int(task.get("num_beams") or 1), int(task.get("generation_max_length") or LONGEST_TARGET)
    settings = generation_settings(opened.model, tokenizer, beams, longest, has_languages(tokenizer))
    for index, text, score in written(opened.model, tokenizer, sources, settings, batch):
        yield index, {"text": text} | ({} if score is None else {"score": round(score, DIGITS)})


Reader = Callable[..., list[Any]]
Predictor = Callable[[Opened, Sequence[Any], int], Iterator[tuple[int, Prediction]]]
LANGUAGE_MODEL = "language model"
# How each task reads rows and what it says of them.
WAYS: dict[str, tuple[Reader, Predictor]] = {
    LANGUAGE_MODEL: (read_prompts_of, answer_prompts),
    "text_classification": (read_texts, label_texts),
    "seq2seq": (read_sources_of, write_targets),
    "token_classification": (predicting_tags.read_words, predicting_tags.tag_words),
    "question_answering": (read_questions_of, answer_questions),
}


def method_of(path: str) -> str:
    """The key of WAYS for a model.

    Raises:
        ModelError: If it is a reward model, whose scores are reward.py's.
    """
    method = str(task_of(path).get("method", LANGUAGE_MODEL))
    if method == REWARD:
        refuse_scorer(path, "answers")
    return method


def identity(opened: Opened, path: str) -> list[Any]:
    """All that predictions hang on besides the rows."""
    folder = Path(path)
    adapter = folder / "adapter_model.safetensors"
    weights = hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.is_file() else weight_fingerprint(folder)
    base: Any = opened.model.get_base_model() if isinstance(opened.model, PeftModel) else opened.model
    return [weights, str(base.dtype), str(getattr(base.config, "quantization_config", None)), opened.task]


def lines(method: str, found: Sequence[Prediction]) -> list[str]:
    """What was predicted, in a sentence or two."""
    if method == "token_classification":
        return predicting_tags.lines(found)
    counts: Counter[str] = Counter()
    for one in found:
        given = one["labels"] if "labels" in one else [one["label"]] if "label" in one else []
        counts.update(given)
    shown = [f"{name} {count:,} ({count / len(found):.1%})" for name, count in counts.most_common(SHOWN)]
    if shown:
        more = f" and {len(counts) - SHOWN} labels more" if len(counts) > SHOWN else ""
        return [f"told: {', '.join(shown)}{more}"]
    return [f"{'written for' if method == 'seq2seq' else 'answered'}: {len(found)} rows"]


def write(path: Path, found: Sequence[Prediction]) -> None:
    """A line of JSON a row, numbered from 1."""
    with path.open("w", encoding="utf-8") as file:
        for number, one in enumerate(found, 1):
            file.write(json.dumps({**one, ROW: number}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
