"""Lists and tables are read in pieces: the same rows, places and refusals wherever the pieces end, in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorasmith.data.files import records
from lorasmith.data.json_list import listed_records
from lorasmith.data.tables import table_records
from lorasmith.errors import DataError

ROWS = [
    {"text": 'a "quoted" \\ é 😀\nline', "n": -1.5e-7, "deep": [{"x": [True, None]}, 12]},
    {"text": "", "n": 123456789, "escaped": "😀"},
]
LISTS = [
    json.dumps([*ROWS, 123, "text", None, [1, 2]]),
    json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n",
    " \n[\n\n" + json.dumps(ROWS[0]) + " , \n" + json.dumps(ROWS[1]) + "\n\n ]\n \n",
    '[{"text": "a"},\n\n   ]',
    '[{"text": "a"}, {"text": "b" "n": 1}]',
    '[{"text": "a"},\n {"text": tru}]',
    '[{"text": "a"},\n {"text": "b\n"}]',
    '[{"text": "a"}, {"text": "\\x"}, {"text": "c"}]',
    '[{"text": "a"}, {"text": NaN}]',
    '[{"text": "a"}, {"text": "b", "text": "c"}]',
    '[{"text": "a"}] [',
    '[{"text": "a"}\n{"text": "b"}]',
    '[{"text": "a"',
    "[1, 2.50, -3e2, 45",
    "[\n1,\n 22\n]\n, 3]",
    "[]",
    "[",
]
TABLES = [
    "text,n\r\n" + '"a\r\nb",1\r\n' + "c,2\r\n\r\n" + "d,3",
    "text\ra\rb\r",
    'text,n\n"a ""b""\n, c",1\né\u2028,2\n',
    "text\na\nb\0\n",
    'text,n\na,1\nb\nc,3\n"d\n',
    'text\n"a"b\n',
]


def told(found):
    """All that a reader gives, in words, with what ends it."""
    given = []
    try:
        for place, value in found:
            given.append((place, str(value) if isinstance(value, DataError) else value))
    except DataError as error:
        given.append(str(error))
    return given


def pieces(text, size):
    return (text[at : at + size] for at in range(0, len(text), size))


@pytest.mark.parametrize("text", LISTS)
def test_a_list_reads_the_same_wherever_its_pieces_end(text, tmp_path):
    whole = told(listed_records(tmp_path, iter([text])))
    for size in (1, 2, 3, 7, 16, 31):
        assert told(listed_records(tmp_path, pieces(text, size))) == whole, size


def test_a_list_gives_its_values_and_their_lines(tmp_path):
    path = tmp_path / "r.json"
    for text in LISTS[:3]:
        path.write_text(text)
        assert [value for _, value in records(str(path))] == json.loads(text)
    assert [place for place, _ in records(str(path))] == [f"{path}:4", f"{path}:5"]


def test_what_follows_a_number_at_the_end_of_a_file_is_not_passed_over(tmp_path):
    for size in (1, 100):
        found = told(listed_records(tmp_path, pieces("[\n1,\n 22\n]\n, 3]", size)))
        assert found == [
            (f"{tmp_path}:2", 1),
            (f"{tmp_path}:3", 22),
            f"{tmp_path}:5: text after the closing `]`. Fix the file.",
        ]


@pytest.mark.parametrize("text", TABLES)
def test_a_table_reads_the_same_wherever_its_pieces_end(text, tmp_path):
    whole = told(table_records(tmp_path, iter([text]), ","))
    assert whole
    for size in (1, 2, 3, 7, 16):
        found = told(table_records(tmp_path, pieces(text, size), ","))
        assert found[-len(whole) :] == whole, size
        assert len(found) == len(whole) or "\0" in text  # a piece with a NUL gives none of its rows


@pytest.mark.slow
def test_a_row_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
    endless = (text for text in ["[\n", '{"text": "', *["a" * (1 << 20)] * 200])
    with pytest.raises(DataError, match=r":2: a row of more than 64 MiB, or one without an end. Fix the file.$"):
        list(listed_records(tmp_path, endless))
    endless = (text for text in ["text\n", *["a" * (1 << 20)] * 200])
    with pytest.raises(DataError, match=r":2: a line of more than 64 MiB; expected a row.$"):
        list(table_records(tmp_path, endless, ","))
    endless = (text for text in ['text\n"a', *["a\n" * (1 << 20)] * 200])
    with pytest.raises(DataError, match=r":2: not valid CSV \(field larger than field limit"):
        list(table_records(tmp_path, endless, ","))


PEAK = """
import re, sys
from pathlib import Path
from lorasmith.data.files import records

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
print(sum(1 for _ in records(sys.argv[1])), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is told by Linux")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lines.json", "one-line.json", "r.csv"])
def test_200_mb_are_read_in_a_few_mib_of_memory(name, tmp_path):
    path = tmp_path / name
    count = 200_000
    ends = {"lines.json": ("[\n", ",\n", "\n]\n"), "one-line.json": ("[", ",", "]"), "r.csv": ("n,text\n", "\n", "\n")}
    first, between, last = ends[name]
    with path.open("w") as file:
        file.write(first)
        for i in range(count):
            row = f"{i},{'a word ' * 150}" if name == "r.csv" else json.dumps({"n": i, "text": "a word " * 150})
            file.write((between if i else "") + row)
        file.write(last)
    assert path.stat().st_size > 200_000_000
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    read, mib = done.stdout.split()
    assert int(read) == count
    assert 0 < float(mib) < 50
