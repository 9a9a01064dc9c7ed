"""Sections of the page that show single rows: what was changed, removed, alike, refused or doubtful, with its place."""

import re
from collections.abc import Callable
from difflib import SequenceMatcher
from unicodedata import category

from lorasmith.html_page import ELLIPSIS, label, shown, table
from lorasmith.preparing.summary import Change, Cluster, Rejected, Summary

LONGEST = 400  # characters of a shown text
BEFORE_CHANGE = 60  # characters that lead to a change
EXAMPLES = 4  # of one kind
KINDS = 20  # of changes, reasons and the like
PLACES = 50  # rows of a list of places
CLUSTERS = 10
CHUNK = 4096  # characters compared at once
_WORDS = re.compile(r"\w+|[ \t]+|\s|[^\w\s]")


def difference(before: str, after: str) -> tuple[str, str]:
    """Two texts as HTML, what only one of them has marked, from shortly before they part."""
    start = max(0, _parting(before, after) - BEFORE_CHANGE)
    old, new = (_words(text[start : start + LONGEST]) for text in (before, after))
    left, right = ([ELLIPSIS] if start else [] for _ in range(2))
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = "".join(old[a:b]), "".join(new[c:d])
        same = len(gone) if kind == "equal" else _parting(gone, come)
        left.append(shown(gone[:same]))
        right.append(shown(come[:same]))
        if gone[same:]:
            left.append(f"<del>{shown(gone[same:], LONGEST, every=True)}</del>")
        if come[same:]:
            right.append(f"<ins>{shown(come[same:], LONGEST, every=True)}</ins>")
    for side, text in ((left, before), (right, after)):
        side.append(ELLIPSIS if len(text) > start + LONGEST else "")
    return "".join(left), "".join(right)


def _words(text: str) -> list[str]:
    """Words, spaces and signs, each with the marks on its last letter."""
    words: list[str] = []
    for word in _WORDS.findall(text):
        if words and category(word[0])[0] == "M":
            words[-1] += word
        else:
            words.append(word)
    return words


def _parting(one: str, other: str) -> int:
    """Where two texts part, a letter and the marks on it kept together."""
    at, short = 0, min(len(one), len(other))
    while at < short and one[at : at + CHUNK] == other[at : at + CHUNK]:
        at += CHUNK
    at = min(at, short)
    while at < short and one[at] == other[at]:
        at += 1
    while at and any(category(text[at])[0] == "M" for text in (one, other) if at < len(text)):
        at -= 1
    return at


def changes(summary: Summary) -> str:
    """Each cleaning step with the rows it altered and some of them before and after."""
    return _kinds(summary.changes, "changed", _pair)


def removed(summary: Summary) -> str:
    """Each reason with the rows it removed and some of them."""
    return _kinds(summary.removed, "removed", _text)


def duplicates(summary: Summary) -> str:
    """The largest clusters: the row that was kept, its text, and where the others were."""
    clusters = summary.duplicates.get("largest", [])
    out = [_cluster(one, first=not i) for i, one in enumerate(clusters[:CLUSTERS])]
    return (f"<h3>The largest clusters</h3>{''.join(out)}" + _more(len(clusters), CLUSTERS, "clusters")) if out else ""


def rejected(rows: Rejected) -> str:
    """Where rows could not be read and why."""
    if not rows.rows:
        return ""
    reasons = sorted(rows.by_reason.items(), key=lambda one: (-one[1], one[0]))
    counts = table(["reason", "rows"], [(shown(reason, 200), count) for reason, count in reasons[:KINDS]])
    places = _places([(one["place"], one["reason"]) for one in rows.first], ["place", "reason"])
    told = "They were set aside; the others went on." + _more(len(reasons), KINDS, "reasons")
    listed = _fold(f"The first {min(PLACES, len(rows.first)):,}", "", places) if places else ""
    return f"<p>{told}</p>{counts}{listed}" + _more(rows.rows, min(PLACES, len(rows.first)), "rows")


def contaminated(summary: Summary) -> str:
    """Which rows overlap with which evaluation rows, and how that was seen."""
    found = summary.contaminated
    if not found:
        return ""
    places = _places([(one["place"], one["against"], one["how"]) for one in found], ["place", "overlaps with", "how"])
    shown_rows = min(PLACES, len(found))
    return _fold(f"The first {shown_rows:,}", "", places) + _more(
        max(summary.contaminated_rows, len(found)), shown_rows, "rows"
    )


def suspicious(summary: Summary) -> str:
    """Rows that were kept although something is odd about them."""
    found = summary.suspicious
    if not found:
        return ""
    out = "".join(
        f'<div class="example"><p>{_place(one["place"])}: {shown(one["why"], 200)}</p>{_pre(one["text"])}</div>'
        for one in found[:PLACES]
    )
    shown_rows = min(PLACES, len(found))
    rest = _more(max(summary.suspicious_rows, len(found)), shown_rows, "rows")
    told = "<p>They were kept: look at them, and decide.</p>"
    return told + _fold(f"The first {shown_rows:,}", "", out, is_open=True) + rest


def _kinds(kinds: dict[str, Change], verb: str, drawn: Callable[[dict[str, str]], str]) -> str:
    """A fold for each kind, those of most rows first, the first one open."""
    ranked = sorted(kinds.items(), key=lambda one: (-one[1].rows, one[0]))
    ranked = [one for one in ranked if one[1].rows or one[1].examples]
    out = []
    for i, (name, change) in enumerate(ranked[:KINDS]):
        examples = "".join(f'<div class="example">{drawn(one)}</div>' for one in change.examples[:EXAMPLES])
        count = f"{change.rows:,} row{'s' * (change.rows != 1)} {verb}"
        out.append(_fold(name, count, examples or "<p class=quiet>No example was kept.</p>", is_open=not i))
    return "".join(out) + _more(len(ranked), KINDS, "kinds")


def _pair(example: dict[str, str]) -> str:
    before, after = difference(example["before"], example["after"])
    sides = "".join(
        f'<div><span>{name}</span><pre dir="auto">{text or " "}</pre></div>'
        for name, text in (("before", before), ("after", after))
    )
    return f'{_place(example["place"])}<div class="pair">{sides}</div>'


def _text(example: dict[str, str]) -> str:
    return f"{_place(example['place'])}{_pre(example['text'])}"


def _cluster(cluster: Cluster, first: bool) -> str:
    others = cluster["others"]
    listed = ", ".join(_place(place) for place in others[:EXAMPLES])
    rest = cluster["rows"] - 1 - len(others[:EXAMPLES])
    told = f"<p class=quiet>Kept {_place(cluster['kept'])}; removed {listed or 'the others'}"
    told += f" and {rest:,} more</p>" if listed and rest > 0 else "</p>"
    return _fold(f"{cluster['rows']:,} rows", label(cluster["text"], 60), told + _pre(cluster["text"]), is_open=first)


def _fold(name: str, said: str, text: str, is_open: bool = False) -> str:
    """A part that opens and closes.

    Args:
        name: Plain text.
        said: Plain text behind it.
        text: HTML.
    """
    behind = f" <span>{shown(said, 100)}</span>" if said else ""
    return f"<details{' open' * is_open}><summary>{shown(name, 100)}{behind}</summary>{text}</details>"


def _places(rows: list[tuple[str, ...]], head: list[str]) -> str:
    cells = [[_place(first), *(shown(one, 200) for one in rest)] for first, *rest in rows[:PLACES]]
    return table(head, cells, stack=True)


def _place(place: str) -> str:
    return f"<code><bdi>{shown(place, 120)}</bdi></code>"


def _pre(text: str) -> str:
    return f'<pre dir="auto">{shown(text, LONGEST)}</pre>'


def _more(count: int, listed: int, what: str) -> str:
    return f"<p class=quiet>{count - listed:,} more {what} are not listed.</p>" if count > listed else ""
