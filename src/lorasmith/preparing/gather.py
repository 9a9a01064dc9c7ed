"""The account of a whole preparation, out of those of its parts and of what was decided over all rows."""

import hashlib
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.data import openai
from lorasmith.preparing.decide import EXACT, KEPT, NEAR, NORMALISED, Decision, Rows
from lorasmith.preparing.pipeline import BYTES_A_TOKEN, Plan, settings
from lorasmith.preparing.split import NAMES
from lorasmith.preparing.summary import (
    Change,
    Cluster,
    Duplicates,
    Part,
    Rejected,
    Source,
    Step,
    Summary,
    length_histogram,
)

SHOWN = 300  # characters of a row
CLUSTERS = 5
LABELS = 200  # more are numbers to predict, not classes
LISTED = 50  # contaminated or rejected rows on the page; private/ has all
ODD = 10  # rows to look at of each kind
FAR = 4.0  # standard deviations of the logarithm of the length


def summarise(chosen: Plan, rows: Rows, decision: Decision, splits: dict[str, Part]) -> Summary:
    """Everything that the page, the card and the screen tell."""
    recipe = chosen.recipe
    kept = decision.copies > 0
    unit = "tokens" if recipe.report.tokenizer else "characters"
    lengths, counts = np.unique(rows.columns[unit][kept], return_counts=True)
    contaminated = [
        {"place": f"{one.path}:{line}", "against": name, "how": how}
        for one in rows.accounts
        for line, name, how in one.met
    ]
    odd = _odd(rows, decision, kept)
    hashes = "".join(part.sha256 for part in splits.values())
    return Summary(
        name=Path(recipe.output_dir).name,
        tokenizer=recipe.report.tokenizer,
        sources=_sources(chosen, rows, kept),
        steps=_steps(chosen, rows, decision),
        splits=splits,
        lengths=length_histogram(dict(zip(lengths.tolist(), counts.tolist(), strict=True)), unit),
        languages=_counted(rows.columns["language"][kept], rows.languages),
        labels=_labels(rows, decision, kept),
        masked=_masked(rows, kept),
        duplicates=_duplicates(rows, decision),
        changes=_changes(rows, recipe.report.examples),
        removed=_removed(rows, recipe.report.examples),
        rejected=_rejected(rows),
        contaminated=contaminated[:LISTED],
        suspicious=odd,
        openai=_openai(chosen, rows, splits) if recipe.read.to == "openai" else None,
        settings=settings(recipe),
        fingerprint=hashlib.sha256(hashes.encode()).hexdigest(),
        contaminated_rows=len(contaminated),
        suspicious_rows=len(odd),
        license=recipe.report.license,
        format=chosen.shape,
        folder=recipe.output_dir,
    )


def _sources(chosen: Plan, rows: Rows, kept: Any) -> list[Source]:
    per_source = np.bincount(rows.source()[kept], minlength=len(chosen.kinds)) if len(rows) else [0] * len(chosen.kinds)
    found = []
    for index, ((path, weight), kind) in enumerate(zip(chosen.recipe.weighted_sources, chosen.kinds, strict=True)):
        mine = [one for one in rows.accounts if one.source == index]
        read, rejected = sum(one.rows for one in mine), sum(len(one.rejected) for one in mine)
        found.append(Source(path, kind, weight, read, rejected, int(per_source[index])))
    return found


def _steps(chosen: Plan, rows: Rows, decision: Decision) -> list[Step]:
    """Each step with what went in and came out, from the last row counted backwards."""
    recipe = chosen.recipe
    removed = Counter(reason for account in rows.accounts for _, reason in account.removed)
    read, rejected = (sum(map(len_or, rows.accounts)) for len_or in (lambda a: a.rows, lambda a: len(a.rejected)))
    masked = len(rows) + removed["private data"]
    clear = masked + removed["contaminated"]
    dirty = {why: count for why, count in sorted(removed.items()) if why not in ("private data", "contaminated")}
    steps = [Step("read", read, read - rejected, 0, {"broken": rejected} if rejected else {})]
    if recipe.read.to:
        steps.append(Step("convert", read - rejected, clear + sum(dirty.values()), note=f"to {recipe.read.to}"))
    changed = sum(account.changed for account in rows.accounts)
    steps.append(Step("clean", clear + sum(dirty.values()), clear, changed, dirty))
    if recipe.decontaminate.against:
        note = f"{recipe.decontaminate.ngram} words in a row, or a whole question"
        gone = {"contaminated": removed["contaminated"]} if removed["contaminated"] else {}
        steps.append(Step("decontaminate", clear, masked, 0, gone, note))
    if recipe.private.action != "keep":
        touched = len({(i, row) for i, account in enumerate(rows.accounts) for row, _, _ in account.masked})
        gone = {"private data": removed["private data"]} if removed["private data"] else {}
        steps.append(Step("mask", masked, len(rows), touched, gone))
    why = decision.why
    levels = {"exact duplicate": EXACT, "normalised duplicate": NORMALISED, "near duplicate": NEAR}
    doubled = {name: count for name, level in levels.items() if (count := int((why == level).sum()))}
    left = int((why == KEPT).sum())
    steps.append(Step("de-duplicate", len(rows), left, 0, doubled, f"the {recipe.duplicates.keep} of each is kept"))
    unused = int(((why == KEPT) & (decision.copies == 0)).sum())
    gone = {"by weight": unused} if unused else {}
    steps.append(Step("split", left, left - unused, 0, gone, "; ".join(decision.notes)))
    return steps


def _counted(numbers: Any, names: list[str]) -> dict[str, int]:
    """Names with their counts, the most frequent first; -1 is none."""
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names)).tolist()
    found = [(name, count) for name, count in zip(names, counts, strict=True) if count and name]
    return dict(sorted(found, key=lambda one: (-one[1], one[0])))


def _labels(rows: Rows, decision: Decision, kept: Any) -> dict[str, dict[str, int]]:
    if len(rows.labels) > LABELS:
        return {}
    sides = {name: rows.columns["label"][kept & (decision.side == side)] for side, name in enumerate(NAMES)}
    return {name: counts for name, labels in sides.items() if (counts := _counted(labels, rows.labels))}


def _masked(rows: Rows, kept: Any) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for start, account in zip(rows.starts.tolist(), rows.accounts, strict=False):
        for row, kind, items in account.masked:
            if kept[start + row]:
                counts = found.setdefault(kind, {"items": 0, "rows": 0})
                counts["items"] += items
                counts["rows"] += 1
    return dict(sorted(found.items()))


def _duplicates(rows: Rows, decision: Decision) -> Duplicates:
    why, of = decision.why, decision.of
    sizes = np.bincount(of[why != KEPT], minlength=len(rows))
    largest = [int(i) for i in np.lexsort((np.arange(len(rows)), -sizes))[:CLUSTERS] if sizes[i]]
    clusters: list[Cluster] = []
    for row in largest:
        others = np.flatnonzero((of == row) & (why != KEPT))[:CLUSTERS].tolist()
        text = rows.text(row)[:SHOWN]
        place = rows.place(row)
        clusters.append(
            {"rows": int(sizes[row]) + 1, "kept": place, "text": text, "others": [*map(rows.place, others)]}
        )
    known = Counter((sizes[sizes > 0] + 1).tolist())
    return {
        "exact": int((why == EXACT).sum()),
        "normalised": int((why == NORMALISED).sum()),
        "near": int((why == NEAR).sum()),
        "largest": clusters,
        "sizes": {str(size): known[size] for size in sorted(known)},
    }


def _changes(rows: Rows, examples: int) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for account in rows.accounts:
        for name, change in account.changes.items():
            total = found.setdefault(name, Change())
            total.rows += change.rows
            total.examples += change.examples[: examples - len(total.examples)]
    touched = sum(len({row for row, _, _ in account.masked}) for account in rows.accounts)
    if touched:
        shown = [one for account in rows.accounts for one in account.masks_shown]
        found["private data"] = Change(touched, shown[:examples])
    return found


def _removed(rows: Rows, examples: int) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for account in rows.accounts:
        for reason, count in Counter(reason for _, reason in account.removed).items():
            total = found.setdefault(reason, Change())
            total.rows += count
            total.examples += account.examples.get(reason, [])[: examples - len(total.examples)]
    return dict(sorted(found.items()))


def _rejected(rows: Rows) -> Rejected:
    every = ((place, reason) for account in rows.accounts for place, reason in account.rejected)
    first = [{"place": place, "reason": reason} for place, reason in islice(every, LISTED)]
    reasons = Counter(
        re.sub(r"`[^`]*`|\d+", "…", reason) for account in rows.accounts for _, reason in account.rejected
    )
    return Rejected(sum(reasons.values()), first, dict(reasons.most_common(ODD)))


def _odd(rows: Rows, decision: Decision, kept: Any) -> list[dict[str, str]]:
    """Kept rows to look at: one text under two labels, and lengths far from all others."""
    found = []
    for first, second in decision.contradicted[:ODD]:
        labels = [rows.labels[rows.columns["label"][one]] for one in (first, second)]
        why = f"{labels[0]} here, {labels[1]} in {rows.place(second)}"
        found.append({"place": rows.place(first), "why": why, "text": rows.text(first)[:SHOWN]})
    chosen = np.flatnonzero(kept)
    if len(chosen) > 2:
        sizes = np.log(np.maximum(1, rows.columns["characters"][chosen].astype(np.float64)))
        spread = sizes.std()
        far = np.abs(sizes - sizes.mean()) / spread if spread else np.zeros(len(sizes))
        order = np.lexsort((chosen, -far))[:ODD]
        for row in chosen[order[far[order] > FAR]].tolist():
            count = int(rows.columns["characters"][row])
            why = f"{count:,} characters, far from the others"
            found.append({"place": rows.place(row), "why": why, "text": rows.text(row)[:SHOWN]})
    return found


def _openai(chosen: Plan, rows: Rows, splits: dict[str, Part]) -> dict[str, Any]:
    section, train = chosen.recipe.openai, splits["train"]
    tokens = train.tokens or train.bytes // BYTES_A_TOKEN
    told = openai.estimate(tokens, section.epochs, section.price_per_million)
    longest = int(rows.columns["tokens"].max()) if chosen.recipe.report.tokenizer else None
    wrong = openai.file_problems(train.rows, train.bytes, longest, section.context)
    return {
        "examples": train.rows, "tokens": tokens, "epochs": section.epochs, "cost": told["price"], "problems": wrong
    }  # fmt: skip
