"""The figures of an evaluation's contestants, the one that was named first set against each of the others."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.console import complain, say, track
from lorasmith.evaluation import bias
from lorasmith.evaluation.compare import Difference, paired
from lorasmith.evaluation.groups import Gap, gap
from lorasmith.evaluation.judge import Judge, Question
from lorasmith.evaluation.metric import Metric, mean_of_rows
from lorasmith.runs.contestants import ADAPTER, BASE, MODEL, Contestant
from lorasmith.runs.evaluating import BIAS, GENERAL_LOSS, ROWS, Found, Wanted, figures, results, shared_rows
from lorasmith.runs.results import ResultFile, fingerprint

BY_TOKEN = ("loss", "perplexity", GENERAL_LOSS)  # figures that other tokens make other figures
PREFERENCE = "judge_preference"
SCORE_FIELD = "score"
LARGE = 1e5


@dataclass(slots=True)
class Outcome:
    """What was found of a contestant.

    Attributes:
        figures: By name, over the rows that it could take.
        lean: Its stereotype score with its interval, (score, low, high), if pairs were read.
        gaps: By figure, how far groups of rows are apart.
    """

    name: str
    path: str
    key: str
    vocabulary: str
    found: Found
    figures: dict[str, float] = field(default_factory=dict)
    lean: tuple[float, float, float] | None = None
    gaps: dict[str, Gap] = field(default_factory=dict)


@dataclass(slots=True)
class Against:
    """The contestant that was named first against another, on the rows that both could take.

    Attributes:
        other: The name of the other, "base" first of all.
        rows: Of the part `rows`, the indices of those compared.
        differences: By figure; the other is the `base` of each.
        incomparable: Figures that mean another thing for the other.
        unjudged: Pairs that a judge gave no verdict on.
    """

    other: str
    rows: list[int]
    differences: dict[str, Difference]
    incomparable: list[str]
    unjudged: int = 0


def outcome_of(one: Contestant, wanted: Wanted, folder: Path) -> Outcome:
    """What is found of a contestant while it is switched on: results of rows, its own figures, lean and gaps."""
    outcome = Outcome(one.name, one.path, one.key, one.vocabulary, results(one, wanted, folder))
    shared = shared_rows(wanted, [outcome.found])
    for part in shared:
        for metric in figures(wanted, outcome.found, shared, part):
            outcome.figures[metric.name] = metric.value
            if part == BIAS and metric.name == bias.SCORE:
                half = Metric(metric.name, np.full_like(metric.rows, 0.5) * [1, 2], metric.of_sums)
                lean = paired(half, metric)
                outcome.lean = (lean.other, lean.low + 0.5, lean.high + 0.5)
            if part == ROWS and wanted.groups is not None:
                outcome.gaps[metric.name] = gap(metric, [wanted.groups[i] for i in shared[ROWS]])
    return outcome


def rows_of(outcome: Outcome, wanted: Wanted) -> int:
    """How many rows a contestant's figures count, those left out that are too long for it."""
    return len(shared_rows(wanted, [outcome.found])[ROWS])


def against(main: Outcome, other: Outcome, wanted: Wanted) -> Against:
    """Every figure of the one against the other's."""
    shared = shared_rows(wanted, [main.found, other.found])
    differences, incomparable = {}, []
    for part in shared:
        sides = [figures(wanted, one.found, shared, part) for one in (other, main)]
        for theirs, ours in zip(*sides, strict=True):
            if ours.name in BY_TOKEN and main.vocabulary != other.vocabulary:
                incomparable.append(ours.name)
            else:
                differences[ours.name] = paired(theirs, ours)
    return Against(other.name, shared.get(ROWS, []), differences, incomparable)


def judge_all(
    judge: Judge, compared: Sequence[Against], outcomes: Sequence[Outcome], wanted: Wanted, folder: Path
) -> None:
    """Add what a judge says to each comparison, the first of which gives the contestant's own figure.

    Raises:
        LorasmithError: If it says nothing usable at all.
    """
    main = main_of(outcomes)
    for one in compared:
        other = next(outcome for outcome in outcomes if outcome.name == one.other)
        one.differences[PREFERENCE], one.unjudged = judged(judge, main, other, wanted, folder)
        main.figures.setdefault(PREFERENCE, one.differences[PREFERENCE].other)


def judged(judge: Judge, main: Outcome, other: Outcome, wanted: Wanted, folder: Path) -> tuple[Difference, int]:
    """How often a judge prefers the answers of the one to the other's, and how many rows it failed on.

    Raises:
        LorasmithError: If it says nothing usable at all.
    """
    rows = shared_rows(wanted, [main.found, other.found])[ROWS]
    keys = wanted.keys(ROWS)
    path = folder / f"judge-{fingerprint(main.key, other.key, judge.model, judge.prompt)}.jsonl"
    with ResultFile(path) as known:
        questions = {}
        for i in rows:
            texts = [one.found[ROWS][keys[i]]["answer"] for one in (other, main)]
            row = wanted.rows[i]
            key = fingerprint(keys[i], *texts)
            questions[key] = Question(key, _asked(row), row.answer, *texts)
        alike = [key for key, one in questions.items() if one.base.strip() == one.other.strip()]
        for key in known.lacking(alike, SCORE_FIELD):
            known.add(key, {SCORE_FIELD: 0.5})
        missing = known.lacking(questions, SCORE_FIELD)
        failures: list[str] = []
        stream = judge.verdicts([questions[key] for key in missing])
        for key, score, why in track(stream, "pairs judged", total=len(missing)):
            if score is None:
                failures.append(why)
            else:
                known.add(key, {SCORE_FIELD: score})
        scores = [row[SCORE_FIELD] for row in known.of(key for key in questions if key in known.known)]
    if failures:
        complain(f"--judge: {len(failures)} of {len(questions)} pairs got no verdict, the first: {failures[0]}")
    theirs = mean_of_rows(PREFERENCE, [1 - score for score in scores])
    return paired(theirs, mean_of_rows(PREFERENCE, scores)), len(failures)


def _asked(row: Any) -> str:
    """What a row asks, as a judge reads it."""
    turns = row.messages[: row.answer_start]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) if turns else str(row.prompt)


def said(name: str) -> str:
    """A figure's name for people; those of tasks and kinds stay as they are called."""
    return name if ":" in name else name.replace("_", " ")


def number(value: float, sign: str = "") -> str:
    """A figure with three digits behind the point, or of a large one three in all."""
    return f"{value:{sign},.3f}" if abs(value) < LARGE else f"{value:{sign}.3g}"


def interval(found: Difference) -> str:
    """A difference with its interval."""
    return f"{number(found.delta, '+')} ({number(found.low, '+')} to {number(found.high, '+')})"


def is_chief(name: str) -> bool:
    """Whether a figure's verdict is told in sentences: perplexity says what loss says, and a lean has its own.

    Of precision, recall and F1 it is F1 in macro, micro, or of all that was found.
    """
    parts = name.startswith(("precision", "recall")) or "_of_" in name or name.endswith("_weighted")
    return not parts and name != "perplexity" and not name.startswith(bias.SCORE)


def verdict(name: str, found: Difference) -> str:
    """A verdict in words; a stereotype score has no better side, so that it moves."""
    if name.startswith(bias.SCORE) and found.verdict != "cannot tell":
        return "moved"
    return found.verdict


def table(main: Outcome, one: Against) -> list[str]:
    """The figures of both as aligned columns, and the verdicts as a sentence."""
    width = max([12, *(len(said(name)) for name in main.figures)])
    columns = max(10, len(one.other))
    lines = [f"{'':{width}} {one.other:>{columns}} {main.name:>10}  difference (95 % interval)"]
    for name, found in one.differences.items():
        lines.append(
            f"{said(name):{width}} {number(found.base):>{columns}} {number(found.other):>10}  {interval(found)}"
        )
    chief = {name: found for name, found in one.differences.items() if is_chief(name)}
    verdicts = ", ".join(f"{said(name)}: {verdict(name, found)}" for name, found in chief.items())
    whom = "its base" if one.other == BASE else one.other
    lines.append(f"the {main.name} against {whom} on {len(one.rows)} rows: {verdicts}")
    if one.incomparable:
        lines.append(f"{', '.join(map(said, one.incomparable))}: not compared, since {one.other} has other tokens")
    return lines


def sentences(main: Outcome, one: Against) -> list[str]:
    """What follows from the differences, in plain words."""
    lines = []
    for name, found in one.differences.items():
        if found.verdict == "cannot tell" and found.rows_needed and is_chief(name):
            rows = f"about {found.rows_needed:,} {'pairs' if name == bias.DISTANCE else 'rows'} like these"
            lines.append(f"{said(name)}: cannot tell; {rows} would show a difference of this size")
    if (general := one.differences.get(GENERAL_LOSS)) is not None and general.verdict != "cannot tell":
        word = "forgot" if general.verdict == "worse" else "did not forget"
        values = f"{general.base:.3f} of {one.other}, {general.other:.3f} of the {main.name}"
        lines.append(f"general texts: the {main.name} {word}: loss {values}")
    if (distance := one.differences.get(bias.DISTANCE)) is not None:
        moved = {"better": "towards", "worse": "away from"}.get(distance.verdict)
        told = f"moved {moved} 50 %" if moved else "is not shown to have moved towards or away from 50 %"
        lines.append(f"bias: the stereotype score {told} against {one.other}")
    return lines


def lean_line(outcome: Outcome, pairs: int) -> str:
    """A contestant's stereotype score as a sentence."""
    assert outcome.lean is not None
    score, low, high = outcome.lean
    return f"bias: {outcome.name} prefers the stereotype in {score:.1%} of {pairs} pairs ({low:.1%} to {high:.1%})"


def gap_lines(outcome: Outcome) -> list[str]:
    """How far groups are apart, a sentence for each figure."""
    lines = []
    for name, one in outcome.gaps.items():
        if not is_chief(name):
            continue
        if not one.high:
            lines.append(f"groups: too few rows of two groups to compare their {said(name)}")
            continue
        of = f"{one.high} {one.groups[one.high][0]:.3f}, {one.low} {one.groups[one.low][0]:.3f}"
        apart = f"gap {one.gap:.3f} ({one.least:+.3f} to {one.most:+.3f})"
        lines.append(f"groups: {said(name)} of {outcome.name}: {of}, {apart}: {one.verdict}")
    return lines


def record(main: Outcome, others: Sequence[Against], outcomes: Sequence[Outcome], wanted: Wanted) -> dict[str, Any]:
    """An evaluation for run.json: figures with differences, without rows or answers."""
    scores = {one.other: {name: _score(name, found) for name, found in one.differences.items()} for one in others}
    kept: dict[str, Any] = {"scores": scores.pop(BASE, {})}
    if scores:
        kept["against"] = scores
    kept["figures"] = {one.name: one.figures for one in outcomes}
    leans = {one.name: dict(zip(("score", "low", "high"), one.lean, strict=True)) for one in outcomes if one.lean}
    if leans:
        kept["bias"] = {"pairs": len(wanted.pairs), **leans}
    if unjudged := {one.other: one.unjudged for one in others if one.unjudged}:
        kept["unjudged"] = unjudged
    if main.gaps:
        kept["groups"] = {one.name: {name: _gap(found) for name, found in one.gaps.items()} for one in outcomes}
    return kept


def _gap(found: Gap) -> dict[str, Any]:
    return asdict(found) | {"verdict": found.verdict}


def _score(name: str, found: Difference) -> dict[str, Any]:
    kept = asdict(found)
    return {"base": kept["base"], "adapter": kept["other"], "low": kept["low"], "high": kept["high"]} | {
        "delta": found.delta,
        "verdict": verdict(name, found),
        "rows_needed": found.rows_needed,
    }


def main_of(outcomes: Sequence[Outcome]) -> Outcome:
    """The contestant that was named first."""
    return next(one for one in outcomes if one.name in (ADAPTER, MODEL))


def say_all(main: Outcome, others: Sequence[Against], outcomes: Sequence[Outcome], wanted: Wanted) -> None:
    """Print the tables and what follows from them."""
    for one in others:
        for line in [*table(main, one), *sentences(main, one)]:
            say(line)
    if not others:
        for name, value in main.figures.items():
            say(f"{said(name):24} {number(value):>10}")
        say(f"{main.name} on {rows_of(main, wanted)} rows; a whole model has no base to compare with (--compare OTHER)")
    for outcome in outcomes:
        if outcome.lean:
            say(lean_line(outcome, len(wanted.pairs)))
        for line in gap_lines(outcome) if outcome.name in (BASE, main.name) else ():
            say(line)
