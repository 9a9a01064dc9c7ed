"""The page of one preparation: where every row went, what the written rows are like, and examples of each change."""

from collections.abc import Callable
from typing import Any

import yaml

from lorasmith.figures import COLOURS, Line, bars, histogram, key
from lorasmith.html_page import label, page, shown, table
from lorasmith.preparing import examples
from lorasmith.preparing.counts import (
    contaminated_rows,
    findings,
    number_of,
    rows_read,
    rows_written,
    share,
    size,
    suspicious_rows,
)
from lorasmith.preparing.summary import Part, Step, Summary

LISTED = 30  # bars of a picture, lines of a table
NAME = 60  # characters of a name, of a sentence, of all settings
SENTENCE = 300
SETTINGS = 10_000


def html_report(summary: Summary) -> str:
    """report.html of one preparation; the same bytes for the same summary."""
    kept, read = rows_written(summary), rows_read(summary)
    lead = f"{read:,} rows read from {number_of(len(summary.sources), 'source')}, {kept:,} written."
    return page(
        f"Preparation of {summary.name}",
        lead,
        _tiles(summary) + _look(summary),
        [
            ("steps", "Where the rows went", _steps(summary)),
            ("sources", "Sources", _sources(summary)),
            ("splits", "Splits", _splits(summary)),
            ("lengths", "Lengths", _lengths(summary)),
            ("languages", "Languages", _languages(summary)),
            ("labels", "Labels", _labels(summary)),
            ("masked", "Masked private data", _masked(summary)),
            ("duplicates", "Duplicates", _duplicates(summary)),
            ("changes", "Changed rows", examples.changes(summary)),
            ("removed", "Removed rows", examples.removed(summary)),
            ("rejected", f"Rejected rows: {summary.rejected.rows:,}", examples.rejected(summary.rejected)),
            ("contaminated", f"Contaminated rows: {contaminated_rows(summary):,}", examples.contaminated(summary)),
            ("suspicious", f"Suspicious rows: {suspicious_rows(summary):,}", examples.suspicious(summary)),
            ("openai", "For OpenAI's fine-tuning", _openai(summary)),
            ("settings", "Settings", _settings(summary)),
        ],
    )


def _short(number: int) -> str:
    """A number that fits a tile."""
    for unit, one in (("B", 10**9), ("M", 10**6)):
        if number >= 10 * one:
            return f"{number / one:,.1f}{unit}"
    return f"{number:,}"


def _tiles(summary: Summary) -> str:
    kept, read = rows_written(summary), rows_read(summary)
    dropped = sum(sum(step.removed.values()) for step in summary.steps if step.name != "read")
    unit = "tokens" if summary.tokenizer else "characters"
    amount = sum(part.tokens if summary.tokenizer else part.characters for part in summary.splits.values())
    tiles = [
        ("rows read", f"{read:,}", number_of(len(summary.sources), "source")),
        ("rows written", f"{kept:,}", f"{share(kept, read)} of those read"),
        ("rows removed", f"{dropped:,}", "by the steps"),
        ("rows rejected", f"{summary.rejected.rows:,}", "could not be read"),
        (f"{unit} written", _short(amount), f"{amount / kept:,.0f} a row" if kept else ""),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{said}</small></dd></div>" for name, value, said in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _look(summary: Summary) -> str:
    """What a reader should not miss, with links."""
    found = [f'<a href="#{anchor}">{shown(one, SENTENCE)}</a>' for one, anchor in findings(summary)]
    if not found:
        return ""
    items = "".join(f"<li>{one}</li>" for one in found)
    heading = '<h2 id="look-h">Look at this first</h2>'
    return f'<section class="look" aria-labelledby="look-h">{heading}<ul>{items}</ul></section>'


def _steps(summary: Summary) -> str:
    if not summary.steps:
        return ""
    most = max(1, *(max(step.rows_in, step.rows_out) for step in summary.steps))
    lines = []
    for step in summary.steps:
        gone = max(0, step.rows_in - step.rows_out)
        said = f"{step.rows_out:,}" + (f", {gone:,} removed" if gone else "")
        lines.append(Line(step.name, said, [[(step.rows_out, "one"), (gone, "gone")]]))
    picture = bars(f"Rows left after each of {len(lines)} steps", lines, most)
    legend = key([("one", "rows handed on"), ("gone", "rows removed")])
    head = ["step", "rows in", "changed", "removed", "rows out", "why and how"]
    rows = [
        (shown(s.name, NAME), s.rows_in, s.changed, sum(s.removed.values()), s.rows_out, _why(s)) for s in summary.steps
    ]
    return f"<figure>{picture}<figcaption>{legend}</figcaption></figure>{table(head, rows, stack=True)}"


def _why(step: Step) -> str:
    reasons = sorted(step.removed.items(), key=lambda one: (-one[1], one[0]))
    told = [f"{shown(reason, 100)}: {count:,}" for reason, count in reasons[:LISTED]]
    note = [f'<span class="quiet">{shown(step.note, SENTENCE)}</span>'] if step.note else []
    return "<br>".join([*told, *_rest(len(reasons)), *note])


def _rest(count: int) -> list[str]:
    return [f"{count - LISTED:,} more"] if count > LISTED else []


def _sources(summary: Summary) -> str:
    rows = [
        (f"<bdi>{shown(s.path, 200)}</bdi>", shown(s.format, NAME), f"{s.weight:g}", s.rows, s.rejected, s.kept)
        for s in summary.sources[:LISTED]
    ]
    rest = "".join(f"<p class=quiet>{one} sources are not listed.</p>" for one in _rest(len(summary.sources)))
    return table(["source", "format", "weight", "rows", "rejected", "written"], rows, stack=True) + rest


def _splits(summary: Summary) -> str:
    if not summary.splits:
        return ""
    most = max(1, *(part.rows for part in summary.splits.values()))
    whole = rows_written(summary)
    lines = [
        Line(name, f"{part.rows:,} rows, {share(part.rows, whole)}", [[(part.rows, "one")]])
        for name, part in summary.splits.items()
    ]
    head = ["split", "rows", *(["tokens"] if summary.tokenizer else []), "characters", "size", "SHA-256"]

    def row(name: str, part: Part) -> list[str | int]:
        tokens: list[str | int] = [part.tokens] if summary.tokenizer else []
        digest = f"<code>{shown(part.sha256, 64)}</code>"
        return [
            shown(name, NAME),
            part.rows,
            *tokens,
            part.characters,
            f"<span class=unit>{size(part.bytes)}</span>",
            digest,
        ]

    cells = [row(name, part) for name, part in summary.splits.items()]
    figure = f"<figure>{bars('Rows of each split', lines, most)}</figure>"
    return figure + table(head, cells, stack=True)


def _lengths(summary: Summary) -> str:
    held = summary.lengths
    if not held.bins or not any(one["rows"] for one in held.bins):
        return ""
    marks: dict[str, float] = {name: held.quantiles[name] for name in ("median", "p95") if name in held.quantiles}
    widths = {one["to"] - one["from"] + 1 for one in held.bins[:-1]}
    wider = " Bars further right stand for wider ranges." if len(widths) > 1 and max(widths) > 2 * min(widths) else ""
    unit = held.unit + (f" of {summary.tokenizer}" if summary.tokenizer and held.unit == "tokens" else "")
    told = f"Rows by length in {shown(unit, 100)}.{wider}"
    numbers = _quantiles(held.quantiles)
    return f"<figure>{histogram(held.bins, held.unit, marks)}<figcaption>{told}</figcaption></figure>{numbers}"


def _quantiles(quantiles: dict[str, float]) -> str:
    told = ", ".join(
        f"{shown(name)} {value:,.1f}" if value < 100 and value % 1 else f"{shown(name)} {value:,.0f}"
        for name, value in quantiles.items()
    )
    return f"<p class=quiet>{told}</p>"


def _ranked(counts: dict[str, int], what: str, told: str, said: Callable[[str, int], str]) -> str:
    """Bars of counts, the largest first, the small ones beyond LISTED put together.

    Args:
        what: What is counted, in the plural.
        told: What the picture shows.
        said: What stands beside a bar, of its name and count.
    """
    ranked = sorted(((name, rows) for name, rows in counts.items() if rows), key=lambda one: (-one[1], one[0]))
    if not ranked:
        return ""
    if len(ranked) > LISTED:
        rest = ranked[LISTED - 1 :]
        ranked = [*ranked[: LISTED - 1], (f"{len(rest):,} other {what}", sum(rows for _, rows in rest))]
    most = max(rows for _, rows in ranked)
    lines = [Line(name, said(name, rows), [[(rows, "one")]]) for name, rows in ranked]
    return f"<figure>{bars(told, lines, most)}</figure>"


def _languages(summary: Summary) -> str:
    whole = sum(summary.languages.values())

    def said(_: str, rows: int) -> str:
        return f"{number_of(rows, 'row')}, {share(rows, whole)}"

    return _ranked(summary.languages, "languages", "Rows of each language", said)


def _labels(summary: Summary) -> str:
    splits = {name: counts for name, counts in summary.labels.items() if counts}
    if not splits:
        return ""
    total: dict[str, int] = {}
    for counts in splits.values():
        for name, held in counts.items():
            total[name] = total.get(name, 0) + held
    ranked = sorted(total, key=lambda name: (-total[name], name))
    whole = {split: max(1, sum(counts.values())) for split, counts in splits.items()}
    most = max(counts.get(name, 0) / whole[split] for split, counts in splits.items() for name in ranked)
    colours = dict(zip(splits, COLOURS, strict=False))
    lines = [
        Line(
            name,
            f"{total[name]:,} rows",
            [[(splits[split].get(name, 0) / whole[split], colour)] for split, colour in colours.items()],
        )
        for name in ranked[:LISTED]
    ]
    picture = bars("Share of each label in each split", lines, most)
    legend = key([(colour, f"share of {split}") for split, colour in colours.items()])
    rows = [
        [
            shown(name, NAME),
            *(f"{splits[one].get(name, 0):,} ({share(splits[one].get(name, 0), whole[one])})" for one in splits),
        ]
        for name in ranked[:LISTED]
    ]
    rest = "".join(f"<p class=quiet>{one} labels are not listed.</p>" for one in _rest(len(ranked)))
    numbers = table(["label", *splits], rows, stack=True)
    return f"<figure>{picture}<figcaption>{legend}</figcaption></figure>{numbers}{rest}"


def _masked(summary: Summary) -> str:
    def said(kind: str, items: int) -> str:
        rows = summary.masked.get(kind, {}).get("rows", 0)
        return f"{items:,} in {number_of(rows, 'row')}" if rows else f"{items:,}"

    items = {kind: counts.get("items", 0) for kind, counts in summary.masked.items()}
    return _ranked(items, "kinds", "Masked items of each kind", said)


def _duplicates(summary: Summary) -> str:
    found = summary.duplicates
    counts = {
        "the same, byte for byte": found.get("exact", 0),
        "the same after normalising": found.get("normalised", 0),
        "nearly the same": found.get("near", 0),
    }
    if not any(counts.values()):
        return ""
    lines = [Line(name, f"{rows:,} rows removed", [[(rows, "gone")]]) for name, rows in counts.items()]
    picture = f"<figure>{bars('Duplicates removed by kind', lines, max(counts.values()))}</figure>"
    sizes = {int(rows): count for rows, count in found.get("sizes", {}).items() if count}
    if sizes:
        groups = [(2, 2), (3, 3), (4, 4), (5, 9), (10, 99), (100, max(100, *sizes))]
        held = [(a, b, sum(count for rows, count in sizes.items() if a <= rows <= b)) for a, b in groups]
        lines = [
            Line(f"{a:,} rows" if a == b else f"{a:,} to {b:,} rows", number_of(count, "cluster"), [[(count, "one")]])
            for a, b, count in held
            if count
        ]
        most = max(count for _, _, count in held)
        picture += f"<h3>Clusters by size</h3><figure>{bars('Clusters of duplicates by size', lines, most)}</figure>"
    return picture + examples.duplicates(summary)


def _openai(summary: Summary) -> str:
    told: dict[str, Any] | None = summary.openai
    if not told:
        return ""
    rows = []
    for name, value in told.items():
        if name == "problems" or value is None:
            continue
        number = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if isinstance(value, float) else str(value)
        rows.append((shown(name, NAME), shown(f"${number}" if name == "cost" else number, 100)))
    problems = "".join(f"<li>{shown(str(one), SENTENCE)}</li>" for one in told.get("problems", [])[:LISTED])
    rest = "".join(f"<li>{one}</li>" for one in _rest(len(told.get("problems", []))))
    return table(["what", "value"], rows) + (
        f"<h3>Problems</h3><ul>{problems}{rest}</ul>" if problems else "<p>No problems.</p>"
    )


def _settings(summary: Summary) -> str:
    text = yaml.safe_dump(summary.settings, sort_keys=False, allow_unicode=True) if summary.settings else ""
    block = (
        f"<details open><summary>The resolved recipe</summary><pre>{shown(text, SETTINGS)}</pre></details>"
        if text
        else ""
    )
    again = f"<p>Fingerprint of what was written: <code>{shown(label(summary.fingerprint, 64))}</code></p>"
    return block + (again if summary.fingerprint else "")
