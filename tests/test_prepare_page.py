"""The page, the card and the lines on the screen of a preparation, with rows that mean harm, and in a real browser."""

import functools
import html.parser
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_rows

from lorasmith import html_page
from lorasmith.html_page import label, shown
from lorasmith.preparing.dataset_card import card, front_matter
from lorasmith.preparing.examples import difference
from lorasmith.preparing.report import html_report
from lorasmith.preparing.spoken import lines
from lorasmith.preparing.summary import Change, Part, Rejected, Source, Step, Summary, length_histogram

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = (
    '<script>document.title="owned"</script><img src=x onerror="document.title=1"></pre></details></table></svg>'
    "\u202egnp.exe\u2066\x00\x1b]0;owned\x07\x9b2J " + "W" * 300 + " 👩‍👩‍👧 Z" + "\u0321\u0340" * 30 + " \ud800 العربية"
    ' \U000e0041 `code` | cell | **bold** [a](http://evil.example) "quoted" &amp; \u2028 end'
)
SECTIONS = {
    "steps", "sources", "splits", "lengths", "languages", "labels", "masked", "duplicates", "changes", "removed",
    "rejected", "contaminated", "suspicious", "openai", "settings",
}  # fmt: skip


def usual(text: str = "Where is my parcel?", place: str = "data/a.jsonl.gz:7", many: int = 1) -> Summary:
    """A summary with everything in it, its texts, names and places as given, its lists `many` times as long."""
    tag = "" if many == 1 else text
    names = [f"{tag}{i}" for i in range(4 * many)]
    lengths = {i: 1000 - i for i in range(5, 900)} | {50_000: 2}
    return Summary(
        name="chats" + tag,
        tokenizer="Qwen/Qwen3-0.6B" + tag,
        sources=[Source("data/a.jsonl.gz" + tag, "sharegpt" + tag, 0.5, 1_000_000, 588, 870_991)] * many,
        steps=[
            Step("read", 1_000_000, 999_412, 0, {"not valid JSON": 388, "empty answer": 200}),
            Step("clean" + tag, 999_412, 998_100, 231_554, {"nothing left" + tag: 1_312}, "NFC" + tag),
            Step("de-duplicate", 998_100, 871_233, 0, {f"alike {name}": 0 for name in names} | {"alike": 126_867}),
            Step("decontaminate", 871_233, 870_991, 0, {"overlap": 242}),
            Step("mask", 870_991, 870_991, 4_120),
            Step("split", 870_991, 870_991),
        ],
        splits={
            "train": Part(840_000, 170_000_000, 640_123_123, 790_000_000, "ab12" * 16),
            "eval": Part(30_991, 6_300_000, 23_700_000, 29_000_000, "cd34" * 16),
            "test": Part(0),
        },
        lengths=length_histogram(lengths, "tokens"),
        languages={"en": 800_000, "no": 70_000, "und": 991} | dict.fromkeys(names, 1),
        labels={"train": {"good": 800_000, "bad": 40_000} | dict.fromkeys(names, 3), "eval": {"good": 30_991}},
        masked={"email": {"items": 3_120, "rows": 2_400}} | {name: {"items": 2, "rows": 1} for name in names},
        duplicates={
            "exact": 81_200, "normalised": 12_667, "near": 33_000, "sizes": {"2": 30_000, "3": 9_000, "2100": 3},
            "largest": [{"rows": 2_100, "kept": place, "text": text, "others": [place] * 20}] * many,
        },
        changes={name: Change(i, [{"place": place, "before": text + "\r\u200b", "after": text}] * 9) for i, name in enumerate(names)},
        removed={name: Change(i, [{"place": place, "text": text * 3}] * 9) for i, name in enumerate(names)},
        rejected=Rejected(588, [{"place": place, "reason": text}] * 200, {text: 588}),
        contaminated=[{"place": place, "against": place, "how": text}] * 50 * many,
        suspicious=[{"place": place, "why": text, "text": text * 3}] * 10 * many,
        openai={"examples": 840_000, "tokens": 170_000_000, "epochs": 1, "cost": 1360.0, "problems": [text] * 40},
        settings={"sources": [place] * many, "clean": {"html": True, "marks": text}},
        fingerprint="0f" * 32,
        contaminated_rows=242,
        folder="prepared/chats" + tag,
        format="messages" + tag,
    )  # fmt: skip


def small() -> Summary:
    return Summary(
        "tiny", None, [Source("rows.csv", "question+answer", 1.0, 3, 0, 3)], [Step("read", 3, 3), Step("split", 3, 3)],
        {"train": Part(3, 0, 120, 260, "ab" * 32)}, length_histogram({20: 1, 50: 1, 51: 1}, "characters"),
        format="question+answer",
    )  # fmt: skip


SUMMARIES = {"usual": usual(), "evil": usual(EVIL, EVIL, 60), "small": small(), "empty": Summary("nothing")}


class Read(html.parser.HTMLParser):
    """What a page holds: tags with their attributes, open tags that were never closed, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# --- the page without a browser --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_page_is_whole_and_loads_nothing_whatever_is_in_the_rows(name):
    page = html_report(SUMMARIES[name])
    assert len(page.encode()) < 1_000_000  # also shows that no lone surrogate is left
    read = Read(page)
    assert read.open == []
    assert not {"script", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        target = attributes.get("href") or attributes.get("src") or "#"
        assert target.startswith("#") or target == "data:,"
    assert not re.search(r"@import|url\(", html_page._STYLE)
    assert "default-src 'none'" in page
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\U000e0000-\U000e007f]", page
    )


def test_a_page_has_every_section_that_has_something_to_say_and_no_other():
    def sections(summary):
        return {
            attributes["id"]
            for tag, attributes in Read(html_report(summary)).tags
            if tag == "section" and "id" in attributes
        }

    assert sections(usual()) == SECTIONS
    assert sections(small()) == {"steps", "sources", "splits", "lengths"}
    assert sections(Summary("nothing")) == set()


def test_texts_as_long_as_books_cost_little_in_time_and_bytes():
    long = "word & word " * 50_000
    summary = usual(long, long, 20)
    summary.settings = {}  # the user's own
    start = time.perf_counter()
    page = html_report(summary)
    assert time.perf_counter() - start < 20  # about 1 s on a core of its own
    assert len(page.encode()) < 1_200_000
    assert shown("\u200b" * 10**6, 20) == "<i class=odd>400 U+200B</i>… <i class=odd>999,600 more</i>"


def test_links_within_a_page_lead_somewhere_and_headings_go_down_one_by_one():
    read = Read(html_report(usual()))
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in read.tags if tag == "a"}
    assert targets <= set(ids)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for tag, attributes in read.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")


def test_a_page_says_what_must_not_be_missed():
    text = Read(html_report(usual())).text
    for said in (
        "588 rows could not be read",
        "242 rows overlapped with evaluation data",
        "test has no rows",
        "not valid JSON: 388",
        "data/a.jsonl.gz:7",
        "538 more rows",
    ):
        assert said in text
    lost = small()
    lost.steps[0].rows_out = 2
    assert "read: 1 row unaccounted for" in Read(html_report(lost)).text


def test_the_same_summary_gives_the_same_bytes_in_every_process():
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_prepare_page import *\nimport hashlib\n"
        "told = [f(s) for s in SUMMARIES.values() for f in (html_report, card, lambda s: chr(10).join(lines(s)))]\n"
        "print(hashlib.sha256(chr(0).join(told).encode()).hexdigest())"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_a_summary_is_json():
    told = json.loads(json.dumps(asdict(usual())))
    assert told["steps"][1]["removed"] == {"nothing left": 1_312}
    assert told["changes"]["0"]["examples"][0]["place"] == "data/a.jsonl.gz:7"


def test_odd_characters_are_named_and_usual_ones_of_any_script_are_kept():
    assert shown("a<b>\x00\u202e") == "a&lt;b&gt;<i class=odd>U+0000</i><i class=odd>U+202E</i>"
    for usual_text in ("naïve — “quoted”", "العربية", "日本語", "👩‍👩‍👧 🇩🇪", "हिन्दी", "line\nbreak"):
        assert shown(usual_text) == usual_text
    assert shown("a\u00a0\r\n", every=True) == "a<i class=odd>U+00A0</i><i class=odd>U+000D</i><i class=odd>\\n</i>\n"
    assert shown("\u200b" * 1000) == "<i class=odd>1000 U+200B</i>"
    assert shown("abcdef", 4) == "abcd… <i class=odd>2 more</i>"
    assert label("two\nlines\x1b") == "two lines<U+001B>"


def test_a_difference_marks_what_changed_and_nothing_else():
    before, after = difference("Itâ€™s the shopâ€™s.", "It\u2019s the shop\u2019s.")
    assert before == "It<del>â€™</del>s the shop<del>â€™</del>s."
    assert after == "It<ins>\u2019</ins>s the shop<ins>\u2019</ins>s."
    before, after = difference("same " * 100 + "<b>old</b>", "same " * 100 + "old")
    assert before.startswith("…")
    assert "<del>&lt;b&gt;</del>old<del>&lt;/b&gt;</del>" in before
    assert "<ins>" not in after
    # A letter and its accent are one: e + acute became e + grave.
    assert difference("cafe\u0301", "cafe\u0300") == ("caf<del>e\u0301</del>", "caf<ins>e\u0300</ins>")
    assert difference("", "x") == ("", "<ins>x</ins>")


def test_a_difference_shows_both_texts_in_full_when_they_are_short():
    import random

    chance = random.Random(0)
    for _ in range(200):
        before, after = ("".join(chance.choices("ab cé<&\n", k=chance.randrange(40))) for _ in range(2))
        for text, drawn in zip((before, after), difference(before, after), strict=True):
            named = re.sub(r"(\d+) \\n\n", lambda found: int(found[1]) * "\n", Read(f"<p>{drawn}</p>").text)
            assert re.sub(r"(\\n)+(?=\n)", "", named) == text


def test_lengths_are_binned_without_losing_a_row_and_wider_to_the_right_when_skewed():
    import numpy as np

    for values in ([7], [0, 0, 5], list(range(100)), [1, *range(50, 200), 40_000], [3] * 99 + [10**6]):
        held = length_histogram({value: values.count(value) for value in set(values)}, "tokens")
        assert sum(one["rows"] for one in held.bins) == len(values)
        assert len(held.bins) <= 24
        assert held.bins[0]["from"] == min(values)
        assert held.bins[-1]["to"] >= max(values)
        for one, after in pairwise(held.bins):
            assert after["from"] == one["to"] + 1
        for one in held.bins:
            assert one["rows"] == sum(one["from"] <= value <= one["to"] for value in values)
        assert held.quantiles["mean"] == round(float(np.mean(values)), 1)
        for name, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99)):
            assert held.quantiles[name] == np.quantile(values, share, method="inverted_cdf")
    skewed = length_histogram({**dict.fromkeys(range(50, 200), 10), 40_000: 1}, "tokens")
    assert skewed.bins[0]["to"] < 100
    assert skewed.bins[-1]["to"] - skewed.bins[-1]["from"] > 1000


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_contrast_in_light_and_dark(scheme):
    block = re.findall(r":root\{([^}]*)\}", html_page._STYLE)[scheme]
    colour = dict(re.findall(r"--(\w+):(#\w+)", block))

    def luminance(code):
        digits = code[1:] if len(code) == 7 else "".join(2 * one for one in code[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        low, high = sorted((luminance(colour[one]), luminance(colour[other])))
        return (high + 0.05) / (low + 0.05)

    # The limits of WCAG 2.2, AA: 4.5 for text, 3 for what a picture needs.
    for ink, ground in [
        ("ink", "page"),
        ("ink", "card"),
        ("quiet", "page"),
        ("quiet", "card"),
        ("one", "card"),
        ("warn", "page"),
        ("warn", "card"),
        ("ink", "cut"),
        ("ink", "new"),
        ("ink", "mark"),
        ("warn", "cut"),
        ("warn", "new"),
    ]:
        assert contrast(ink, ground) >= 4.5, (ink, ground)
    for part in ("one", "two", "three", "gone"):
        assert contrast(part, "track") >= 3, part


# --- the card and the screen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_card_opens_as_the_hub_reads_it(name):
    from huggingface_hub import DatasetCard

    text = card(SUMMARIES[name])
    text.encode()
    told = DatasetCard(text).data.to_dict()
    assert told == front_matter(SUMMARIES[name])
    body = text.split("\n---\n", 1)[1]
    outside_code = re.sub(r"```.*?```|`[^`]*`", "", re.sub(r"\\.", "", body), flags=re.DOTALL)
    assert not re.search(r"<[a-zA-Z/!]|\]\(|\*\*", outside_code)


def test_a_card_has_the_counts_the_splits_and_the_commands():
    text = card(usual())
    assert front_matter(usual())["language"] == ["en", "no"]
    assert front_matter(usual())["task_categories"] == ["text-generation"]
    assert front_matter(usual())["size_categories"] == ["100K<n<1M"]
    for said in (
        "| `train.jsonl` | train | 840,000 |",
        "| `eval.jsonl` | validation | 30,991 |",
        "| email | 3,120 | 2,400 |",
        "data.train=prepared/chats/train.jsonl data.eval=prepared/chats/eval.jsonl",
        "python scripts/prepare.py prepared/chats/recipe.yaml",
        "242 rows overlapping",
    ):
        assert said in text
    assert "test.jsonl" not in text.split("---")[1]  # it has no rows
    moved = usual()
    moved.folder, moved.sources[0].path = "/home/me/chats", "/home/me/a.jsonl"
    assert "/home/me" not in card(moved)
    moved.license, moved.format = "cc-by-4.0", "labels"
    assert front_matter(moved)["license"] == "cc-by-4.0"
    assert front_matter(moved)["task_categories"] == ["text-classification"]


def test_datasets_finds_the_splits_that_a_card_names(tmp_path):
    from datasets import load_dataset

    summary = usual()
    for name, part in summary.splits.items():
        write_rows(tmp_path / f"{name}.jsonl", *[{"text": f"{name} {i}"} for i in range(2 if part.rows else 0)])
    (tmp_path / "README.md").write_text(card(summary), encoding="utf-8")
    found = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {name: rows[0]["text"] for name, rows in found.items()} == {"train": "train 0", "validation": "eval 0"}


def test_the_yaml_of_a_card_is_a_section_of_a_recipe():
    odd = usual()
    odd.folder = "my rows: #1"
    text = card(odd)
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert section == {"data": {"train": "my rows: #1/train.jsonl", "eval": "my rows: #1/eval.jsonl"}}
    assert "'data.train=my rows: #1/train.jsonl'" in text


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_screen_gets_a_few_plain_lines_and_the_next_command(name):
    told = lines(SUMMARIES[name])
    assert len(told) <= 25
    assert told[-1].startswith("next: accelerate launch scripts/sft.py RECIPE ")
    assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 or one == "\u202e" for line in told for one in line)
    "\n".join(told).encode()
    if name == "usual":
        assert len(told) >= 12
        assert told[0] == "rows: 1,000,000 read from 1 source (sharegpt), 870,991 written (87.1%)"
        assert "read           999,412  388 not valid JSON; 200 empty answer" in told
        assert "train: 840,000 rows, 170,000,000 tokens, 753.4 MiB" in told


# --- a real browser --------------------------------------------------------------------------------------------------

MEASURE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>measure</title>
<body style="margin:0"><pre id="told"></pre><script>
const told = {}, frames = [];
for (const name of NAMES) for (const width of [360, 1200]) frames.push(new Promise(done => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:800px;border:0`;
  frame.onload = () => {
    const page = frame.contentDocument, out = {wide: [], empty: [], svgs: 0, rects: 0, title: page.title};
    for (const one of page.querySelectorAll("details")) one.open = true;
    out.scroll = page.documentElement.scrollWidth;
    for (const one of page.body.querySelectorAll("*")) {
      const box = one.getBoundingClientRect(), name = `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`;
      if (one.ownerSVGElement) {
        if (one.tagName == "rect") { out.rects++; if (!box.height || (!box.width && one.getAttribute("width") != "0.00%")) out.empty.push(name); }
        continue;
      }
      if (one.tagName == "svg") { out.svgs++; if (!box.width || !box.height) out.empty.push(name); }
      const scrolls = width > 360 && one.closest(".wide");
      if (!scrolls && one.className != "skip" && (box.right > width + 0.5 || box.left < -0.5)) out.wide.push(name);
    }
    told[`${name} ${width}`] = out; done();
  };
  frame.src = name; document.body.append(frame);
}));
Promise.all(frames).then(() => { document.getElementById("told").textContent = JSON.stringify(told); });
</script>"""


def browse(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Open a page of a folder over http on this machine; its final document, and what the console said on stderr."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --virtual-time-budget=8000 --dump-dom --no-proxy-server"
    command = [
        str(CHROMIUM),
        *flags.split(),
        f"--user-data-dir={folder / 'profile'}",
        f"http://127.0.0.1:{server.server_address[1]}/{page}",
    ]
    try:
        return subprocess.run(command, text=True, capture_output=True, timeout=300)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_every_figure_and_nothing_is_wider_than_a_phone(tmp_path):
    for name, summary in SUMMARIES.items():
        (tmp_path / f"{name}.html").write_text(html_report(summary), encoding="utf-8")
    names = json.dumps([f"{name}.html" for name in SUMMARIES])
    (tmp_path / "measure.html").write_text(MEASURE.replace("NAMES", names), encoding="utf-8")
    done = browse("measure.html", tmp_path)
    assert "CONSOLE" not in done.stderr, done.stderr
    told = json.loads(Read(re.search(r'<pre id="told">.*?</pre>', done.stdout, re.DOTALL)[0]).text)
    assert len(told) == 2 * len(SUMMARIES)
    for name, out in told.items():
        assert out["wide"] == [], name
        assert out["empty"] == [], name
        assert out["scroll"] <= int(name.split()[1]), name
        assert out["title"].startswith("Preparation of "), "a script of a row ran"
    assert told["usual.html 360"]["svgs"] >= 12
    assert told["usual.html 360"]["rects"] > 60
    assert told["small.html 360"]["svgs"] >= 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_script_that_slipped_into_a_page_is_not_run(tmp_path):
    page = html_report(small()).replace("<h1>", '<script>document.title="owned"</script><h1>', 1)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    done = browse("page.html", tmp_path)
    assert "<title>Preparation of tiny</title>" in done.stdout
    assert "CONSOLE" in done.stderr  # which also shows that the console is heard
