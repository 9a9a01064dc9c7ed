"""Counts of a preparation as the page, the card and the screen say them, and what in them a reader should not miss."""

from lorasmith.html_page import label
from lorasmith.preparing.summary import Summary


def rows_read(summary: Summary) -> int:
    """Rows found in the sources, broken ones included."""
    return summary.steps[0].rows_in if summary.steps else sum(source.rows for source in summary.sources)


def rows_written(summary: Summary) -> int:
    """Rows in all splits."""
    return sum(part.rows for part in summary.splits.values())


def contaminated_rows(summary: Summary) -> int:
    """Rows removed for overlapping with evaluation data."""
    return max(summary.contaminated_rows, len(summary.contaminated))


def suspicious_rows(summary: Summary) -> int:
    """Rows that were kept although something is odd about them."""
    return max(summary.suspicious_rows, len(summary.suspicious))


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent, one decimal; a little is never called nothing."""
    if not whole or not part:
        return "0%"
    return "<0.1%" if part / whole < 0.001 else f"{part / whole:.1%}"


def size(amount: int) -> str:
    """Bytes in the unit that fits."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if amount >= one:
            return f"{amount / one:,.1f} {unit}"
    return f"{amount:,} bytes"


def number_of(number: int, what: str) -> str:
    """A number of things, in the plural unless it is one."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def findings(summary: Summary) -> list[tuple[str, str]]:
    """What a reader should not miss: a sentence and the section that tells more."""
    read, kept = rows_read(summary), rows_written(summary)
    found = []
    for step in summary.steps:
        missing = step.rows_in - step.rows_out - sum(step.removed.values())
        if missing:
            found.append((f"{label(step.name, 60)}: {number_of(abs(missing), 'row')} unaccounted for", "steps"))
    if read and kept < read / 2:
        found.append((f"only {share(kept, read)} of the rows are left", "steps"))
    if summary.rejected.rows:
        found.append((f"{number_of(summary.rejected.rows, 'row')} could not be read", "rejected"))
    for name, part in summary.splits.items():
        if not part.rows:
            found.append((f"{label(name, 60)} has no rows", "splits"))
    if contaminated_rows(summary):
        found.append(
            (f"{number_of(contaminated_rows(summary), 'row')} overlapped with evaluation data", "contaminated")
        )
    doubtful = suspicious_rows(summary)
    if doubtful:
        found.append((f"{number_of(doubtful, 'row')} kept that look odd", "suspicious"))
    if summary.openai and summary.openai.get("problems"):
        found.append((f"{number_of(len(summary.openai['problems']), 'problem')} for OpenAI's fine-tuning", "openai"))
    return found
