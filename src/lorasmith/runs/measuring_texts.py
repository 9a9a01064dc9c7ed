"""Figures of what a sequence-to-sequence model writes for evaluation rows: base and adapter, one model in memory."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from lorasmith.console import is_first_process, plain, say
from lorasmith.data.prepare import Prepared
from lorasmith.errors import StoppedNow
from lorasmith.evaluation import text_metrics
from lorasmith.evaluation.metric import Metric
from lorasmith.listening import listener
from lorasmith.tasks.generating import kept_settings, written

SHOWN_ROWS = 3
SHOWN_CHARACTERS = 200
MOST_ROWS = 32  # of a batch
KINDS = ("rouge1", "rouge2", "rougeL")


def text_figures(answers: Sequence[str], references: Sequence[str]) -> list[Metric]:
    """Exact match, BLEU, chrF and ROUGE."""
    return [
        *text_metrics.exact_match(answers, references),
        *text_metrics.bleu(answers, references),
        *text_metrics.chrf(answers, references),
        *text_metrics.rouge(answers, references, KINDS),
    ]


def write_held_out(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    settings: GenerationConfig,
    most: int | None,
    folder: Path,
) -> dict[str, dict[str, float]]:
    """Let base and adapter write for evaluation rows, say how they do it, and keep it in private/answers.jsonl.

    Every process of a job calls this: where the model is sharded, none can write alone.

    Args:
        model: With the trained adapter.
        most: Rows, evenly spaced among all; None: all.

    Returns:
        Figures as an evaluation's logs name them, "before" and "after"; empty ones without rows.
    """
    count = len(prepared.eval) if most is None else min(most, len(prepared.eval))
    chosen = [i * len(prepared.eval) // count for i in range(count)]
    if not chosen:
        return {"before": {}, "after": {}}
    for line in kept_settings(settings):
        say(line)
    sources = [prepared.eval[i].input_ids.tolist() for i in chosen]
    rows = [prepared.eval_rows[i] for i in chosen]
    with model.disable_adapter():
        before = _all(model, tokenizer, sources, settings, "base")
    after = _all(model, tokenizer, sources, settings, "adapter")
    if is_first_process():
        with (folder / "private" / "answers.jsonl").open("w", encoding="utf-8") as file:
            for row, *both in zip(rows, before, after, strict=True):
                record = {"place": row.place, "source": row.prompt, "target": row.completion}
                record |= dict(zip(("base", "adapter"), both, strict=True))
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    for i in range(min(SHOWN_ROWS, count)):
        say(f"  {rows[i].place}")
        told = {"source": rows[i].prompt, "target": rows[i].completion, "base": before[i], "adapter": after[i]}
        for name, text in told.items():
            say(f"    {name + ':':9}{_short(text)}")
    targets = [row.completion for row in rows]
    return {
        name: {f"eval_{one.name}": one.value for one in text_figures(texts, targets)}
        for name, texts in (("before", before), ("after", after))
    }


def _all(model: Any, tokenizer: Any, sources: list[list[int]], settings: GenerationConfig, who: str) -> list[str]:
    texts = [""] * len(sources)
    start = time.perf_counter()
    for index, text, _ in written(model, tokenizer, sources, settings, MOST_ROWS):
        texts[index] = text
        if listener.reason():
            raise StoppedNow(f"stopped: {listener.reason()} after the last step. The same command goes on.")
    seconds = time.perf_counter() - start
    beams = f", {settings.num_beams} beams" if settings.num_beams > 1 else ""
    say(f"written by the {who}: {len(texts)} evaluation rows in {seconds:.1f} s, {len(texts) / seconds:.1f}/s{beams}")
    return texts


def _short(text: str) -> str:
    text = plain(" ".join(text.split()))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
