"""Documents become chunks: no text is lost, none is too long, and they are cut where a reader would."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHARED, needs_shared

from lorasmith.data.documents import documents
from lorasmith.data.files import records
from lorasmith.errors import DataError


def words(text):
    return len(text.split())


def characters(text):
    return len(text)


def pieces(text):
    """Tokens as of a real tokenizer: pieces of at most four characters, spaces with what follows them."""
    return len(re.findall(r"\s?\w{1,4}|\s?[^\w\s]|\s", text))


def bare(text):
    return re.sub(r"\s+", "", text)


def made(path, limit, count=words):
    return [(int(place.rpartition(":")[2]), record) for place, record in documents(path, limit, count)]


MARKDOWN = """---
title: "The book"
tags: [a, b]
---
# One

First words here. And a second sentence.

```python
# no heading

x = 1
```

## Deeper ##
Text under it.

Setext
------
More text, which is the last.
"""


def test_a_document_that_fits_is_one_chunk(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(MARKDOWN)
    [(line, record)] = made(path, 1000)
    text = MARKDOWN.split("---\n", 2)[2]
    assert record == {
        "text": text.rstrip(),
        "source": "a.md",
        "chunk": 0,
        "title": "The book > One",
        "front_matter": '---\ntitle: "The book"\ntags: [a, b]\n---\n',
    }
    assert line == 5


def test_chunks_are_cut_at_headings_and_know_them(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(MARKDOWN)
    found = made(path, 20)
    assert [(line, record["title"], record["text"][:9]) for line, record in found] == [
        (5, "The book > One", "# One\n\nFi"),
        (15, "The book > One > Deeper", "## Deeper"),
    ]
    found = made(path, 9)
    assert [record["text"].splitlines()[0] for _, record in found] == [
        "# One", "```python", "## Deeper ##", "Setext"
    ]  # fmt: skip
    assert found[-1][1]["title"] == "The book > One > Setext"
    assert [record["chunk"] for _, record in found] == [0, 1, 2, 3]


def test_line_ends_of_windows_are_no_part_of_a_heading(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes(MARKDOWN.replace("\n", "\r\n").encode())
    assert made(path, 9)[-1][1]["title"] == "The book > One > Setext"
    assert made(path, 20)[1][1]["title"] == "The book > One > Deeper"


def test_headings_of_rst_have_the_levels_of_their_order(tmp_path):
    path = tmp_path / "a.rst"
    path.write_text(
        "=====\nTitle\n=====\n\nIntro is here.\n\nPart\n----\n\nText of it.\n\nSub\n~~~\nDeep text.\n\nLast\n----\nEnd.\n"
    )
    assert [record["title"] for _, record in made(path, 6)] == [
        "Title", "Title > Part", "Title > Part > Sub", "Title > Last"
    ]  # fmt: skip


def test_without_headings_it_is_paragraphs_then_sentences_then_words(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("# not a heading\none two.\n\nthree four five. six seven eight nine ten\n\neleven\n")
    assert [record["text"] for _, record in made(path, 8)] == [
        "# not a heading\none two.", "three four five. six seven eight nine ten", "eleven"
    ]  # fmt: skip
    assert [record["text"] for _, record in made(path, 4)][2:] == [
        "three four five.",
        "six seven eight nine",
        "ten\n\neleven",
    ]
    [(_, first), (_, second)] = made(path, 11, characters)[:2]
    assert (first["text"], second["text"]) == ("# not a", "heading")


TEXTS = [
    MARKDOWN,
    "",
    "\n\n \n",
    "\ufeffa",
    "  indented\n    more\n\n\n\nend",
    "x" * 5000,
    "é😀 " * 700,
    "a\r\nb\r\n\r\nc" * 50,
]


@pytest.mark.parametrize("count", [words, characters, pieces])
@pytest.mark.parametrize("limit", [1, 2, 7, 30, 400])
def test_no_text_is_lost_and_no_chunk_is_too_long(count, limit, tmp_path):
    rng = random.Random(limit)
    atoms = [
        "# Heading\n",
        "word ",
        "long" * 9,
        ". ",
        "\n",
        "\n\n",
        "```\n",
        "Under\n=====\n",
        "\t",
        "。",
        "é",
        "---\n",
        "? ",
        "\u2028",
        "\r\n",
    ]
    texts = TEXTS + ["".join(rng.choices(atoms, k=rng.randrange(200))) for _ in range(60)]
    for i, text in enumerate(texts):
        for ending in (".txt", ".md", ".rst"):
            path = tmp_path / f"{i}{ending}"
            path.write_text(text, newline="", encoding="utf-8")
            found = made(path, limit, count)
            whole = "".join(record.get("front_matter", "") + record["text"] for _, record in found)
            if found or ending != ".md":  # a file of front matter alone has no chunk
                assert bare(whole) == bare(text.removeprefix("\ufeff"))
            assert all(record["text"].strip() and count(record["text"]) <= limit for _, record in found)
            lines = text.split("\n")
            assert all(0 < line <= len(lines) for line, _ in found)
            for line, record in found:
                assert record["text"].split("\n")[0].strip() in lines[line - 1]


@needs_shared
def test_real_texts_are_whole_in_their_chunks(tmp_path):
    texts = [value["text"] for _, value in records(str(SHARED / "data/text_c4_demo.jsonl"))]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:03}.txt").write_text(text, encoding="utf-8", newline="")
    chunks = {}
    for place, record in documents(tmp_path, 128, pieces):
        assert place.startswith(f"{tmp_path}/{record['source']}:")
        assert pieces(record["text"]) <= 128
        chunks.setdefault(record["source"], []).append(record["text"])
    assert [bare("".join(one)) for one in chunks.values()] == [bare(text) for text in texts]
    total = sum(map(pieces, texts))
    assert sum(map(len, chunks.values())) < 2 * total / 128 + len(texts)


def test_the_documents_of_the_project_are_cut_at_their_headings():
    found = made(ROOT / "docs/rows.md", 200, pieces)
    assert found[0][1]["title"] == "Rows"
    assert any(record["title"] == "Rows > What is refused" for _, record in found)


def test_a_folder_gives_its_files_in_order_and_a_broken_one_stops_none(tmp_path):
    (tmp_path / "b.md").write_text("b")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/c.txt").write_text("c")
    (tmp_path / "a/no.py").write_text("x")
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff")
    (tmp_path / "nul.txt").write_bytes(b"fine\n\0")
    (tmp_path / "pdf.txt").write_bytes(b"PK\x03\x04")
    (tmp_path / "z.rst").write_text("z")
    found = list(documents(tmp_path, 10, words))
    told = [str(value) if isinstance(value, DataError) else value["source"] for _, value in found]
    assert told == [
        "a/c.txt",
        "b.md",
        f"{tmp_path}/bad.txt:2: not UTF-8 (invalid start byte). Save the file as UTF-8.",
        f"{tmp_path}/nul.txt:2: a NUL byte, as in UTF-16. Save the file as UTF-8.",
        f"{tmp_path}/pdf.txt: a zip archive or a spreadsheet. Unpack it, or export it as CSV.",
        "z.rst",
    ]


@pytest.mark.parametrize(
    ("name", "limit", "reason"),
    [
        ("none", 10, "no such file; expected a folder, or one of .txt, .md, .markdown, .rst."),
        ("a.py", 10, "a `.py` file; expected a folder, or one of .txt, .md, .markdown, .rst."),
        ("empty", 10, "no documents in this folder; expected files of .txt, .md, .markdown, .rst."),
        ("a.txt", 0, "chunks of 0 tokens; expected at least 1."),
    ],
)
def test_what_is_no_document_is_refused(name, limit, reason, tmp_path):
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        list(documents(tmp_path / name, limit, words))
    assert str(caught.value) == f"{tmp_path / name}: {reason}"


def test_a_character_that_is_longer_than_a_chunk_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("é")
    [(_, error)] = documents(tmp_path / "a.txt", 1, lambda text: 2 * len(text))
    assert str(error) == f"{tmp_path}/a.txt:1: one character has more than 1 tokens. Allow longer chunks."


PEAK = """
import re, sys
from pathlib import Path
from lorasmith.data.documents import documents

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
print(sum(1 for _ in documents(Path(sys.argv[1]), 1024, lambda text: len(text) // 4)), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is told by Linux")
@pytest.mark.parametrize("between", ["\n\n", "\n", " "])
def test_100_mb_of_text_are_cut_in_a_few_mib_of_memory(between, tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for i in range(100_000):
            file.write(f"{i} " + "Some words that say little. " * 36 + between)
    assert path.stat().st_size > 100_000_000
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    chunks, mib = done.stdout.split()
    assert 20_000 < int(chunks) < 60_000
    assert 0 < float(mib) < 50
