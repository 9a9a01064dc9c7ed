"""What became of every row of one preparation: what the page, the card and the screen are written from.

`asdict` of a Summary is JSON. Texts in it are short excerpts, masked already where masking was asked for; a place is
"file:line". Lists of examples may be cut; the counts beside them are of all rows.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypedDict

BINS = 24
SKEWED = 4  # times the 95 % quantile from which on the longest row would press all others into a few equal bins


@dataclass(slots=True)
class Source:
    """A file that was read: rows = rejected + those handed on; kept is what the splits hold of it in the end."""

    path: str
    format: str
    weight: float = 1.0
    rows: int = 0
    rejected: int = 0
    kept: int = 0


@dataclass(slots=True)
class Step:
    """One step over the rows: rows_in = rows_out + all of removed.

    Attributes:
        name: read, convert, clean, de-duplicate, mask, decontaminate or split.
        changed: Rows that the step altered and handed on.
        removed: Reason -> rows.
        note: One sentence on how, or nothing.
    """

    name: str
    rows_in: int
    rows_out: int
    changed: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(slots=True)
class Part:
    """One written file. Tokens are 0 where no tokenizer was named."""

    rows: int
    tokens: int = 0
    characters: int = 0
    bytes: int = 0
    sha256: str = ""
    file: str = ""  # its name in the folder; nothing: <split>.jsonl


@dataclass(slots=True)
class Histogram:
    """Lengths of all written rows.

    Attributes:
        unit: "tokens" or "characters".
        bins: Each with the keys from, to (both inclusive) and rows, ascending.
        quantiles: min, median, mean, p95, p99 and max.
    """

    unit: str = "characters"
    bins: list[dict[str, int]] = field(default_factory=list)
    quantiles: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """Rows altered or removed for one reason, and a few of them.

    Attributes:
        examples: Each with the keys place, before and after when altered; place and text when removed.
    """

    rows: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Rejected:
    """Rows that could not be read. `first` has the keys place and reason; by_reason counts them all, if known."""

    rows: int = 0
    first: list[dict[str, str]] = field(default_factory=list)
    by_reason: dict[str, int] = field(default_factory=dict)


class Cluster(TypedDict):
    """Rows that are one text. `rows` counts the kept one too; `others` may be cut."""

    rows: int
    kept: str
    text: str
    others: list[str]


class Duplicates(TypedDict, total=False):
    """Rows removed by how they were alike, the largest clusters, and how many clusters there are of each size."""

    exact: int
    normalised: int
    near: int
    largest: list[Cluster]
    sizes: dict[str, int]


@dataclass(slots=True)
class Summary:
    """One preparation, from its sources to its splits.

    Attributes:
        name: Name of the folder that was written.
        tokenizer: The named tokenizer, or None: lengths are in characters.
        splits: train, eval and test, as far as written.
        languages: Language code -> rows; empty when not asked for.
        labels: Split -> label -> rows; empty when the rows have none.
        masked: Kind -> {"items": n, "rows": n}.
        changes: Cleaning step -> altered rows.
        removed: Reason -> removed rows, of all steps.
        contaminated: Each with the keys place, against and how.
        suspicious: Rows that were kept, each with the keys place, why and text.
        openai: With the keys examples, tokens, epochs, cost (US dollars or None) and problems (sentences).
        settings: The resolved recipe.
        fingerprint: SHA-256 over what was written.
        contaminated_rows: All of them, when `contaminated` is cut.
        suspicious_rows: All of them, when `suspicious` is cut.
        license: As the hub names it.
        format: Shape of the written rows, as docs/rows.md calls it.
        folder: The written folder as the user named it; nothing: `name`.
    """

    name: str
    tokenizer: str | None = None
    sources: list[Source] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    splits: dict[str, Part] = field(default_factory=dict)
    lengths: Histogram = field(default_factory=Histogram)
    languages: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    masked: dict[str, dict[str, int]] = field(default_factory=dict)
    duplicates: Duplicates = field(default_factory=Duplicates)
    changes: dict[str, Change] = field(default_factory=dict)
    removed: dict[str, Change] = field(default_factory=dict)
    rejected: Rejected = field(default_factory=Rejected)
    contaminated: list[dict[str, str]] = field(default_factory=list)
    suspicious: list[dict[str, str]] = field(default_factory=list)
    openai: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    contaminated_rows: int = 0
    suspicious_rows: int = 0
    license: str = "unknown"
    format: str = ""
    folder: str = ""


def length_histogram(counts: dict[int, int], unit: str) -> Histogram:
    """The lengths as up to BINS bins and their quantiles; where few rows are far longer than the rest, bins widen.

    Args:
        counts: Length -> rows of that length; a length is 0 or more.
        unit: "tokens" or "characters".
    """
    held = sorted((length, rows) for length, rows in counts.items() if rows)
    if not held:
        return Histogram(unit)
    total, low, high = sum(rows for _, rows in held), held[0][0], held[-1][0]
    quantiles: dict[str, float] = {
        "min": low,
        "median": _quantile(held, 0.5 * total),
        "mean": round(sum(length * rows for length, rows in held) / total, 1),
        "p95": _quantile(held, 0.95 * total),
        "p99": _quantile(held, 0.99 * total),
        "max": high,
    }
    edges = _edges(low, high, skewed=high > SKEWED * max(1, quantiles["p95"]))
    bins = [{"from": a, "to": b - 1, "rows": 0} for a, b in pairwise(edges)]
    at = 0
    for length, rows in held:
        while length > bins[at]["to"]:
            at += 1
        bins[at]["rows"] += rows
    return Histogram(unit, bins, quantiles)


def _quantile(held: list[tuple[int, int]], rank: float) -> int:
    """The first length that at least `rank` rows do not pass."""
    seen = 0
    for length, rows in held:
        seen += rows
        if seen >= rank:
            return length
    return held[-1][0]


def _edges(low: int, high: int, skewed: bool) -> list[int]:
    """First lengths of the bins, and one past the last: equally wide, or each wider than the one before by a factor."""
    if not skewed:
        width = -(-(high - low + 1) // BINS)
        return [*range(low, high + 1, width), low + width * -(-(high - low + 1) // width)]
    start = max(1, low)
    factor = ((high + 1) / start) ** (1 / BINS)
    inner = {round(start * factor**i) for i in range(1, BINS)}
    return [low, *sorted(edge for edge in inner if low < edge <= high), high + 1]
