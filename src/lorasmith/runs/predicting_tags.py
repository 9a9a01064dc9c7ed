"""What a tagger says of words, and the entities that follow."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorasmith.console import say
from lorasmith.data.tag_tokens import encode_words
from lorasmith.data.tag_windows import TagWindow, Values, decoded_tags, tag_windows, word_logits
from lorasmith.data.tagged import Tagged, read_tagged
from lorasmith.evaluation.entity_spans import entity_spans
from lorasmith.evaluation.tag_metrics import has_entities
from lorasmith.models import positions_of
from lorasmith.runs.opening import Opened, columns_of
from lorasmith.tasks.forward import outputs

DIGITS = 6  # of probabilities
SHOWN = 8  # kinds in a sentence


def read_words(opened: Opened, source: str, *, labels: bool = False) -> list[Tagged]:
    """Rows of words or of raw text; tags are read where they are, or demanded."""
    found = read_tagged(source, columns=columns_of(opened.run), names=opened.task["labels"], need_tags=labels)
    say(f"rows: {len(found.rows)} of {source}")
    return found.rows


def tag_words(opened: Opened, rows: Sequence[Tagged], batch: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index of each row and the tags of its words, with their probabilities and, for BIO tags, the entities.

    Words of raw text are told beside their tags. Entities stand where they stand in the raw text, or in the words with
    spaces between them.
    """
    labels = opened.task["labels"]
    for index, logits in logits_of_words(opened, rows, batch):
        tags, found = decoded_tags(logits, labels)
        row = rows[index]
        text, offsets = row.standing
        told: dict[str, Any] = {"words": list(row.words)} if row.raw is not None else {}
        told |= {"tags": tags, "probabilities": [round(float(one), DIGITS) for one in found]}
        if has_entities(labels):
            spans = entity_spans(tags, found.tolist(), text, offsets)
            told["entities"] = [
                {"label": s.label, "text": s.text, "start": s.start, "end": s.end, "score": round(s.score, DIGITS)}
                for s in spans
            ]
        yield index, told


def logits_of_words(opened: Opened, rows: Sequence[Tagged], batch: int) -> Iterator[tuple[int, Values]]:
    """Index of each row and the logits of its words, shape (words, labels); NaN for a word without a token.

    Rows that are longer than the model reads are read in windows that overlap.

    Args:
        batch: Windows read at a time, at most.
    """
    longest = opened.task.get("max_length") or positions_of(opened.model.config)
    windows = [one for one in tag_windows(encode_words(opened.tokenizer, rows), longest) if one.is_read]
    lacking = Counter(window.row for window in windows)
    several = sum(count > 1 for count in lacking.values())
    if several:
        say(f"rows: {several} are longer than the model reads ({longest} tokens) and are read in overlapping windows")
    for index in range(len(rows)):
        if index not in lacking:
            yield index, np.full((len(rows[index].words), len(opened.task["labels"])), np.nan)
    parts: dict[int, list[tuple[TagWindow, np.ndarray]]] = {}
    given = [{"input_ids": window.input_ids.tolist()} for window in windows]
    for at, found in outputs(opened.model, given, int(opened.tokenizer.pad_token_id), batch):
        index = windows[at].row
        own = parts.setdefault(index, [])
        own.append((replace(windows[at], row=0), found["logits"]))
        if len(own) == lacking[index]:
            del parts[index]
            [logits] = word_logits([one for one, _ in own], [one for _, one in own], [len(rows[index].words)])
            yield index, logits


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """What was predicted, in a sentence."""
    kind = "entities" if "entities" in found[0] else "tags"
    counts = Counter(one["label"] if kind == "entities" else one for row in found for one in row[kind])
    shares = [f"{name} {count:,} ({count / counts.total():.1%})" for name, count in counts.most_common(SHOWN)]
    more = f" and {len(counts) - SHOWN} kinds more" if len(counts) > SHOWN else ""
    return [f"{kind}: {counts.total():,} in {len(found)} rows{': ' * bool(shares)}{', '.join(shares)}{more}"]
