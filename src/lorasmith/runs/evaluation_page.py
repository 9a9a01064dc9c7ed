"""The page of an evaluation: figures with their verdicts, the answers that differ most, groups, lean, general texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorasmith.evaluation import bias
from lorasmith.evaluation.compare import Difference
from lorasmith.figures import Interval, Line, bars, intervals, key
from lorasmith.html_page import page, shown, table
from lorasmith.runs.comparing import (
    Against,
    Outcome,
    gap_lines,
    interval,
    is_chief,
    lean_line,
    number,
    said,
    sentences,
    verdict,
)
from lorasmith.runs.contestants import BASE
from lorasmith.runs.evaluating import GENERAL, ROWS, Wanted

EXAMPLES = 20  # rows shown side by side
TEXT = 2000  # characters of a text
NAME = 60
COLOURS = {"better": "two", "worse": "gone", "cannot tell": "one"}


def write_page(
    folder: Path,
    kept: dict[str, Any],
    main: Outcome,
    compared: Sequence[Against],
    outcomes: Sequence[Outcome],
    wanted: Wanted,
) -> Path:
    """Write report.html and give its path.

    Args:
        kept: The record that run.json gets.
    """
    path = folder / "report.html"
    whom = f" against {', '.join(one.other for one in compared)}" if compared else ""
    text = page(
        f"Evaluation of {Path(main.path).name}",
        f"{kept['rows']:,} rows of {kept['data']}: the {main.name}{whom}.",
        _tiles(main, compared),
        [
            ("figures", "Figures", _figures(main, compared)),
            ("answers", "Answers that differ most", _answers(main, compared, outcomes, wanted)),
            ("groups", "Groups", _groups(main, outcomes)),
            ("bias", "Stereotypes", _lean(outcomes, compared, wanted)),
            ("general", "General texts", _general(main, outcomes, wanted)),
            ("contestants", "Contestants", _contestants(outcomes)),
        ],
    )
    path.write_text(text, encoding="utf-8")
    return path


def _tiles(main: Outcome, compared: Sequence[Against]) -> str:
    """The first figures, with what is to be said of them."""
    verdicts = compared[0].differences if compared else {}
    cells = []
    for name, value in list(main.figures.items())[:6]:
        found = verdicts.get(name)
        told = f"{number(found.delta, '+')}: {verdict(name, found)}" if found else ""
        cells.append(f"<div><dt>{shown(said(name))}</dt><dd>{number(value)}<small>{shown(told)}</small></dd></div>")
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _figures(main: Outcome, compared: Sequence[Against]) -> str:
    if not compared:
        return table(
            ["figure", main.name], [(shown(said(name)), _whole(number(v))) for name, v in main.figures.items()]
        )
    parts = []
    for one in compared:
        rows = [
            (
                shown(said(name)),
                _whole(number(d.base)),
                _whole(number(d.other)),
                _whole(interval(d)),
                shown(_verdict(name, d)),
            )
            for name, d in one.differences.items()
            if not name.startswith(f"{bias.SCORE}:")
        ]
        head = ["figure", one.other, main.name, "difference (95 % interval)", "verdict"]
        lines = "".join(f"<p>{shown(line)}</p>" for line in sentences(main, one))
        parts.append(f"<h3>{shown(main.name)} against {shown(one.other, NAME)}, {len(one.rows):,} rows</h3>")
        parts.append(_picture(main, one) + table(head, rows, stack=True) + lines)
        if one.incomparable:
            names = ", ".join(map(said, one.incomparable))
            parts.append(f"<p class=quiet>Not compared, since the tokens differ: {shown(names)}.</p>")
    return "".join(parts)


def _picture(main: Outcome, one: Against) -> str:
    """Intervals of the differences of figures that are shares."""
    shares = {name: d for name, d in one.differences.items() if is_chief(name) and min(d.base, d.other) >= 0}
    shares = {name: d for name, d in shares.items() if max(d.base, d.other) <= 1 and not name.endswith("loss")}
    if not shares:
        return ""
    lines = [
        Interval(said(name), f"{d.base:.1%} to {d.other:.1%}", d.delta, d.low, d.high, COLOURS[d.verdict])
        for name, d in shares.items()
    ]
    legend = key([(colour, name) for name, colour in COLOURS.items()])
    picture = intervals(f"Differences of {main.name} from {one.other} with their 95 % intervals", lines)
    return f"<figure>{picture}<figcaption>{legend} The dashed line is no difference.</figcaption></figure>"


def _answers(main: Outcome, compared: Sequence[Against], outcomes: Sequence[Outcome], wanted: Wanted) -> str:
    """Rows side by side: those that one got right and the other wrong, then those whose loss differs most."""
    if not wanted.answered or not compared:
        return ""
    other = next(one for one in outcomes if one.name == compared[0].other)
    keys = wanted.keys(ROWS)
    ranked = []
    for i in compared[0].rows:
        ours, theirs = main.found[ROWS][keys[i]], other.found[ROWS][keys[i]]
        if ours["answer"] == theirs["answer"]:
            continue
        expected = wanted.rows[i].answer.strip()
        flips = (ours["answer"].strip() == expected) != (theirs["answer"].strip() == expected)
        apart = abs(_loss(ours) - _loss(theirs))
        ranked.append((not flips, -apart, i))
    ranked.sort()
    told = f"{len(ranked):,} of {len(compared[0].rows):,} answers differ"
    some = f"; {EXAMPLES} of them are shown" if len(ranked) > EXAMPLES else ""
    parts = [f"<p class=quiet>{told}{some}.</p>"]
    for _, _, i in ranked[:EXAMPLES]:
        row = wanted.rows[i]
        asked = row.messages[row.answer_start - 1]["content"] if row.messages and row.answer_start else row.prompt
        texts = [(name, one.found[ROWS][keys[i]]["answer"]) for name, one in ((other.name, other), (main.name, main))]
        pair = "".join(f"<div><span>{shown(n, NAME)}</span><pre>{shown(text, TEXT)}</pre></div>" for n, text in texts)
        parts.append(
            f'<div class="example"><p><code>{shown(row.place)}</code></p><pre>{shown(str(asked), TEXT)}</pre>'
            f'<p class=quiet>expected</p><pre>{shown(row.answer, TEXT)}</pre><div class="pair">{pair}</div></div>'
        )
    return "".join(parts)


def _loss(found: dict[str, Any]) -> float:
    """Nats a token of a row, 0 where a model gives labels."""
    return float(found.get("nats", 0.0)) / max(1, found.get("tokens", 1))


def _groups(main: Outcome, outcomes: Sequence[Outcome]) -> str:
    if not main.gaps:
        return ""
    parts = []
    for name, found in main.gaps.items():
        rows: list[list[str | int]] = [
            [
                shown(group, NAME),
                held,
                *(_whole(number(one.gaps[name].groups.get(group, (0.0, 0))[0])) for one in outcomes),
            ]
            for group, (_, held) in found.groups.items()
        ]
        head = ["group", "rows", *(one.name for one in outcomes)]
        parts.append(f"<h3>{shown(said(name))}</h3>{table(head, rows, stack=True)}")
    lines = "".join(f"<p>{shown(line)}</p>" for one in outcomes for line in gap_lines(one))
    return lines + "".join(parts)


def _lean(outcomes: Sequence[Outcome], compared: Sequence[Against], wanted: Wanted) -> str:
    if not wanted.pairs:
        return ""
    parts = [f"<p>{shown(lean_line(one, len(wanted.pairs)))}</p>" for one in outcomes]
    parts.append(
        "<p class=quiet>The share of pairs whose stereotypical sentence has the higher log-likelihood; 50 % is no lean."
        " It measures these sentences, not the harm that a use of the model may do.</p>"
    )
    names = [name for name in outcomes[0].figures if name.startswith(bias.SCORE)]
    lines = [
        Line(
            name.removeprefix(f"{bias.SCORE}:").replace("_", " "),
            " and ".join(f"{one.figures[name]:.1%}" for one in outcomes[:2]),
            [[(one.figures[name], colour)] for one, colour in zip(outcomes[:2], ("one", "two"), strict=False)],
        )
        for name in names
    ]
    legend = key([(colour, one.name) for one, colour in zip(outcomes[:2], ("one", "two"), strict=False)])
    parts.append(f"<figure>{bars('Stereotype scores', lines, 1.0)}<figcaption>{legend}</figcaption></figure>")
    for one in compared:
        found = [(name, one.differences[name]) for name in names if name in one.differences]
        rows = [
            (shown(name), _whole(number(d.base)), _whole(number(d.other)), _whole(interval(d)), _moved(d, one, name))
            for name, d in found
        ]
        parts.append(table(["kind", one.other, "the first", "difference (95 % interval)", ""], rows, stack=True))
    return "".join(parts)


def _moved(found: Difference, one: Against, name: str) -> str:
    """Whether a score moved, and for all pairs together, where to."""
    if found.verdict == "cannot tell":
        return "cannot tell"
    distance = one.differences.get(bias.DISTANCE)
    if name == bias.SCORE and distance is not None and distance.verdict != "cannot tell":
        return "moved towards 50 %" if distance.verdict == "better" else "moved away from 50 %"
    nearer = abs(found.other - 0.5) < abs(found.base - 0.5)
    return f"moved, {'nearer to' if nearer else 'further from'} 50 %"


def _general(main: Outcome, outcomes: Sequence[Outcome], wanted: Wanted) -> str:
    """The loss on each general text of the base against the adapter's, the largest loss of knowledge first."""
    base = next((one for one in outcomes if one.name == BASE), None)
    if not wanted.general or base is None:
        return ""
    rows = []
    for text, name in zip(wanted.general, wanted.keys(GENERAL), strict=True):
        sides = [one.found[GENERAL].get(name) for one in (base, main)]
        if None not in sides:
            before, after = (one["nats"] / one["tokens"] for one in sides if one)
            rows.append((after - before, before, after, text.text))
    rows.sort(key=lambda row: -row[0])
    cells = [(shown(text, 100), f"{before:.3f}", f"{after:.3f}", f"{gain:+.3f}") for gain, before, after, text in rows]
    count = f"{len(rows)} texts that come with the project; those whose loss rose most stand first."
    return f"<p class=quiet>{count}</p>" + table(["text", "base", main.name, "difference"], cells, stack=True)


def _contestants(outcomes: Sequence[Outcome]) -> str:
    cells = [(shown(one.name), f"<bdi>{shown(one.path, 200)}</bdi>", f"<code>{one.key}</code>") for one in outcomes]
    return table(["name", "where", "fingerprint"], cells, stack=True)


def _whole(text: str) -> str:
    """Numbers that are not broken in two."""
    return f"<span class=unit>{shown(text)}</span>"


def _verdict(name: str, found: Difference) -> str:
    needed = f" (about {found.rows_needed:,} rows would)" if found.rows_needed else ""
    return verdict(name, found) + needed
