"""Pictures of counts as SVG for a page: widths in per cent, so that writing keeps its size on any screen."""

import html
from dataclasses import dataclass
from unicodedata import east_asian_width

from lorasmith.html_page import label

COLOURS = ("one", "two", "three")
LONGEST = 42  # letters that a phone shows in one line of a picture
MOST_BINS = 48
_LINE, _BAR, _GAP = 17, 9, 10  # pixels
_MARK, _PLOT = 15, 130  # pixels of a mark's line above a histogram, and of its tallest bar


@dataclass(slots=True)
class Line:
    """A name, what is said of it at the right, and its bars: each a row of (value, colour) parts."""

    name: str
    said: str
    bars: list[list[tuple[float, str]]]


@dataclass(slots=True)
class Interval:
    """A name, what is said of it at the right, and a value with the interval that it lies in."""

    name: str
    said: str
    value: float
    low: float
    high: float
    colour: str


def _heading(parts: list[str], line: Line | Interval, y: int) -> int:
    """Add what a line is called and what is said of it, on two lines where one is too short; where its bar begins."""
    name, said = label(line.name, LONGEST), label(line.said, LONGEST)
    parts.append(f'<text x="0" y="{y + 12}">{html.escape(name)}</text>')
    if _width(name) + _width(said) > LONGEST:
        y += _LINE
    parts.append(f'<text class="quiet" x="100%" y="{y + 12}" text-anchor="end">{html.escape(said)}</text>')
    return y + _LINE


def bars(told: str, lines: list[Line], most: float) -> str:
    """Named bars below one another.

    Args:
        told: What the picture shows, for those who do not see it.
        most: The value as wide as the picture.
    """
    parts: list[str] = []
    y = 0
    for line in lines:
        y = _heading(parts, line, y)
        for segments in line.bars:
            parts.append(f'<rect class="track" x="0" y="{y}" width="100%" height="{_BAR}" rx="2"/>')
            x = 0.0
            for value, colour in segments:
                if not value:
                    continue
                # A few rows among a million keep a visible sliver.
                width = max(100 * value / most, 0.4)
                x = min(x, 100 - width)
                parts.append(
                    f'<rect class="{colour}" x="{x:.2f}%" y="{y}" width="{width:.2f}%" height="{_BAR}" rx="2"/>'
                )
                x += width
            y += _BAR + 3
        y += _GAP
    return _svg(told, y - _GAP + 2, parts)


def intervals(told: str, lines: list[Interval]) -> str:
    """Intervals below one another, on one scale around a line at zero."""
    most = max([1e-12, *(abs(end) for line in lines for end in (line.low, line.high))]) * 1.05

    def place(value: float) -> float:
        return 50 + 50 * value / most

    parts: list[str] = []
    y = 0
    for line in lines:
        y = _heading(parts, line, y)
        x, left, wide = place(line.value), place(line.low), max(place(line.high) - place(line.low), 0.4)
        parts.append(f'<rect class="track" x="0" y="{y}" width="100%" height="{_BAR}" rx="2"/>')
        box = f'y="{y}" width="{wide:.2f}%" height="{_BAR}" rx="2"'
        parts.append(f'<rect class="{line.colour}" x="{left:.2f}%" {box}/>')
        parts.append(f'<line class="rule" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 2}" y2="{y + _BAR + 2}"/>')
        y += _BAR + 3 + _GAP
    parts.append(f'<line class="at" x1="50%" x2="50%" y1="0" y2="{y - _GAP}"/>')
    return _svg(told, y - _GAP + 2, parts)


def _width(text: str) -> int:
    """Letters, those of Chinese, Japanese and Korean and emoji as two."""
    return sum(2 if east_asian_width(one) in "WF" else 1 for one in text)


def key(names: list[tuple[str, str]]) -> str:
    """Which colour is what: (colour, plain text) of each."""
    return "".join(
        f'<span class="key"><svg aria-hidden="true"><rect class="{colour}" width="100%" height="100%" rx="2"/></svg>'
        f"{html.escape(label(name, LONGEST))}</span>"
        for colour, name in names
    )


def histogram(bins: list[dict[str, int]], unit: str, marks: dict[str, float] | None = None) -> str:
    """Rows by length; hovering over a bar tells its range and count.

    Args:
        bins: Each with from and to (inclusive) and rows, ascending.
        unit: What lengths are counted in, in the plural.
        marks: Name -> length of up to two lines across.
    """
    bins = _fewer(bins)
    most, slot = max(1, *(one["rows"] for one in bins)), 100 / len(bins)
    lines = list((marks or {}).items())[:2]
    top = 20 + _MARK * len(lines)
    base = top + _PLOT
    parts = []
    for share in (1.0, 0.5):
        y = base - share * _PLOT
        parts.append(f'<line class="rule" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text class="quiet" x="0" y="{top - 4}">{most:,} rows</text>')
    for i, one in enumerate(bins):
        if not one["rows"]:
            continue
        height = max(_PLOT * one["rows"] / most, 2.0)
        parts.append(
            f'<rect class="one" x="{(i + 0.05) * slot:.2f}%" y="{base - height:.1f}" width="{0.9 * slot:.2f}%" '
            f'height="{height:.1f}"><title>{one["from"]:,} to {one["to"]:,} {unit}: {one["rows"]:,} rows</title></rect>'
        )
    for line, (name, length) in enumerate(lines):
        x, y = _place(bins, length), 12 + _MARK * line
        anchor, shift = ("end", -5) if x > 55 else ("start", 5)
        parts.append(f'<line class="at" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 9}" y2="{base}"/>')
        parts.append(f'<text x="{x:.2f}%" dx="{shift}" y="{y}" text-anchor="{anchor}">{name} {length:,.0f}</text>')
    parts.append(f'<line class="rule" x1="0" x2="100%" y1="{base}" y2="{base}"/>')
    parts += _ticks(bins, base + 16)
    low, high = bins[0]["from"], bins[-1]["to"]
    total = sum(one["rows"] for one in bins)
    told = f"Histogram of {total:,} rows by length, {low:,} to {high:,} {unit}; the tallest bar has {most:,} rows"
    return _svg(told, base + 22, parts)


def _fewer(bins: list[dict[str, int]]) -> list[dict[str, int]]:
    """Neighbouring bins put together until a picture can hold them."""
    step = -(-len(bins) // MOST_BINS)
    groups = [bins[i : i + step] for i in range(0, len(bins), step)]
    return [{"from": g[0]["from"], "to": g[-1]["to"], "rows": sum(one["rows"] for one in g)} for g in groups]


def _place(bins: list[dict[str, int]], length: float) -> float:
    """Where a length stands, in per cent of the width."""
    for i, one in enumerate(bins):
        if length <= one["to"]:
            inside = (length - one["from"] + 0.5) / (one["to"] - one["from"] + 1)
            return 100 * (i + min(max(inside, 0), 1)) / len(bins)
    return 100.0


def _ticks(bins: list[dict[str, int]], y: int) -> list[str]:
    """Lengths under the axis: the first, up to three between, the last."""
    count = len(bins)
    if count == 1:
        return [f'<text class="quiet" x="50%" y="{y}" text-anchor="middle">{bins[0]["from"]:,}</text>']
    inner = sorted({count * i // 4 for i in (1, 2, 3)} - {0})
    ticks = [f'<text class="quiet" x="0" y="{y}">{bins[0]["from"]:,}</text>']
    ticks += [
        f'<text class="quiet" x="{100 * i / count:.2f}%" y="{y}" text-anchor="middle">{bins[i]["from"]:,}</text>'
        for i in inner
    ]
    return [*ticks, f'<text class="quiet" x="100%" y="{y}" text-anchor="end">{bins[-1]["to"]:,}</text>']


def _svg(told: str, height: int, parts: list[str]) -> str:
    return (
        f'<svg role="img" aria-label="{html.escape(label(told))}" width="100%" height="{height}">{"".join(parts)}</svg>'
    )
