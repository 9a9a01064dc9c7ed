"""Broken files: what can be read is prepared, the rest is set aside with its place and reason; never a traceback."""

import gzip
import io
import json

import pytest
from conftest import write_rows
from test_prepare import made, prepare, read, rows_of, summary

from lorasmith.errors import DataError

pytestmark = pytest.mark.scorecard(row="R6")

GOOD = [{"question": row["instruction"], "answer": row["output"]} for row in made(40)]
LINES = [json.dumps(row).encode() + b"\n" for row in GOOD[20:]]


def parquet():
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD[20:]), file)
    return file.getvalue()


def one(value):
    return json.dumps(value).encode() + b"\n"


def nested(depth):
    return b'{"question": "deep", "answer": "down", "more": ' + b"[" * depth + b"]" * depth + b"}\n"


# name: (file, its bytes, rows of it that are prepared, rows or rests of the file that are set aside)
BROKEN = {
    "cut gzip": ("b.jsonl.gz", gzip.compress(b"".join(LINES * 40))[:-900], None, 1),
    "gzip by name alone": ("b.jsonl.gz", b"".join(LINES), 0, 1),
    "gzip without the name": ("b.jsonl", gzip.compress(b"".join(LINES)), 0, 1),
    "UTF-16": ("b.jsonl", b"".join(LINES).decode().encode("utf-16"), 0, 1),
    "Latin-1 among UTF-8": ("b.jsonl", b"".join(LINES[:5]) + '{"question": "caf\u00e9", "answer": "x"}\n'.encode("latin-1"), 5, 1),
    "mixed shapes": ("b.jsonl", b"".join(LINES[:6]) + one({"prompt": "a", "completion": "b"}) + one({"text": "c"}), 6, 2),
    "a line of 50 MB": ("b.jsonl", b"".join(LINES[:3]) + one({"question": "long", "answer": "x " * 25_000_000}), 3, 0),
    "a line of 70 MB": ("b.jsonl", LINES[0] + b'"' + b"x" * 70_000_000 + b'"\n' + LINES[1], 2, 1),
    "nulls": ("b.jsonl", LINES[0] + one({"question": None, "answer": None}) + one({"question": {"a": None}, "answer": [None]}), 1, 2),
    "nested too deep": ("b.jsonl", LINES[0] + nested(100_000), 1, 1),
    "a field twice": ("b.jsonl", LINES[0] + b'{"question": "a", "question": "b", "answer": "c"}\n', 1, 1),
    "not a number": ("b.jsonl", LINES[0] + b'{"question": "a", "answer": "c", "score": NaN}\n', 1, 1),
    "no JSON": ("b.jsonl", LINES[0] + b"{'question': 'a'}\nhello\n{\n", 1, 3),
    "no objects": ("b.jsonl", LINES[0] + b'[1]\n"a"\n7\nnull\ntrue\n', 1, 5),
    "half of a character": ("b.jsonl", LINES[0] + b'{"question": "\\ud800", "answer": "a"}\n{"question": "a", "answer": "b", "id": "\\udc00"}\n', 1, 2),
    "a web page": ("b.jsonl", b"<!DOCTYPE html><html>Sign in</html>", 0, 1),
    "a git-lfs pointer": ("b.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", 0, 1),
    "an empty file": ("b.jsonl", b"", 0, 0),
    "parquet with a wrong footer": ("b.parquet", parquet()[:-12] + b"\xff" * 8 + b"PAR1", 0, 1),
    "parquet cut off": ("b.parquet", parquet()[:200], 0, 1),
    "parquet that is text": ("b.parquet", b"".join(LINES), 0, 1),
    "a table with a ragged line": ("b.csv", b"question,answer\nwhy,so\na,b,c\nwho,me\n", 2, 1),
    "a table with an open quote": ("b.csv", b'question,answer\nwhy,so\n"who,me\n', 1, 1),
    "a table by semicolons": ("b.csv", b"question;answer\nwhy;so\n", 0, 1),
    "a list that ends early": ("b.json", b"[" + b",".join(line.strip() for line in LINES[:4]), 4, 1),
    "a list with a hole": ("b.json", b"[" + LINES[0].strip() + b",," + LINES[1].strip() + b"]", 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_stops_no_other(tmp_path, name):
    file, data, prepared, aside = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    good = write_rows(tmp_path / "good.jsonl", *GOOD[:20])
    out = prepare(good, tmp_path / file, "--out", tmp_path / "out", "clean.refusals=false")
    told = summary(out)
    assert told["sources"][0]["kept"] == 20
    if prepared is not None:
        assert told["sources"][1]["kept"] == prepared, told["sources"]
        assert told["rejected"]["rows"] == aside
    else:
        assert told["rejected"]["rows"] >= aside
    for one in read(out / "private/rejected.jsonl"):
        assert one["place"].startswith(str(tmp_path / file))
        assert len(one["reason"].splitlines()) == 1
        assert one["reason"][-1] in ".])"
    assert len(rows_of(out)) == sum(source["kept"] for source in told["sources"])


@pytest.mark.parametrize("name", [name for name in BROKEN if BROKEN[name][3]])
def test_where_it_is_strict_a_broken_row_ends_it_in_one_line(tmp_path, name):
    file, data, _, _ = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    good = write_rows(tmp_path / "good.jsonl", *GOOD[:20])
    with pytest.raises(DataError) as caught:
        prepare(good, tmp_path / file, "--out", tmp_path / "out", "--strict")
    assert str(caught.value).startswith(str(tmp_path / file))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out/train.jsonl").exists()


def test_a_broken_file_alone_is_one_line(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(DataError, match="a web page, not rows"):
        prepare(tmp_path / "b.jsonl", "--out", tmp_path / "out")
