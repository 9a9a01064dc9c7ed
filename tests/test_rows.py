"""Rows are recognised by themselves, and a broken one ends the run with file, line, what and what to do."""

import gzip
import json

import pytest
from conftest import launch, write_rows

from lorasmith.data.rows import check_no_overlap, read_prompts, read_rows, split_rows
from lorasmith.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_five_formats_are_recognised(tmp_path):
    rows = {
        "messages": CHAT,
        "prompt+completion": {"prompt": "a", "completion": "b"},
        "instruction+output": {"instruction": "a", "input": "", "output": "b"},
        "question+answer": {"question": "a", "answer": "b", "final": "b"},
        "text": {"text": "a", "prompt": "a metadata column"},
    }
    for kind, row in rows.items():
        found, name = read_rows(str(write_rows(tmp_path / "r.jsonl", row, row)))
        assert name == kind
        assert len(found) == 2
        assert found[0].answer in ("a", "b")


def test_an_instruction_with_input_asks_both(tmp_path):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    found, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row)))
    assert found[0].messages[0]["content"] == "Add.\n\n1 2"


def test_conversational_prompt_and_completion_train_only_the_completion(tmp_path):
    row = {
        "prompt": CHAT["messages"] + [{"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}],
    }
    found, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row)))
    assert found[0].trained_from == 3
    assert found[0].answer == "d"


def test_jsonl_json_csv_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": 'one\ntwo, "three"', "answer": "b"}, {"question": "é\u2028", "answer": "d"}]
    write_rows(tmp_path / "r.jsonl", *rows)
    (tmp_path / "r.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    (tmp_path / "r.csv").write_text('question,answer\n"one\ntwo, ""three""",b\né\u2028,d\n', encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    wanted = [(row["question"], row["answer"]) for row in rows]
    for kind in ("jsonl", "json", "csv", "parquet"):
        found, _ = read_rows(str(tmp_path / f"r.{kind}"))
        assert [(row.messages[0]["content"], row.answer) for row in found] == wanted, kind


def test_places_are_lines_of_the_file(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    (tmp_path / "r.json").write_text('[\n {"text": "a"},\n\n {"text": "b"}\n]')
    (tmp_path / "r.csv").write_text('text\n"a\na"\nb\n')
    for kind, lines in (("jsonl", (1, 3)), ("json", (2, 4)), ("csv", (2, 4))):
        found, _ = read_rows(str(tmp_path / f"r.{kind}"))
        assert tuple(int(row.place.rpartition(":")[2]) for row in found) == lines, kind


GOOD = b'{"question": "a", "answer": "b"}\n'
BROKEN = {
    "cut": (
        b'{"question": "a',
        "not valid JSON (unterminated string starting at at column 14). Fix or remove the line.",
    ),
    "two objects": (GOOD.strip() * 2, "not valid JSON (extra data at column 33). Fix or remove the line."),
    "a list": (b"[1, 2]", "the row is a list; expected an object with named fields."),
    "null": (b"null", "the row is null; expected an object with named fields."),
    "a number": (b"3", "the row is a number; expected an object with named fields."),
    "NaN": (
        b'{"question": "a", "answer": NaN}',
        "not valid JSON (`NaN` is not a JSON number). Fix or remove the line.",
    ),
    "twice": (
        b'{"answer": "a", "question": "a", "answer": "b"}',
        "not valid JSON (field `answer` is given twice). Fix or remove the line.",
    ),
    "not UTF-8": (b'{"question": "\xff", "answer": "b"}', "not UTF-8 (invalid start byte). Save the file as UTF-8."),
    "missing field": (
        b'{"question": "a"}',
        "field `answer` is missing; the rows before it are question+answer. Fix or remove the line.",
    ),
    "null field": (b'{"question": "a", "answer": null}', "answer: null; expected text. Fix or remove the line."),
    "number field": (b'{"question": "a", "answer": 3}', "answer: a number; expected text. Fix or remove the line."),
    "list field": (b'{"question": "a", "answer": ["b"]}', "answer: a list; expected text. Fix or remove the line."),
    "empty answer": (b'{"question": "a", "answer": " "}', "answer: empty. Fix or remove the line."),
    "deep": (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_is_named(case, tmp_path):
    line, refusal = BROKEN[case]
    path = tmp_path / "r.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(caught.value).startswith(f"{path}:3: {refusal}")


BROKEN_CHATS = {
    "no list": ("hello", "messages: text; expected a list of messages."),
    "empty": ([], "messages: empty; expected a list of messages."),
    "no object": (["hi"], "messages[0]: text; expected an object with role and content."),
    "unknown role": (
        [{"role": "human", "content": "a"}],
        "messages[0].role: `human`; expected one of system, developer, user, assistant, tool.",
    ),
    "no content": ([{"role": "user"}], "messages[0].content: null; expected text."),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        "messages[0].content[0]: not a text part; only text can be trained on.",
    ),
    "silent assistant": (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
        "messages[1].content: empty; the assistant must say something. Fix or remove the line.",
    ),
    "no assistant": (
        [{"role": "user", "content": "a"}],
        "messages: no assistant turn, nothing to train on. Fix or remove the line.",
    ),
}


@pytest.mark.parametrize("case", BROKEN_CHATS)
def test_a_broken_conversation_is_named(case, tmp_path):
    messages, refusal = BROKEN_CHATS[case]
    path = write_rows(tmp_path / "r.jsonl", CHAT, {"messages": messages})
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(caught.value) == f"{path}:2: {refusal}"


@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        ("r.jsonl", b"", "{path}: no rows. Give at least one."),
        ("r.jsonl", b'{"input": "a"}', "{path}:1: r.jsonl has columns [input]; expected one of: messages, "
         "prompt+completion, instruction+output, question+answer, text."),
        ("r.txt", b"hello", "{path}: a `.txt` file; expected one of .jsonl, .ndjson, .json, .csv, .parquet."),
        ("r.json", b'[{"text": "a"}\n{"text": "b"}]',
         "{path}:2: not valid JSON (expected `,` or `]` after a row). Fix the file."),
        ("r.json", b'[{"text": "a"}] x', "{path}:1: text after the closing `]`. Fix the file."),
        ("r.csv", b"text\na,b\n", "{path}:2: 2 cells; the header has 1 columns. Fix the line."),
        ("r.csv", b"text,text\na,b\n", "{path}:1: a column name is given twice. Rename one."),
        ("r.csv", b'text\n"a\n', "{path}:2: not valid CSV (unexpected end of data). Fix the line."),
        ("r.parquet", b"no parquet", "{path}:1: not readable as parquet ("),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(name, content, refusal, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(caught.value).startswith(refusal.replace("{path}", str(path)))


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="is a folder; expected a file"):
        read_rows(str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        read_rows(str(tmp_path / "missing.jsonl"))


def test_rows_with_one_prompt_stay_on_one_side_of_the_split(tmp_path):
    rows = [{"question": f"q{i % 30}", "answer": f"a{i}"} for i in range(90)]
    found, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", *rows)))
    train, held = split_rows(found, 0.2, seed=1)
    assert len(train) + len(held) == 90
    assert len(held) == 18
    assert not {row.prompt_key for row in train} & {row.prompt_key for row in held}
    again = split_rows(found, 0.2, seed=1)
    assert [row.place for row in again[1]] == [row.place for row in held]
    assert [row.place for row in split_rows(found, 0.2, seed=2)[1]] != [row.place for row in held]


def test_a_row_in_both_files_is_refused_with_both_lines(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(5)]
    train, _ = read_rows(str(write_rows(tmp_path / "t.jsonl", *rows)))
    held, _ = read_rows(str(write_rows(tmp_path / "e.jsonl", {"question": "x", "answer": "a"}, rows[3])))
    with pytest.raises(DataError) as caught:
        check_no_overlap(train, held)
    assert str(caught.value) == (
        f"{tmp_path}/e.jsonl:2: the same row is trained on ({tmp_path}/t.jsonl:4). Remove it from one of the files."
    )


def test_prompts_need_no_answer(tmp_path):
    path = write_rows(
        tmp_path / "p.jsonl", {"question": "a"}, {"prompt": "b"}, {"messages": [{"role": "user", "content": "c"}]}
    )
    rows = read_prompts(str(path))
    assert [row.messages[0]["content"] if row.messages else row.prompt for row in rows] == ["a", "b", "c"]
    with pytest.raises(DataError, match="nothing is asked"):
        read_prompts(str(write_rows(tmp_path / "q.jsonl", {"answer": "a"})))


def test_a_broken_row_ends_the_script_with_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(GOOD + b'{"question": "a"\n')
    done = launch("scripts/sft.py", "recipes/quickstart.yaml", f"data.train={path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {path}:2: not valid JSON (expecting ',' delimiter at column 17). Fix or remove the line.\n"
    )


def test_a_compressed_file_is_refused_by_its_name(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD))
    with pytest.raises(DataError, match=r"a `\.gz` file"):
        read_rows(str(path))
