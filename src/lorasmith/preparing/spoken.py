"""A preparation on the screen: where the rows went, what was written, and the next command."""

from typing import Any

from lorasmith.html_page import label
from lorasmith.preparing.counts import findings, number_of, rows_read, rows_written, share, size
from lorasmith.preparing.dataset_card import data_override
from lorasmith.preparing.summary import Part, Step, Summary

LONGEST = 60  # characters of a name or reason
REASONS = 3  # of a step
STEPS = 8
SPLITS = 3
FINDINGS = 4


def lines(summary: Summary) -> list[str]:
    """What happened, in at most 25 lines, the last one the next command."""
    read, kept = rows_read(summary), rows_written(summary)
    folder = label(summary.folder or summary.name)
    formats = list(dict.fromkeys(label(source.format, LONGEST) for source in summary.sources if source.format))
    shapes = f" ({', '.join(formats[:4])}{', ...' if len(formats) > 4 else ''})" if formats else ""
    return [
        f"rows: {read:,} read from {number_of(len(summary.sources), 'source')}{shapes}, {kept:,} written "
        f"({share(kept, read)})",
        "",
        *_steps(summary.steps),
        "",
        *_splits(summary),
        *_lengths(summary),
        *_ranked("masked", {kind: counts.get("items", 0) for kind, counts in summary.masked.items()}),
        *_ranked("languages", summary.languages),
        *_bill(summary.openai),
        *_look(summary),
        *([f"fingerprint: {label(summary.fingerprint, 64)}"] if summary.fingerprint else []),
        f"all of it, with examples: {folder}/report.html",
        f"next: accelerate launch scripts/sft.py RECIPE {data_override(summary, 'train', folder)}",
    ]


def _steps(steps: list[Step]) -> list[str]:
    wide = max((len(label(step.name, LONGEST)) for step in steps[:STEPS]), default=0)
    most = max((len(f"{step.rows_out:,}") for step in steps[:STEPS]), default=0)
    told = []
    for step in steps[:STEPS]:
        ranked = sorted(
            ((rows, reason) for reason, rows in step.removed.items() if rows), key=lambda one: (-one[0], one[1])
        )
        parts = [f"{step.changed:,} changed"] if step.changed else []
        parts += [f"{rows:,} {label(reason, LONGEST)}" for rows, reason in ranked[:REASONS]]
        if len(ranked) > REASONS:
            parts.append(f"{sum(rows for rows, _ in ranked[REASONS:]):,} for other reasons")
        left = f"{label(step.name, LONGEST):<{wide}}  {step.rows_out:>{most},}"
        told.append(f"{left}  {'; '.join(parts)}".rstrip())
    return told


def _splits(summary: Summary) -> list[str]:
    def said(name: str, part: Part) -> str:
        amount = f"{part.tokens:,} tokens" if summary.tokenizer else f"{part.characters:,} characters"
        return f"{label(name, LONGEST)}: {number_of(part.rows, 'row')}, {amount}, {size(part.bytes)}"

    return [said(name, part) for name, part in list(summary.splits.items())[:SPLITS]]


def _lengths(summary: Summary) -> list[str]:
    q, unit = summary.lengths.quantiles, label(summary.lengths.unit, LONGEST)
    if not {"min", "median", "p99", "max"} <= set(q):
        return []
    counted = f" of {label(summary.tokenizer, LONGEST)}" if summary.tokenizer and unit == "tokens" else ""
    return [
        f"a row has {q['min']:,.0f} to {q['max']:,.0f} {unit}{counted} (median {q['median']:,.0f}, p99 {q['p99']:,.0f})"
    ]


def _bill(openai: dict[str, Any] | None) -> list[str]:
    """What OpenAI would be asked to train, and for how much."""
    if openai is None:
        return []
    cost = "price not given" if openai["cost"] is None else f"{openai['cost']:,.2f} US dollars"
    trained = f"{openai['tokens']:,} tokens x {openai['epochs']} epochs"
    return [f"openai: {number_of(openai['examples'], 'example')}, about {trained}: {cost}"]


def _ranked(what: str, counts: dict[str, int]) -> list[str]:
    """Counts by name in one line, the largest first."""
    ranked = sorted(((rows, name) for name, rows in counts.items() if rows), key=lambda one: (-one[0], one[1]))
    if not ranked:
        return []
    listed = ", ".join(f"{rows:,} {label(name, 30)}" for rows, name in ranked[:5])
    rest = f", {sum(rows for rows, _ in ranked[5:]):,} other" if len(ranked) > 5 else ""
    return [f"{what}: {listed}{rest}"]


def _look(summary: Summary) -> list[str]:
    found = findings(summary)
    rest = [f"  and {len(found) - FINDINGS + 1} more"] if len(found) > FINDINGS else []
    shown = found[: FINDINGS - 1] if rest else found
    return ["look at:", *(f"  {one}" for one, _ in shown), *rest] if found else []
