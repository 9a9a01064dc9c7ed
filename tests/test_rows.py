"""Rows are recognised by themselves, and a broken one ends the run with file, line, what and what to do."""

import gzip
import json

import pytest
from conftest import launch, write_rows

from lorasmith.data.formats import read_prompts, read_rows
from lorasmith.data.rows import check_no_overlap, split_rows, weigh
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
        found, name, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row, row)))
        assert name == kind
        assert len(found) == 2
        assert found[0].answer in ("a", "b")


def test_an_instruction_with_input_asks_both(tmp_path):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    found, _, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row)))
    assert found[0].messages[0]["content"] == "Add.\n\n1 2"


def test_conversational_prompt_and_completion_train_only_the_completion(tmp_path):
    row = {
        "prompt": CHAT["messages"] + [{"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}],
    }
    found, _, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row)))
    assert found[0].trained == (False, False, False, True)
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
        found, _, _ = read_rows(str(tmp_path / f"r.{kind}"))
        assert [(row.messages[0]["content"], row.answer) for row in found] == wanted, kind


def test_places_are_lines_of_the_file(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n')
    (tmp_path / "r.json").write_text('[\n {"text": "a"},\n\n {"text": "b"}\n]')
    (tmp_path / "r.csv").write_text('text\n"a\na"\nb\n')
    for kind, lines in (("jsonl", (1, 3)), ("json", (2, 4)), ("csv", (2, 4))):
        found, _, _ = read_rows(str(tmp_path / f"r.{kind}"))
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
        "field `answer` is missing; the rows are question+answer. Fix or remove the line.",
    ),
    "null field": (b'{"question": "a", "answer": null}', "answer: null; expected text. Fix or remove the line."),
    "number field": (b'{"question": "a", "answer": 3}', "answer: a number; expected text. Fix or remove the line."),
    "list field": (b'{"question": "a", "answer": ["b"]}', "answer: a list; expected text. Fix or remove the line."),
    "empty answer": (b'{"question": "a", "answer": " "}', "answer: empty. Fix or remove the line."),
    "deep": (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
}


@pytest.mark.scorecard(row="R6")
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
    "no content": ([{"role": "user"}], "messages[0].content: null; expected text. Fix or remove the line."),
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


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("case", BROKEN_CHATS)
def test_a_broken_conversation_is_named(case, tmp_path):
    messages, refusal = BROKEN_CHATS[case]
    path = write_rows(tmp_path / "r.jsonl", CHAT, {"messages": messages})
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(caught.value) == f"{path}:2: {refusal}"


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        ("r.jsonl", b"", "{path}: no rows. Give at least one."),
        ("r.jsonl", b'{"input": "a"}', "{path}:1: r.jsonl has columns [input]; expected one of: messages, sharegpt, "
         "prompt+completion, instruction+output, question+answer, text."),
        ("r.txt", b"hello", "{path}: a `.txt` file; expected one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, plain "
         "or with .gz or .zst."),
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
    with pytest.raises(DataError, match="no rows in this folder"):
        read_rows(str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        read_rows(str(tmp_path / "missing.jsonl"))


@pytest.mark.scorecard(row="R14")
def test_rows_with_one_prompt_stay_on_one_side_of_the_split(tmp_path):
    rows = [{"question": f"q{i % 30}", "answer": f"a{i}"} for i in range(90)]
    found, _, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", *rows)))
    train, held = split_rows(found, 0.2, seed=1)
    assert len(train) + len(held) == 90
    assert len(held) == 18
    assert not {row.prompt_key for row in train} & {row.prompt_key for row in held}
    again = split_rows(found, 0.2, seed=1)
    assert [row.place for row in again[1]] == [row.place for row in held]
    assert [row.place for row in split_rows(found, 0.2, seed=2)[1]] != [row.place for row in held]


@pytest.mark.scorecard(row="R14")
def test_a_row_in_both_files_is_refused_with_both_lines(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(5)]
    train, _, _ = read_rows(str(write_rows(tmp_path / "t.jsonl", *rows)))
    held, _, _ = read_rows(str(write_rows(tmp_path / "e.jsonl", {"question": "x", "answer": "a"}, rows[3])))
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


def test_compressed_files_read_like_plain_ones(tmp_path):
    import pyarrow

    plain = GOOD + b'{"question": "c", "answer": "d"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    with pyarrow.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as file:
        file.write(plain)
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        rows, kind, _ = read_rows(str(tmp_path / name))
        assert kind == "question+answer"
        assert [row.place for row in rows] == [f"{tmp_path / name}:1", f"{tmp_path / name}:2"]


def test_a_folder_gives_the_rows_of_all_its_files_in_order(tmp_path):
    write_rows(tmp_path / "b.jsonl", {"text": "b"})
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.tsv").write_text("text\tnote\na\tx\n")
    write_rows(tmp_path / "sub/c.jsonl", {"text": "c"})
    (tmp_path / "readme.md").write_text("not rows")
    rows, _, _ = read_rows(str(tmp_path))
    assert [row.text for row in rows] == ["a", "b", "c"]


def test_sharegpt_turns_become_messages_with_tool_calls(tmp_path):
    turns = [
        ("human", "hi"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "3"),
        ("gpt", "done"),
    ]
    row = {
        "conversations": [{"from": who, "value": said} for who, said in turns],
        "tools": '[{"name": "f"}]',
        "system": "s",
    }
    [found], kind, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row)))
    assert kind == "sharegpt"
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert found.trained == (False, False, True, False, True)
    assert found.tools == [{"name": "f"}]


def test_a_message_of_weight_0_is_context(tmp_path):
    def said(role, weight, name="weight"):
        return {"role": role, "content": "a", name: weight}

    row = {
        "messages": [
            said("user", 0),
            said("assistant", 0),
            said("user", 0.0, "loss_weight"),
            said("assistant", 1.0, "loss_weight"),
        ]
    }
    [found], _, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", row)))
    assert found.trained == (False, False, False, True)
    assert all(set(message) == {"role", "content"} for message in found.messages)
    for bad in (0.5, 2, "1", True):
        row = {"messages": [said("user", 0), said("assistant", bad)]}
        with pytest.raises(DataError, match=r"r.jsonl:1: messages\[1\].weight: `.*`; expected 0 or 1"):
            read_rows(str(write_rows(tmp_path / "r.jsonl", row)))


def test_text_with_role_markers_is_split_into_turns(tmp_path):
    text = "### Human: What is 2+2?\n### Assistant: 4### Human: Sure?### Assistant: Yes."
    [found], kind, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", {"text": text})))
    assert kind == "marked-text"
    assert [(m["role"], m["content"]) for m in found.messages] == [
        ("user", "What is 2+2?"), ("assistant", "4"), ("user", "Sure?"), ("assistant", "Yes.")
    ]  # fmt: skip
    _, kind, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", {"text": text}, {"text": "plain"})))
    assert kind == "text"


def test_the_format_is_recognised_over_all_rows_not_by_the_first(tmp_path):
    path = write_rows(tmp_path / "r.jsonl", {"text": "a", "question": "q"}, *[{"question": "q", "answer": "a"}] * 3)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert (
        str(caught.value)
        == f"{path}:1: field `answer` is missing; the rows are question+answer. Fix or remove the line."
    )


def test_a_forced_format_and_mapped_columns_win(tmp_path):
    path = write_rows(
        tmp_path / "r.jsonl", {"messages": CHAT["messages"], "text": "t", "problem": "p", "solution": "s"}
    )
    rows, kind, _ = read_rows(str(path), kind="text")
    assert (kind, rows[0].text) == ("text", "t")
    rows, kind, _ = read_rows(str(path), kind="question+answer", columns={"question": "problem", "answer": "solution"})
    assert [message["content"] for message in rows[0].messages] == ["p", "s"]


def test_broken_rows_are_dropped_counted_and_listed_when_asked(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(GOOD + b"{\n" + GOOD + b'{"question": "a", "answer": ""}\n' + b"\xff\n")
    rows, _, rejected = read_rows(str(path), on_bad_row="drop")
    assert len(rows) == 2
    assert [line.split(": ")[0] for line in rejected] == [f"{path}:{line}" for line in (2, 4, 5)]


@pytest.mark.parametrize("weight", [0.25, 1, 2.5])
def test_a_weight_takes_that_share_of_the_rows(weight, tmp_path):
    rows, _, _ = read_rows(str(write_rows(tmp_path / "r.jsonl", *[{"text": f"t{i}"} for i in range(40)])))
    weighted = weigh(rows, weight, seed=3)
    assert len(weighted) == 40 * weight
    assert weighted == weigh(rows, weight, seed=3)
    counts = {row.text: sum(other.text == row.text for other in weighted) for row in rows}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a \\ud83d b"}\n')
    with pytest.raises(DataError, match=r"r.jsonl:1: text: half of a surrogate pair"):
        read_rows(str(path))


@pytest.mark.scorecard(row="R14")
def test_a_prompt_in_two_sources_stays_on_one_side_and_weights_take_only_training_rows(tmp_path):
    from lorasmith.data.prepare import read_train_and_eval
    from lorasmith.recipe import Data

    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", *[{"question": f"q{i}", "answer": f"{name}{i}"} for i in range(40)])
    sources = [str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "b.jsonl"), "weight": 2}]
    train, held, _ = read_train_and_eval(Data(train=sources, eval_fraction=0.2), seed=1)
    assert len(held) == 16
    assert not {row.prompt_key for row in train} & {row.prompt_key for row in held}
    assert len(train) == 32 + 2 * 32
