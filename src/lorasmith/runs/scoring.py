"""Score rows with a reward model: what reward.py --score does."""

import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.data.pair_tokens import CHOSEN, REJECTED
from lorasmith.data.pairs import Judged, Pair
from lorasmith.data.scored import Scored, read_scored, tokens_to_score
from lorasmith.errors import DataError, DivergedError, RunError
from lorasmith.evaluation.rewards import sequence_scores
from lorasmith.runs.folder import read_json
from lorasmith.runs.opening import Opened, columns_of

Rows = list[Pair] | list[Judged]


@dataclass(frozen=True, slots=True)
class Result:
    """The scores of one row, by name: chosen and rejected of a pair, or score."""

    place: str
    scores: dict[str, float]


def output_of(source: str, asked: Path | None, what: str = "scores") -> Path:
    """Where what is found of rows goes; by default beside the rows, or here where they come from the hub.

    Raises:
        RunError: If that would replace the rows, or the folder is not there.
    """
    given = Path(source)
    beside = given.with_name(f"{given.name}.{what}.jsonl")
    out = asked or (beside if given.exists() else Path(beside.name))
    if given.exists() and out.resolve() == given.resolve():
        raise RunError(f"--output {out} holds the rows themselves. Give another file.")
    if out.is_dir() or not out.parent.is_dir():
        raise RunError(f"--output {out}: expected a file in a folder that is there.")
    return out


def read(source: str, model: str) -> Rows:
    """The rows, said; columns are named as in the run's recipe."""
    columns = columns_of(read_json(Path(model) / "run.json"))
    rows, kind = read_scored(source, columns=columns)
    say(f"rows: {len(rows)} of {source}, recognised as {kind}")
    return rows


def scores(opened: Opened, rows: Rows, batch: int) -> list[Result]:
    """The score of each answer.

    Raises:
        DataError: If a row is longer than the model has positions.
        DivergedError: If a score is not finite.
    """
    found = tokens_to_score(opened.tokenizer, rows)
    positions = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None)
    trained = opened.run.get("recipe", {}).get("trainer", {}).get("max_length")
    lengths = [max(map(len, one.sequences.values())) for one in found]
    for one, length in zip(found, lengths, strict=True):
        if positions is not None and length > positions:
            raise DataError(f"{one.place}: {length} tokens; the model has positions for {positions}. Shorten the row.")
    longer = sum(length > trained for length in lengths) if trained is not None else 0
    if longer:
        say(f"rows: {longer} are longer than the {trained} tokens of any that was trained on")
    results = score_all(opened.model, found, int(opened.tokenizer.pad_token_id), batch)
    for result in results:
        if not all(math.isfinite(score) for score in result.scores.values()):
            raise DivergedError(f"{result.place}: its score is not finite. The model is broken; train it anew.")
    return results


def score_all(model: Any, rows: list[Scored], pad_id: int, batch: int) -> list[Result]:
    """The scores of tokenized rows, in their order."""
    values = iter(sequence_scores(model, [ids for row in rows for ids in row.sequences.values()], pad_id, batch))
    return [Result(row.place, {name: next(values) for name in row.sequences}) for row in rows]


def write(out: Path, results: list[Result]) -> None:
    """One JSON object a row: its number, its place and its scores. The file appears whole."""
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for number, one in enumerate(results, 1):
            file.write(json.dumps({"row": number, "place": one.place, **one.scores}, ensure_ascii=False) + "\n")
    os.replace(part, out)


def accuracy(results: list[Result]) -> float | None:
    """Share of pairs whose preferred answer scores higher; None where rows are no pairs."""
    pairs = [one.scores for one in results if CHOSEN in one.scores]
    return sum(one[CHOSEN] > one[REJECTED] for one in pairs) / len(pairs) if pairs else None


def lines(results: list[Result]) -> list[str]:
    """The scores in a few sentences."""
    said = []
    for name in results[0].scores:
        values = [one.scores[name] for one in results]
        spread, label = statistics.pstdev(values), "scores" if name == "score" else f"{name} answers"
        said.append(
            f"{label}: mean {statistics.fmean(values):.3f}, standard deviation {spread:.3f}, "
            f"from {min(values):.3f} to {max(values):.3f}"
        )
    share = accuracy(results)
    if share is not None:
        said.append(f"pairs whose preferred answer scores higher: {share:.1%} of {len(results)}")
    return said
