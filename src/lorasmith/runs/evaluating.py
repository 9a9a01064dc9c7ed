"""What an evaluation finds out of a contestant, row by row, and the figures that are made of it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorasmith.console import say, track
from lorasmith.data.audit import account_lines, fit_lengths
from lorasmith.data.render import answer_prompt, tokenize
from lorasmith.data.rows import Row
from lorasmith.evaluation import bias, harness, text_metrics
from lorasmith.evaluation.answering import answers
from lorasmith.evaluation.bias import Pair
from lorasmith.evaluation.metric import Metric, mean_of_rows
from lorasmith.evaluation.scores import RowLoss, losses_as_read
from lorasmith.runs import evaluating_tasks
from lorasmith.runs.contestants import BASE, MODEL, Contestant
from lorasmith.runs.evaluating_tasks import TaskRows
from lorasmith.runs.results import ResultFile, fingerprint

ROWS, GENERAL, BIAS, TASKS = "rows", "general", "bias", "tasks"  # the parts of an evaluation
LONGEST_ANSWER = 512  # tokens, if nobody says
SLACK = 16  # tokens that an answer may have more than the longest expected one
GENERAL_TEXTS = Path(text_metrics.__file__).with_name("general.jsonl")
GENERAL_LOSS = "general_loss"
COMPLETE = "complete"  # the last line of a task, whose questions come all at once
# Name on the command line -> the figures that it gives.
METRICS = {
    "exact_match": ("exact_match",),
    "numeric_match": ("numeric_match",),
    "json_valid": ("json_valid",),
    "json_equal": ("json_equal",),
    "rouge": text_metrics.ROUGE,
    "bleu": ("bleu",),
    "chrf": ("chrf",),
}
EXPRESSION = "regular_expression"

Found = dict[str, dict[str, dict[str, Any]]]  # part -> key of a row -> what was found of it


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be found out, decided before weights are read.

    Attributes:
        finals: Of each row, its result as a number where the file has one in the column `final`.
        groups: Of each row, where rows are grouped.
        metrics: Names in METRICS.
        pattern: A regular expression that answers should match.
        general: Texts that an adapter should not have forgotten.
        pairs: Sentences by which a lean is measured.
        tasks: Of lm-evaluation-harness, with the finder of tasks that knows them, and the fingerprint of their files.
        expected: The answers of all rows, those beyond `limit` too, so that the limit changes no answer.
        given: The rows of a model that is no language model; `rows` are the same as people read them.
    """

    rows: list[Row]
    finals: list[str | None]
    metrics: tuple[str, ...]
    groups: list[str] | None = None
    pattern: str | None = None
    train_on: str = "assistant"
    max_new_tokens: int | None = None
    batch: int | None = None
    general: list[Row] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    tasks: tuple[str, ...] = ()
    manager: Any = None
    task_files: str = ""
    limit: int | None = None
    expected: list[str] = field(default_factory=list)
    given: TaskRows | None = None

    @property
    def answered(self) -> bool:
        """Whether rows have prompts that can be answered."""
        return not self.rows[0].text

    @property
    def names(self) -> list[str]:
        """The figures that there will be; one that ends in `:` stands for several that begin with it."""
        if self.given is not None:
            return self.given.names()
        names = ["loss", "perplexity", *(figure for one in self.metrics for figure in METRICS[one])]
        names += [EXPRESSION] * (self.pattern is not None) + [GENERAL_LOSS] * bool(self.general)
        names += [bias.SCORE, bias.DISTANCE, bias.PER_TOKEN, f"{bias.SCORE}:"] if self.pairs else []
        return names + [f"{task}" + ":" for task in self.tasks]

    def keys(self, part: str) -> list[str]:
        """The rows of a part, by what they say, in their order."""
        if part == ROWS:
            return [row.digest[:16] for row in self.rows]
        if part == GENERAL:
            return [row.digest[:16] for row in self.general]
        return [fingerprint(pair.more, pair.less) for pair in self.pairs] if part == BIAS else []


def metrics_of(rows: Sequence[Row], finals: Sequence[str | None]) -> tuple[str, ...]:
    """The metrics that rows ask for by themselves."""
    if rows[0].text:
        return ()
    found = ["exact_match"]
    expected = [row.answer for row in rows]
    if all(final is not None or "####" in text for final, text in zip(finals, expected, strict=True)):
        found.append("numeric_match")
    if all(_is_json(text) for text in expected):
        found += ["json_valid", "json_equal"]
    return tuple(found)


def results(one: Contestant, wanted: Wanted, folder: Path) -> Found:
    """What a contestant does with each row, computed as far as the folder does not hold it yet.

    Of rows: nats and tokens of the supervised tokens, and the answer. Of general texts: nats and tokens. Of pairs of
    sentences: nats and tokens of both. Of tasks: the figures of each question.
    """
    found: Found = {}

    def file(part: str, *settings: Any) -> ResultFile:
        name = "-".join((part, "".join(c if c.isalnum() else "_" for c in Path(one.name).name)))
        return ResultFile(folder / f"{name}-{fingerprint(one.key, settings)}.jsonl")

    if wanted.given is not None:
        keys = wanted.keys(ROWS)
        with file(ROWS, wanted.given.task) as known:
            evaluating_tasks.predict(one, wanted.given, keys, known, wanted.batch)
            return {ROWS: {key: known.known[key] for key in keys}}
    budget = _longest_answer(one, wanted)
    with file(ROWS, wanted.train_on, wanted.answered and budget) as known:
        sequences = _sequences(one, wanted.rows, wanted.train_on)
        _losses(one, sequences, known, wanted.batch)
        if wanted.answered:
            _answers(one, [row for row in wanted.rows if row.digest[:16] in sequences], budget, known, wanted.batch)
        found[ROWS] = {key: known.known[key] for key in sequences}
    if wanted.general:
        with file(GENERAL) as known:
            sequences = _sequences(one, wanted.general, "all", cut=True)
            _losses(one, sequences, known, wanted.batch)
            found[GENERAL] = {key: known.known[key] for key in sequences}
    if wanted.pairs:
        with file(BIAS) as known:
            found[BIAS] = _leanings(one, wanted, known)
    for task in wanted.tasks:
        with file(f"task_{task}", wanted.limit, wanted.task_files) as known:
            if COMPLETE not in known.known:
                say(f"{task}: asking {one.name}")
                rows = harness.results(one.model, one.tokenizer, task, wanted.manager, wanted.limit)
                for key, figures in rows.items():
                    known.add(key, figures)
                known.add(COMPLETE, {})
            found.setdefault(TASKS, {}).update((key, row) for key, row in known.known.items() if key != COMPLETE)
    return found


def figures(wanted: Wanted, found: Found, shared: dict[str, list[int]], part: str) -> list[Metric]:
    """The figures of one part.

    Args:
        shared: Of each part, which of its rows to count, by their indices.
    """
    at = shared[part]
    keys = wanted.keys(part)
    if part == TASKS:
        return _task_figures(found[TASKS])
    of_rows = [found[part][keys[i]] for i in at]
    if part == BIAS:
        return bias.figures([wanted.pairs[i] for i in at], of_rows)
    if wanted.given is not None:
        return evaluating_tasks.figures(wanted.given, at, of_rows)
    losses = text_metrics.loss_and_perplexity([RowLoss(row["nats"], row["tokens"]) for row in of_rows])
    if part == GENERAL:
        return [Metric(GENERAL_LOSS, losses[0].rows, losses[0].of_sums, lower_is_better=True)]
    return losses + _text_figures(wanted, at, [row.get("answer", "") for row in of_rows])


def _text_figures(wanted: Wanted, at: list[int], texts: list[str]) -> list[Metric]:
    expected = [wanted.rows[i].answer for i in at]
    numbers = [final if (final := wanted.finals[i]) is not None else wanted.rows[i].answer for i in at]
    makers = {
        "exact_match": lambda: text_metrics.exact_match(texts, expected),
        "numeric_match": lambda: text_metrics.numeric_match(texts, numbers),
        "json_valid": lambda: text_metrics.json_valid(texts),
        "json_equal": lambda: text_metrics.json_equal(texts, expected),
        "rouge": lambda: text_metrics.rouge(texts, expected),
        "bleu": lambda: text_metrics.bleu(texts, expected),
        "chrf": lambda: text_metrics.chrf(texts, expected),
    }
    found = [metric for name in wanted.metrics for metric in makers[name]()]
    return found + (text_metrics.regular_expression(texts, wanted.pattern) if wanted.pattern is not None else [])


def _task_figures(found: dict[str, dict[str, Any]]) -> list[Metric]:
    """The mean over questions of each figure of each task."""
    values: dict[str, list[float]] = {}
    for _, row in sorted(found.items()):
        for name, value in row.items():
            if ":" in name:
                values.setdefault(name, []).append(value)
    lower = ("perplexity", "bits_per_byte", "loss")
    return [mean_of_rows(name, rows, lower_is_better=name.endswith(lower)) for name, rows in values.items()]


def _sequences(
    one: Contestant, rows: Sequence[Row], train_on: str, cut: bool = False
) -> dict[str, list[tuple[Sequence[int], Sequence[int]]]]:
    """Ids and labels of what each row trains, by the row's key; rows too long for the model are left out, and told.

    Args:
        cut: Whether plain texts that are too long are cut instead.
    """
    positions = getattr(one.model.config.get_text_config(), "max_position_embeddings", None)
    rule, plain = ("truncate", [row.place for row in rows]) if cut else ("drop", [])
    token_rows, account = fit_lengths(tokenize(one.tokenizer, rows, train_on), positions, rule, plain)
    if not cut and one.name in (BASE, MODEL):
        for line in account_lines(account):
            say(line)
    keys = {row.place: row.digest[:16] for row in rows}
    found: dict[str, list[tuple[Sequence[int], Sequence[int]]]] = {}
    for row in token_rows:
        found.setdefault(keys[row.place], []).append((row.input_ids, row.labels))
    return found


def _losses(one: Contestant, sequences: dict[str, Any], known: ResultFile, batch: int | None) -> None:
    """Nats and tokens of each row, a row's sequences added up."""
    missing = known.lacking(sequences, "nats")
    _say_known(one, len(sequences) - len(missing), len(sequences), "losses")
    flat = [(key, pair) for key in missing for pair in sequences[key]]
    left = {key: len(sequences[key]) for key in missing}
    sums = dict.fromkeys(missing, (0.0, 0))
    stream = losses_as_read(one.model, [pair for _, pair in flat], one.tokenizer.pad_token_id, batch)
    for index, loss in track(stream, f"rows scored ({one.name})", total=len(flat)):
        key = flat[index][0]
        sums[key] = (sums[key][0] + loss.nats, sums[key][1] + loss.tokens)
        left[key] -= 1
        if not left[key]:
            known.add(key, {"nats": sums[key][0], "tokens": sums[key][1]})


def _answers(one: Contestant, rows: Sequence[Row], budget: int, known: ResultFile, batch: int | None) -> None:
    """The greedy answer to each row."""
    by_key = {row.digest[:16]: row for row in rows}
    missing = known.lacking(by_key, "answer")
    _say_known(one, len(by_key) - len(missing), len(by_key), "answers")
    prompts = [answer_prompt(one.tokenizer, by_key[key]) for key in missing]
    stream = answers(one.model, one.tokenizer, prompts, budget, batch)
    for index, text in track(stream, f"rows answered ({one.name})", total=len(prompts)):
        known.add(missing[index], {"answer": text})


def _leanings(one: Contestant, wanted: Wanted, known: ResultFile) -> dict[str, dict[str, Any]]:
    """Nats of both sentences of each pair, each behind the token that begins a text, all of its own tokens counted."""
    pairs = dict(zip(wanted.keys(BIAS), wanted.pairs, strict=True))
    missing = known.lacking(pairs, "more")
    _say_known(one, len(pairs) - len(missing), len(pairs), "pairs")
    sequences = [list(_sentence(one, text)) for key in missing for text in (pairs[key].more, pairs[key].less)]
    stream = losses_as_read(one.model, [(ids, ids) for ids in sequences], one.tokenizer.pad_token_id, wanted.batch)
    halves: dict[int, RowLoss] = {}
    for index, loss in track(stream, f"sentences scored ({one.name})", total=len(sequences)):
        halves[index] = loss
        number = index // 2
        if index ^ 1 in halves:
            more, less = halves[2 * number], halves[2 * number + 1]
            sides = {"more": more.nats, "less": less.nats, "more_tokens": more.tokens, "less_tokens": less.tokens}
            known.add(missing[number], sides)
    return {key: known.known[key] for key in pairs}


def _sentence(one: Contestant, text: str) -> Iterator[int]:
    yield one.bias_token
    yield from one.tokenizer(text, add_special_tokens=False)["input_ids"]


def _longest_answer(one: Contestant, wanted: Wanted) -> int:
    """Tokens that an answer may have."""
    if wanted.max_new_tokens or not wanted.answered:
        return wanted.max_new_tokens or 0
    longest = max(
        len(ids) for ids in one.tokenizer(wanted.expected or [row.answer for row in wanted.rows])["input_ids"]
    )
    return min(longest + SLACK, LONGEST_ANSWER)


def _say_known(one: Contestant, known: int, count: int, what: str) -> None:
    if known:
        say(f"{one.name}: {known} of {count} {what} are known from before")


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def shared_rows(wanted: Wanted, sides: Iterable[Found]) -> dict[str, list[int]]:
    """Of each part that all sides have, the indices of the rows that all have."""
    sides = list(sides)
    parts = [part for part in (ROWS, GENERAL, BIAS, TASKS) if all(part in side for side in sides)]
    return {
        part: [i for i, key in enumerate(wanted.keys(part)) if all(key in side[part] for side in sides)]
        for part in parts
    }
