"""One page in one file: no script, nothing loaded, readable on a phone and on paper, in light and dark.

What comes from rows goes through `shown` or `label` alone: it is escaped, and characters that are invisible or that
turn the writing around are named instead of obeyed.
"""

import html
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

ELLIPSIS = "…"
LONGEST_TITLE = 100  # characters
LONGEST_HEAD = 40
LONGEST_RUN = 20  # of one odd character, which is shown once: texts are cut at this many times their limit
_JOINERS = "\u200c\u200d"  # letters of Persian and parts of emoji
# The page may load nothing and run nothing, even if something in it were not escaped.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """\
:root{color-scheme:light dark;--page:#f6f7f7;--card:#fff;--ink:#1c2328;--quiet:#56616b;--line:#dde2e5;--track:#e8ecee;
--one:#2b6c8f;--two:#66852c;--three:#8a6db3;--gone:#c2562b;--warn:#8f3f1c;--cut:#fbe1d7;--new:#d9f0dd;--mark:#fff0b8}
@media(prefers-color-scheme:dark){:root{--page:#12161a;--card:#1a2026;--ink:#e2e8ec;--quiet:#9eabb6;--line:#2d363e;
--track:#29323a;--one:#63aed3;--two:#a9c46c;--three:#b79be0;--gone:#e58a5f;--warn:#f2a27d;--cut:#57281a;--new:#1c4a2b;
--mark:#544713}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
overflow-wrap:anywhere}
a{color:var(--one);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible,.wide:focus-visible{outline:2px solid var(--one);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem}
header,.columns{max-width:74rem;margin:0 auto;padding:0 1rem}
header{padding-top:2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .4rem;font-weight:650;letter-spacing:-.01em}
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .5rem;font-weight:650}
h3{font-size:1rem;margin:1.4rem 0 .3rem;font-weight:650}
p{margin:.4rem 0;max-width:46rem}
.quiet,figcaption{color:var(--quiet);font-size:.875rem}
header p{color:var(--quiet);margin:0}
nav{margin:1.2rem 0}
nav ul{display:flex;flex-wrap:wrap;gap:.4rem;list-style:none;margin:0;padding:0}
nav a{display:block;padding:.2rem .65rem;border:1px solid var(--line);border-radius:1rem;background:var(--card);
color:var(--ink);text-decoration:none;font-size:.875rem}
nav a:hover{border-color:var(--one)}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1.1rem 1.1rem 1.2rem;
margin:0 0 1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));gap:.6rem;margin:0 0 1rem}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem .7rem}
.tiles dt{color:var(--quiet);font-size:.8rem}
.tiles dd{margin:0;font-size:1.15rem;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}
.tiles dd small{display:block;font-size:.8rem;font-weight:400;color:var(--quiet)}
.look{border-left:.3rem solid var(--gone)}
.look ul{margin:0;padding-left:1.1rem}.look li{margin:.15rem 0}
figure{margin:.6rem 0 .9rem}
svg{display:block;width:100%;overflow:hidden}
svg text{font-size:13px;fill:var(--ink)}svg .quiet{fill:var(--quiet);font-size:12px}
.track{fill:var(--track)}.one{fill:var(--one)}.two{fill:var(--two)}.three{fill:var(--three)}.gone{fill:var(--gone)}
.rule{stroke:var(--line);stroke-width:1}.at{stroke:var(--gone);stroke-width:1.5;stroke-dasharray:4 3}
.key{display:inline-flex;align-items:center;gap:.35rem;margin-right:1rem}
.key svg{width:.8rem;height:.8rem;flex:none}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--quiet);font-weight:500;font-size:.8rem;overflow-wrap:normal}
tbody th{font-weight:500;min-width:8.4rem}.unit{white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre,code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.84rem}
code{color:var(--quiet)}
pre{white-space:pre-wrap;unicode-bidi:plaintext;overflow:hidden;background:var(--page);
border:1px solid var(--line);border-radius:.4rem;padding:.6rem .75rem;margin:.3rem 0;line-height:1.5}
i.odd{unicode-bidi:isolate;font-style:normal;font-size:.85em;color:var(--warn);border:1px solid currentColor;
border-radius:.25em;padding:0 .2em;margin:0 .1em;white-space:nowrap}
mark{background:var(--mark);color:inherit}
del{background:var(--cut);color:inherit;text-decoration:underline dotted}
ins{background:var(--new);color:inherit;text-decoration-thickness:.1em;text-underline-offset:.2em}
details{border-top:1px solid var(--line);padding:.15rem 0}
details:last-of-type{border-bottom:1px solid var(--line)}
summary{cursor:pointer;padding:.45rem 0;font-weight:500}
summary span{color:var(--quiet);font-weight:400;margin-left:.5em}
.example{margin:.4rem 0 1.1rem}
.pair{display:grid;gap:.3rem .8rem}
.pair>div{min-width:0}
.pair span{color:var(--quiet);font-size:.8rem}
@media(min-width:44rem){.pair{grid-template-columns:1fr 1fr}}
@media(min-width:62rem){.columns{display:grid;grid-template-columns:11.5rem minmax(0,1fr);gap:2rem}
nav{position:sticky;top:1rem;align-self:start;max-height:calc(100vh - 2rem);overflow-y:auto}
nav ul{display:block}nav a{border:0;background:none;padding:.22rem 0;color:var(--quiet)}
nav a:hover{color:var(--ink)}main{margin-top:1.2rem}}
@media(max-width:35rem){.stack thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.stack tr{display:block;border-bottom:1px solid var(--line);padding:.45rem 0}
.stack th,.stack td{display:block;border:0;padding:.05rem 0;text-align:left}
.stack th{font-weight:650}.stack td.number{display:inline-block;margin-right:.9rem}
.stack td[data-of]::before{content:attr(data-of) " ";color:var(--quiet)}.stack td:empty{display:none}}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--quiet:#444;--line:#bbb;--track:#e8ecee;
--one:#2b6c8f;--two:#66852c;--three:#8a6db3;--gone:#c2562b;--warn:#8f3f1c;--cut:#fbe1d7;--new:#d9f0dd;--mark:#fff0b8}
nav,.skip{display:none}.columns{display:block}section{border:0;border-radius:0;padding:.3rem 0}.look{padding-left:.8rem}
body{font-size:11pt}figure,.example,tr,.tiles{break-inside:avoid}h2,h3{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
details::details-content{content-visibility:visible;block-size:auto}}
"""


def page(title: str, lead: str, top: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        lead: Plain text under the title.
        top: HTML above the sections.
        sections: The anchor, the heading as plain text and the HTML of each; those without HTML are left out.
    """
    held = [one for one in sections if one[2]]
    links = "".join(f'<li><a href="#{anchor}">{shown(heading)}</a></li>' for anchor, heading, _ in held)
    body = "\n".join(_section(*one) for one in held)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{html.escape(label(title))}</title>
<style>
{_STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{shown(title, LONGEST_TITLE)}</h1><p>{shown(lead)}</p></header>
<div class="columns">
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main">
{top}
{body}
</main>
</div>
</body>
</html>
"""


def _section(anchor: str, heading: str, text: str) -> str:
    named = f'<h2 id="{anchor}-h">{shown(heading)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-h">\n{named}\n{text}\n</section>'


def shown(text: str, longest: int | None = None, every: bool = False) -> str:
    """Somebody's text as HTML.

    Args:
        longest: Characters to show, names of odd ones counted; the rest is left out and said to be.
        every: Whether spaces of all kinds, line ends and joiners are named too, as where a difference is shown.
    """
    out: list[str] = []
    length = taken = 0
    head = text if longest is None else text[: longest * LONGEST_RUN]
    for piece, count, odd in _pieces(head, every):
        if longest is not None and length + len(piece) > longest:
            kept = 0 if odd else longest - length
            rest = len(text) - taken - kept
            return "".join([*out, html.escape(piece[:kept], quote=False), f"{ELLIPSIS} <i class=odd>{rest:,} more</i>"])
        length, taken = length + len(piece), taken + count
        written = html.escape(piece, quote=False)
        out.append(f"<i class=odd>{written}</i>" + "\n" * piece.count(r"\n") if odd else written)
    if taken < len(text):
        out.append(f"{ELLIPSIS} <i class=odd>{len(text) - taken:,} more</i>")
    return "".join(out)


def label(text: str, longest: int | None = None) -> str:
    """Somebody's text as one short plain line, odd characters named; not escaped."""
    head = " ".join((text if longest is None else text[: longest * LONGEST_RUN]).split())
    named = "".join(f"<{piece}>" if odd else piece for piece, _, odd in _pieces(head, False))
    return named if longest is None or len(named) <= longest else named[: longest - 1] + ELLIPSIS


def _pieces(text: str, every: bool) -> Iterator[tuple[str, int, bool]]:
    """Runs of usual characters, and of each odd one by its name: what to show, for how many characters, whether odd."""
    start = 0
    while start < len(text):
        name, end = _name(text[start], every), start + 1
        if not name:
            while end < len(text) and not _name(text[end], every):
                end += 1
            yield text[start:end], end - start, False
        else:
            while end < len(text) and text[end] == text[start]:
                end += 1
            yield (f"{end - start} {name}" if end - start > 3 else name * (end - start)), end - start, True
        start = end


def _name(one: str, every: bool) -> str:
    """How an odd character is called, or nothing for a usual one."""
    if " " <= one <= "~":
        return ""
    if one in "\n\t":
        return {"\n": r"\n", "\t": r"\t"}[one] if every else ""
    if one in _JOINERS:
        return f"U+{ord(one):04X}" if every else ""
    kind = unicodedata.category(one)
    return f"U+{ord(one):04X}" if kind in ("Cc", "Cf", "Cs", "Zl", "Zp") or (every and kind == "Zs") else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str | int]], stack: bool = False) -> str:
    """A table whose first column heads its rows. Whole numbers are set to the right; texts are HTML already.

    Args:
        head: Plain text.
        stack: Whether the cells of a row stand below one another on a phone, each with its column's name.
    """
    body, numbers = [], set[int]()
    for row in rows:
        cells = [f'<th scope="row">{_cell(row[0])}</th>']
        for i, cell in enumerate(row[1:], 1):
            of = f' data-of="{html.escape(label(head[i], LONGEST_HEAD))}"' if stack and head[i] else ""
            if isinstance(cell, int):
                numbers.add(i)
            cells.append(f"<td{' class=number' if isinstance(cell, int) else ''}{of}>{_cell(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return ""
    heads = "".join(
        f'<th scope="col"{" class=number" if i in numbers else ""}>{shown(name, LONGEST_HEAD)}</th>'
        for i, name in enumerate(head)
    )
    kind = " class=stack" if stack else ""
    name = html.escape(label(f"Table of {', '.join(head)}", LONGEST_TITLE))
    # A table that is wider than the screen scrolls within its own box, by keyboard too.
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{name}"><table{kind}><thead><tr>{heads}</tr>'
        f"</thead><tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _cell(cell: str | int) -> str:
    return f"{cell:,}" if isinstance(cell, int) else cell
