"""What is no row is refused in one line, `file:line: what, what to do`; what is one, however odd, is read as it stands.

Each refusal's text is written out here, so that a reader sees what a user sees.
"""

import datetime
import decimal
import gzip
import io
import json
import random
import re
import time
from pathlib import Path

import pytest
from conftest import launch

from lorasmith.data.formats import read_prompts, read_rows
from lorasmith.data.rows import check_no_overlap
from lorasmith.errors import DataError

pytestmark = pytest.mark.scorecard(row="R6")

TO_DO = re.compile(r"Fix|Save|Give|Fetch|Rename|Write|Keep|Run|Unpack|End |expected|only|Check|must", re.IGNORECASE)
FIX = "Fix or remove the line."
WANTED = (
    "expected one of: messages, sharegpt, prompt+completion, instruction+output, question+answer, text. "
    "Rename them, or map them with data.columns."
)
ENDINGS = "expected one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet, plain or with .gz or .zst."
DAMAGED = "the compressed data is damaged or cut off. Fetch or write the file again."
ROLES = "expected one of system, developer, user, assistant, tool."
SPEAKERS = "expected one of human, user, gpt, assistant, system, function_call, observation, tool."


def refusal(path: Path, read=read_rows) -> str:
    """The one line that a file is refused with, from behind its folder; found in under 2 s of work."""
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        read(str(path))
    text = str(caught.value)
    assert time.process_time() - start < 2
    assert len(text.splitlines()) == 1
    assert TO_DO.search(text.partition(": ")[2]), "it does not say what to do"
    text.encode("utf-8")
    assert text.startswith(str(path))
    return text.removeprefix(f"{path.parent}/")


def zst(data: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(data, "zstd", asbytes=True)


def parquet(columns: dict) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


# Lines that are no JSON, or only by some readers. In the file they stand behind a good line and an empty one.
LINES = {
    "cut inside a text": (b'{"text": "a', "unterminated string starting at at column 10"),
    "cut inside a name": (b'{"te', "unterminated string starting at at column 2"),
    "cut behind a name": (b'{"text"', "expecting ':' delimiter at column 8"),
    "cut behind the colon": (b'{"text":', "expecting value at column 9"),
    "cut behind a value": (b'{"text": "a"', "expecting ',' delimiter at column 13"),
    "cut behind a comma": (b'{"text": "a",', "expecting property name enclosed in double quotes at column 14"),
    "cut inside an escape": (b'{"text": "a\\', "unterminated string starting at at column 10"),
    "cut inside a number": (b'{"text": "a", "n": -', "expecting value at column 20"),
    "cut inside a word": (b'{"text": "a", "n": tru', "expecting value at column 20"),
    "cut inside a list": (b'{"text": "a", "n": [1, 2', "expecting ',' delimiter at column 25"),
    "no opening brace": (b'"text": "a"}', "extra data at column 7"),
    "a brace too many": (b'{"text": "a"}}', "extra data at column 14"),
    "the wrong bracket": (b'{"text": ["a"}]', "expecting ',' delimiter at column 14"),
    "no colon": (b'{"text" "a"}', "expecting ':' delimiter at column 9"),
    "an equals sign": (b'{"text" = "a"}', "expecting ':' delimiter at column 9"),
    "no value": (b'{"text": }', "expecting value at column 10"),
    "no comma": (b'{"text": "a" "n": 1}', "expecting ',' delimiter at column 14"),
    "two commas": (b'{"text": "a",, "n": 1}', "expecting property name enclosed in double quotes at column 14"),
    "a trailing comma": (b'{"text": "a",}', "a comma too many at column 13"),
    "a trailing comma and space": (b'{"text": "a" , }', "a comma too many at column 14"),
    "a trailing comma in a list": (b'{"text": "a", "n": [1,]}', "a comma too many at column 22"),
    "a comma behind the row": (b'{"text": "a"},', "extra data at column 14"),
    "two objects": (b'{"text": "a"}{"text": "b"}', "extra data at column 14"),
    "two objects with space": (b'{"text": "a"} {"text": "b"}', "extra data at column 15"),
    "two objects in an old Mac's lines": (b'{"text": "a"}\r{"text": "b"}', "extra data at column 15"),
    "a comment behind": (b'{"text": "a"} // b', "extra data at column 15; JSON has no comments"),
    "a comment alone": (b"# rows", "expecting value at column 1; JSON has no comments"),
    "a comment inside": (b'{"text": /* b */ "a"}', "expecting value at column 10; JSON has no comments"),
    "single quotes": (
        b"{'text': 'a'}",
        "expecting property name enclosed in double quotes at column 2; JSON has no single quotes",
    ),
    "a single-quoted value": (b"{\"text\": 'a'}", "expecting value at column 10; JSON has no single quotes"),
    "curly quotes": (
        "{“text”: “a”}".encode(),
        "expecting property name enclosed in double quotes at column 2",
    ),
    "no quotes": (b'{text: "a"}', "expecting property name enclosed in double quotes at column 2"),
    "a number as a name": (b'{1: "a"}', "expecting property name enclosed in double quotes at column 2"),
    "Python's None": (b'{"text": None}', "expecting value at column 10; JSON writes true, false and null"),
    "Python's True": (b'{"text": "a", "n": True}', "expecting value at column 20; JSON writes true, false and null"),
    "Python's False": (
        b'{"text": "a", "n": [False]}',
        "expecting value at column 21; JSON writes true, false and null",
    ),
    "Python's tuple": (b'{"text": ("a", 1)}', "expecting value at column 10"),
    "Python's bytes": (b'{"text": b"a"}', "expecting value at column 10"),
    "undefined": (b'{"text": undefined}', "expecting value at column 10"),
    "NaN": (b'{"text": "a", "n": NaN}', "`NaN` is not a JSON number"),
    "Infinity": (b'{"text": "a", "n": Infinity}', "`Infinity` is not a JSON number"),
    "minus Infinity": (b'{"text": "a", "n": [-Infinity]}', "`-Infinity` is not a JSON number"),
    "a float beyond all bounds": (b'{"text": "a", "n": 1e999}', "`1e999` is too large for a number"),
    "a float of many digits": (
        b'{"text": "a", "n": -' + b"9" * 400 + b".5}",
        f"`-{'9' * 59}...` is too large for a number",
    ),
    "a huge whole number": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "a whole number of over 4300 digits"),
    "a number with a zero before": (b'{"text": "a", "n": 01}', "expecting ',' delimiter at column 21"),
    "a number with a plus": (b'{"text": "a", "n": +1}', "expecting value at column 20"),
    "a number with a bare point": (b'{"text": "a", "n": 1.}', "expecting ',' delimiter at column 21"),
    "a number without a digit before the point": (b'{"text": "a", "n": .5}', "expecting value at column 20"),
    "a hexadecimal number": (b'{"text": "a", "n": 0x1F}', "expecting ',' delimiter at column 21"),
    "a quote not escaped": (b'{"text": "say "a" now"}', "expecting ',' delimiter at column 16"),
    "a tab not escaped": (b'{"text": "a\tb"}', "invalid control character at at column 12"),
    "a NUL byte in a text": (
        b'{"text": "a\0b"}',
        "invalid control character at at column 12; a NUL byte, as in UTF-16; save the file as UTF-8",
    ),
    "a NUL byte between": (
        b'{"text":\0"a"}',
        "expecting value at column 9; a NUL byte, as in UTF-16; save the file as UTF-8",
    ),
    "UTF-16 without a mark": (
        '{"text": "a"}'.encode("utf-16-le"),
        "expecting property name enclosed in double quotes at column 2; a NUL byte, as in UTF-16; "
        "save the file as UTF-8",
    ),
    "an unknown escape": (b'{"text": "\\x41"}', "invalid \\escape at column 11"),
    "a Windows path": (b'{"text": "C:\\data"}', "invalid \\escape at column 13"),
    "a short escape": (b'{"text": "\\u12"}', "invalid \\uXXXX escape at column 12"),
    "an escape with no number": (b'{"text": "\\u12G4"}', "invalid \\uXXXX escape at column 12"),
    "a byte order mark on a later line": (
        b'\xef\xbb\xbf{"text": "a"}',
        "expecting value at column 1; a byte order mark inside the file",
    ),
    "a no-break space": ('\u00a0{"text": "a"}'.encode(), "expecting value at column 1"),
    "a row behind spaces, cut": (b'   {"text": "a', "unterminated string starting at at column 13"),
    "a field twice": (b'{"text": "a", "text": "a"}', "field `text` is given twice"),
    "a field twice deep inside": (b'{"text": "a", "n": [{"b": 1, "b": 2}]}', "field `b` is given twice"),
    "a field twice, one escaped": (b'{"text": "a", "te\\u0078t": "b"}', "field `text` is given twice"),
    "a field twice with a line end in its name": (b'{"a\\nb": 1, "a\\nb": 2}', "field `a\\nb` is given twice"),
    "deep lists": (b"[" * 50_000, "maximum recursion depth exceeded: nested too deep"),
    "deep objects": (b'{"a":' * 50_000, "maximum recursion depth exceeded: nested too deep"),
    "a line of a log": (b"INFO 12:00 done", "expecting value at column 1"),
    "a csv line": (b"a,b,c", "expecting value at column 1"),
    "yaml": (b"text: a", "expecting value at column 1"),
    "a word": (b"nul", "expecting value at column 1"),
    "Ctrl-Z": (b"\x1a", "expecting value at column 1"),
    "a merge conflict": (b"<<<<<<< HEAD", "expecting value at column 1"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_line_that_is_no_json_is_refused(case, tmp_path):
    line, reason = LINES[case]
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    assert refusal(path) == f"r.jsonl:3: not valid JSON ({reason}). {FIX}"
    rows, _, rejected = read_rows(str(path), on_bad_row="drop")
    assert [row.text for row in rows] == ["a", "b"]
    assert rejected == [f"{path}:3: not valid JSON ({reason}). {FIX}"]


ENCODINGS = {
    "latin-1": ('{"text": "é"}'.encode("latin-1"), "invalid continuation byte"),
    "latin-1 at the end": ('{"text": "a"} é'.encode("latin-1"), "unexpected end of data"),
    "Windows' quotes": ('{"text": "“a”"}'.encode("cp1252"), "invalid start byte"),
    "Shift-JIS": ('{"text": "日本"}'.encode("shift-jis"), "invalid start byte"),
    "a character cut in two": ('{"text": "日'.encode()[:-1], "unexpected end of data"),
    "a surrogate as bytes": (b'{"text": "\xed\xa0\xbd"}', "invalid continuation byte"),
    "a slash in two bytes": (b'{"text": "\xc0\xaf"}', "invalid start byte"),
    "a character past the last": (b'{"text": "\xf4\x90\x80\x80"}', "invalid continuation byte"),
    "a byte order mark of UTF-16 inside": (b'\xff\xfe{"text": "a"}', "invalid start byte"),
}


@pytest.mark.parametrize("case", ENCODINGS)
def test_a_line_that_is_not_utf_8_is_refused(case, tmp_path):
    line, reason = ENCODINGS[case]
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line)  # a line end would be part of some of these characters
    assert refusal(path) == f"r.jsonl:3: not UTF-8 ({reason}). Save the file as UTF-8."


USER = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}
CALL = {"name": "f", "arguments": {"x": 1}}
HALF = "a \ud83d b"
HALF_IS = f"half of a surrogate pair, which is no character. {FIX}"


def chat(message, **fields):
    return {"messages": [USER, message, SAID], **fields}


def said_by(**fields):
    return chat({"role": "assistant", "content": "c", **fields})


def calling(*calls):
    return said_by(tool_calls=list(calls))


def tools(value):
    return {"messages": [USER, SAID], "tools": value}


def turn(value, **fields):
    return {"conversations": [{"from": "human", "value": "a"}, value, {"from": "gpt", "value": "b"}], **fields}


def function_call(value):
    return turn({"from": "function_call", "value": value})


def talk(prompt=(USER,), completion=(SAID,)):
    return {"prompt": list(prompt), "completion": list(completion)}


NO_CALL = f"no function name; expected {{name, arguments}}. {FIX}"
NO_TOOL = f"no function name; expected {{name, description, parameters}}. {FIX}"
NO_TEXT_PART = "not a text part; only text can be trained on."
NO_MESSAGE = "expected an object with role and content."
NO_TURN = "expected an object with from and value."

# Rows that are JSON but not what their format says. In the file they stand behind a good row of the same format.
ROWS = {
    # any format
    "a list": (["a", "b"], "the row is a list; expected an object with named fields."),
    "a text": ("text", "the row is text; expected an object with named fields."),
    "a number": (3, "the row is a number; expected an object with named fields."),
    "true": (True, "the row is true or false; expected an object with named fields."),
    "null": (None, "the row is null; expected an object with named fields."),
    "another format": ({"question": "a", "answer": "b"}, f"field `text` is missing; the rows are text. {FIX}"),
    "a name in the wrong case": ({"Text": "a"}, f"field `text` is missing; the rows are text. {FIX}"),
    "a name with a space": ({"text ": "a"}, f"field `text` is missing; the rows are text. {FIX}"),
    "no fields": ({}, f"field `text` is missing; the rows are text. {FIX}"),
    # text
    "text: null": ({"text": None}, f"text: null; expected text. {FIX}"),
    "text: number": ({"text": 1}, f"text: a number; expected text. {FIX}"),
    "text: float": ({"text": 1.5}, f"text: a number; expected text. {FIX}"),
    "text: false": ({"text": False}, f"text: true or false; expected text. {FIX}"),
    "text: list": ({"text": ["a"]}, f"text: a list; expected text. {FIX}"),
    "text: object": ({"text": {"text": "a"}}, f"text: an object; expected text. {FIX}"),
    "text: empty": ({"text": ""}, f"text: empty. {FIX}"),
    "text: white": ({"text": " \n\u3000"}, f"text: empty. {FIX}"),
    "text: half a character": ({"text": HALF}, f"text: {HALF_IS}"),
    "text: halves in the wrong order": ({"text": "\ude00\ud83d"}, f"text: {HALF_IS}"),
    # messages
    "messages: null": ({"messages": None}, "messages: null; expected a list of messages."),
    "messages: object": ({"messages": USER}, "messages: an object; expected a list of messages."),
    "messages: empty object": ({"messages": {}}, "messages: an object; expected a list of messages."),
    "messages: false": ({"messages": False}, "messages: true or false; expected a list of messages."),
    "messages: empty text": ({"messages": ""}, "messages: text; expected a list of messages."),
    "messages: JSON as text": ({"messages": "[]"}, "messages: text; expected a list of messages."),
    "messages: empty": ({"messages": []}, "messages: empty; expected a list of messages."),
    "message: null": (chat(None), f"messages[1]: null; {NO_MESSAGE}"),
    "message: list": (chat(["user", "a"]), f"messages[1]: a list; {NO_MESSAGE}"),
    "message: text": (chat("user: a"), f"messages[1]: text; {NO_MESSAGE}"),
    "role: missing": (chat({"content": "a"}), f"messages[1].role: `null`; {ROLES}"),
    "role: unknown": (chat({"role": "bot", "content": "a"}), f"messages[1].role: `bot`; {ROLES}"),
    "role: wrong case": (chat({"role": "User", "content": "a"}), f"messages[1].role: `User`; {ROLES}"),
    "role: with a space": (chat({"role": "user ", "content": "a"}), f"messages[1].role: `user `; {ROLES}"),
    "role: sharegpt's": (chat({"from": "human", "value": "a"}), f"messages[1].role: `null`; {ROLES}"),
    "role: OpenAI's old": (chat({"role": "function", "content": "a"}), f"messages[1].role: `function`; {ROLES}"),
    "role: number": (chat({"role": 1, "content": "a"}), f"messages[1].role: `1`; {ROLES}"),
    "role: list": (chat({"role": ["user"], "content": "a"}), f"messages[1].role: `a list`; {ROLES}"),
    "role: object": (chat({"role": {}, "content": "a"}), f"messages[1].role: `an object`; {ROLES}"),
    "role: two lines": (chat({"role": "a\nb\u2028c", "content": "a"}), f"messages[1].role: `a\\nb\\u2028c`; {ROLES}"),
    "role: half a character": (chat({"role": HALF, "content": "a"}), f"messages[1].role: `a \\ud83d b`; {ROLES}"),
    "role: long": (chat({"role": "u" * 9999, "content": "a"}), f"messages[1].role: `{'u' * 60}...`; {ROLES}"),
    "content: missing": (chat({"role": "user"}), f"messages[1].content: null; expected text. {FIX}"),
    "content: number": (said_by(content=4), f"messages[1].content: a number; expected text. {FIX}"),
    "content: object": (said_by(content={"text": "a"}), f"messages[1].content: an object; expected text. {FIX}"),
    "content: half a character": (said_by(content=HALF), f"messages[1].content: {HALF_IS}"),
    "content: empty": (
        said_by(content=""),
        f"messages[1].content: empty; the assistant must say something. {FIX}",
    ),
    "content: no parts": (
        said_by(content=[]),
        f"messages[1].content: empty; the assistant must say something. {FIX}",
    ),
    "part: text": (said_by(content=["a"]), f"messages[1].content[0]: {NO_TEXT_PART}"),
    "part: null": (said_by(content=[None]), f"messages[1].content[0]: {NO_TEXT_PART}"),
    "part: no type": (said_by(content=[{"text": "a"}]), f"messages[1].content[0]: {NO_TEXT_PART}"),
    "part: type of two": (
        said_by(content=[{"type": ["text"], "text": "a"}]),
        f"messages[1].content[0]: {NO_TEXT_PART}",
    ),
    "part: image": (
        said_by(content=[{"type": "text", "text": "a"}, {"type": "image", "image": "x"}]),
        f"messages[1].content[1]: {NO_TEXT_PART}",
    ),
    "part: no text": (
        said_by(content=[{"type": "text"}]),
        f"messages[1].content[0].text: null; expected text. {FIX}",
    ),
    "part: number": (
        said_by(content=[{"type": "text", "text": 3}]),
        f"messages[1].content[0].text: a number; expected text. {FIX}",
    ),
    "parts: a character over two": (
        said_by(content=[{"type": "text", "text": "\ud83d"}, {"type": "text", "text": "\ude00"}]),
        f"messages[1].content[0].text: {HALF_IS}",
    ),
    "name: number": (said_by(name=3), f"messages[1].name: a number; expected text. {FIX}"),
    "name: half a character": (said_by(name=HALF), f"messages[1].name: {HALF_IS}"),
    "thinking: list": (
        said_by(reasoning_content=["a"]),
        f"messages[1].reasoning_content: a list; expected text. {FIX}",
    ),
    "tool_call_id: number": (
        chat({"role": "tool", "content": "a", "tool_call_id": 7}),
        f"messages[1].tool_call_id: a number; expected text. {FIX}",
    ),
    "an extra field: half a character inside": (said_by(meta={"a": [HALF]}), f"messages[1].meta: {HALF_IS}"),
    "an extra field: half a character in its name": (said_by(**{HALF: 1}), f"messages[1]: {HALF_IS}"),
    "an extra field: deep": (said_by(meta=deep(101)), f"messages[1].meta: nested over 100 levels deep. {FIX}"),
    "no assistant": ({"messages": [USER]}, f"messages: no assistant turn, nothing to train on. {FIX}"),
    "all weights 0": (
        {"messages": [USER, {**SAID, "weight": 0}]},
        f"messages: all assistant turns have weight 0, nothing to train on. {FIX}",
    ),
    # weights
    "weight: half": (said_by(weight=0.5), "messages[1].weight: `0.5`; expected 0 or 1."),
    "weight: two": (said_by(weight=2), "messages[1].weight: `2`; expected 0 or 1."),
    "weight: negative": (said_by(weight=-1), "messages[1].weight: `-1`; expected 0 or 1."),
    "weight: text": (said_by(weight="1"), "messages[1].weight: `'1'`; expected 0 or 1."),
    "weight: true": (said_by(weight=True), "messages[1].weight: `true`; expected 0 or 1."),
    "weight: list": (said_by(weight=[1]), "messages[1].weight: `a list`; expected 0 or 1."),
    "weight: empty object": (said_by(loss_weight={}), "messages[1].weight: `an object`; expected 0 or 1."),
    "weight: two that differ": (
        said_by(weight=0, loss_weight=1),
        "messages[1]: weight and loss_weight differ. Keep one.",
    ),
    "weight: on a user": (
        chat({**USER, "weight": 1}),
        "messages[1].weight: 1 on a user turn; only the assistant's train.",
    ),
    # tool calls
    "tool_calls: object": (said_by(tool_calls=CALL), "messages[1].tool_calls: an object; expected a list of calls."),
    "tool_calls: empty object": (
        said_by(tool_calls={}),
        "messages[1].tool_calls: an object; expected a list of calls.",
    ),
    "tool_calls: JSON as text": (said_by(tool_calls="[]"), "messages[1].tool_calls: text; expected a list of calls."),
    "tool_calls: empty text": (said_by(tool_calls=""), "messages[1].tool_calls: text; expected a list of calls."),
    "tool_calls: zero": (said_by(tool_calls=0), "messages[1].tool_calls: a number; expected a list of calls."),
    "tool_calls: false": (
        said_by(tool_calls=False),
        "messages[1].tool_calls: true or false; expected a list of calls.",
    ),
    "tool_calls: of a user": (
        chat({**USER, "tool_calls": [CALL]}),
        f"messages[1].tool_calls: on a user turn; only the assistant calls. {FIX}",
    ),
    "tool_calls: none and no content": (
        said_by(content=None, tool_calls=[]),
        f"messages[1].content: null; expected text. {FIX}",
    ),
    "call: text": (calling("f(x=1)"), f"messages[1].tool_calls[0]: {NO_CALL}"),
    "call: null": (calling(CALL, None), f"messages[1].tool_calls[1]: {NO_CALL}"),
    "call: empty": (calling({}), f"messages[1].tool_calls[0]: {NO_CALL}"),
    "call: name is null": (calling({**CALL, "name": None}), f"messages[1].tool_calls[0]: {NO_CALL}"),
    "call: name is a number": (calling({**CALL, "name": 3}), f"messages[1].tool_calls[0]: {NO_CALL}"),
    "call: name is empty": (calling({**CALL, "name": " "}), f"messages[1].tool_calls[0]: {NO_CALL}"),
    "call: name is half a character": (calling({**CALL, "name": HALF}), f"messages[1].tool_calls[0].name: {HALF_IS}"),
    "call: function is null": (
        calling({"type": "function", "function": None}),
        f"messages[1].tool_calls[0]: {NO_CALL}",
    ),
    "call: function is text": (calling({"function": "f"}), f"messages[1].tool_calls[0]: {NO_CALL}"),
    "arguments: null": (
        calling({**CALL, "arguments": None}),
        "messages[1].tool_calls[0].arguments: null; expected an object.",
    ),
    "arguments: list": (
        calling({**CALL, "arguments": [1]}),
        "messages[1].tool_calls[0].arguments: a list; expected an object.",
    ),
    "arguments: a list as text": (
        calling({**CALL, "arguments": "[1]"}),
        "messages[1].tool_calls[0].arguments: a list; expected an object.",
    ),
    "arguments: JSON twice as text": (
        calling({**CALL, "arguments": '"{}"'}),
        "messages[1].tool_calls[0].arguments: text; expected an object.",
    ),
    "arguments: empty text": (
        calling({**CALL, "arguments": ""}),
        f"messages[1].tool_calls[0].arguments: not valid JSON (expecting value at column 1). {FIX}",
    ),
    "arguments: Python": (
        calling({**CALL, "arguments": "{'x': 1}"}),
        "messages[1].tool_calls[0].arguments: not valid JSON (expecting property name enclosed in double quotes at "
        f"column 2; JSON has no single quotes). {FIX}",
    ),
    "arguments: NaN": (
        calling({**CALL, "arguments": '{"x": NaN}'}),
        f"messages[1].tool_calls[0].arguments: not valid JSON (`NaN` is not a JSON number). {FIX}",
    ),
    "arguments: one twice": (
        calling({**CALL, "arguments": '{"x": 1, "x": 2}'}),
        f"messages[1].tool_calls[0].arguments: not valid JSON (field `x` is given twice). {FIX}",
    ),
    "arguments: endless as text": (
        calling({**CALL, "arguments": "[" * 50_000}),
        "messages[1].tool_calls[0].arguments: not valid JSON (maximum recursion depth exceeded: nested too deep). "
        f"{FIX}",
    ),
    "arguments: deep": (
        calling({**CALL, "arguments": {"x": deep(100)}}),
        f"messages[1].tool_calls[0].arguments: nested over 100 levels deep. {FIX}",
    ),
    "arguments: half a character": (
        calling({**CALL, "arguments": {"x": HALF}}),
        f"messages[1].tool_calls[0].arguments: {HALF_IS}",
    ),
    "arguments: half a character in escaped text": (
        calling({**CALL, "arguments": '{"\\ud83d": 1}'}),
        f"messages[1].tool_calls[0].arguments: {HALF_IS}",
    ),
    # tools
    "tools: object": (tools({"name": "f"}), "tools: an object; expected a list of objects."),
    "tools: number": (tools(0), "tools: a number; expected a list of objects."),
    "tools: false": (tools(False), "tools: true or false; expected a list of objects."),
    "tools: a word": (tools("search"), f"tools: not valid JSON (expecting value at column 1). {FIX}"),
    "tools: cut": (tools('[{"name": "f"}'), f"tools: not valid JSON (expecting ',' delimiter at column 15). {FIX}"),
    "tools: an object as text": (tools('{"name": "f"}'), "tools: an object; expected a list of objects."),
    "tools: endless as text": (
        tools("[" * 50_000),
        f"tools: not valid JSON (maximum recursion depth exceeded: nested too deep). {FIX}",
    ),
    "tool: text": (tools(["search"]), f"tools[0]: {NO_TOOL}"),
    "tool: null": (tools([{"name": "f"}, None]), f"tools[1]: {NO_TOOL}"),
    "tool: empty": (tools([{}]), f"tools[0]: {NO_TOOL}"),
    "tool: name is a number": (tools([{"name": 3}]), f"tools[0]: {NO_TOOL}"),
    "tool: function without a name": (tools([{"type": "function", "function": {}}]), f"tools[0]: {NO_TOOL}"),
    "tool: parameters as text": (
        tools([{"name": "f", "parameters": "{}"}]),
        "tools[0].parameters: text; expected an object.",
    ),
    "tool: deep": (
        tools([{"name": "f", "parameters": {"x": deep(99)}}]),
        f"tools[0]: nested over 100 levels deep. {FIX}",
    ),
    "tool: half a character": (tools([{"name": "f", "description": HALF}]), f"tools[0]: {HALF_IS}"),
    # sharegpt
    "conversations: null": ({"conversations": None}, "conversations: null; expected a list of turns."),
    "conversations: empty": ({"conversations": []}, "conversations: empty; expected a list of turns."),
    "conversations: empty text": ({"conversations": ""}, "conversations: text; expected a list of turns."),
    "conversations: object": (
        {"conversations": {"from": "gpt"}},
        "conversations: an object; expected a list of turns.",
    ),
    "turn: text": (turn("hi"), f"conversations[1]: text; {NO_TURN}"),
    "turn: null": (turn(None), f"conversations[1]: null; {NO_TURN}"),
    "from: missing": (turn({"value": "a"}), f"conversations[1].from: `null`; {SPEAKERS}"),
    "from: unknown": (turn({"from": "bing", "value": "a"}), f"conversations[1].from: `bing`; {SPEAKERS}"),
    "from: list": (turn({"from": ["gpt"], "value": "a"}), f"conversations[1].from: `a list`; {SPEAKERS}"),
    "from: object": (turn({"from": {}, "value": "a"}), f"conversations[1].from: `an object`; {SPEAKERS}"),
    "value: missing": (turn({"from": "gpt"}), f"conversations[1].value: null; expected text. {FIX}"),
    "value: list": (turn({"from": "gpt", "value": ["a"]}), f"conversations[1].value: a list; expected text. {FIX}"),
    "value: empty": (
        turn({"from": "gpt", "value": "\n"}),
        f"conversations[1].value: empty; the assistant must say something. {FIX}",
    ),
    "value: half a character": (turn({"from": "human", "value": HALF}), f"conversations[1].value: {HALF_IS}"),
    "turn: weight": (
        turn({"from": "gpt", "value": "a", "weight": "0"}),
        "conversations[1].weight: `'0'`; expected 0 or 1.",
    ),
    "system: number": (turn({"from": "gpt", "value": "a"}, system=3), f"system: a number; expected text. {FIX}"),
    "system: zero": (turn({"from": "gpt", "value": "a"}, system=0), f"system: a number; expected text. {FIX}"),
    "system: half a character": (turn({"from": "gpt", "value": "a"}, system=HALF), f"system: {HALF_IS}"),
    "function_call: words": (
        function_call("search it"),
        f"conversations[1].value: not valid JSON (expecting value at column 1). {FIX}",
    ),
    "function_call: number": (function_call("3"), f"conversations[1].value[0]: {NO_CALL}"),
    "function_call: null": (function_call("null"), f"conversations[1].value[0]: {NO_CALL}"),
    "function_call: no calls": (
        function_call("[]"),
        f"conversations[1].value: no call; expected {{name, arguments}}. {FIX}",
    ),
    "function_call: endless": (
        function_call("[" * 50_000),
        f"conversations[1].value: not valid JSON (maximum recursion depth exceeded: nested too deep). {FIX}",
    ),
    "function_call: arguments": (
        function_call('{"name": "f", "arguments": 3}'),
        "conversations[1].value[0].arguments: a number; expected an object.",
    ),
    "sharegpt's tools": (
        turn({"from": "gpt", "value": "a"}, tools="[1]"),
        f"tools[0]: {NO_TOOL}",
    ),
    "no gpt": (
        {"conversations": [{"from": "human", "value": "a"}]},
        f"conversations: no assistant turn, nothing to train on. {FIX}",
    ),
    # prompt and completion
    "prompt: null": ({"prompt": None, "completion": "b"}, f"prompt: null; expected text. {FIX}"),
    "prompt: number": ({"prompt": 1, "completion": "b"}, f"prompt: a number; expected text. {FIX}"),
    "prompt: empty": ({"prompt": "", "completion": "b"}, f"prompt: empty. {FIX}"),
    "completion: null": ({"prompt": "a", "completion": None}, f"completion: null; expected text. {FIX}"),
    "completion: object": ({"prompt": "a", "completion": SAID}, f"completion: an object; expected text. {FIX}"),
    "completion: empty": ({"prompt": "a", "completion": "\t"}, f"completion: empty. {FIX}"),
    "completion: half a character": ({"prompt": "a", "completion": HALF}, f"completion: {HALF_IS}"),
    "prompt: talk, completion: text": (
        {"prompt": [USER], "completion": "b"},
        "completion: text; expected a list of messages.",
    ),
    "prompt: text, completion: talk": (
        {"prompt": "a", "completion": [SAID]},
        "prompt: text; expected a list of messages.",
    ),
    "prompt: empty talk": (talk(prompt=[]), "prompt: empty; expected a list of messages."),
    "completion: empty talk": (talk(completion=[]), "completion: empty; expected a list of messages."),
    "prompt: a message without content": (talk([{"role": "user"}]), f"prompt[0].content: null; expected text. {FIX}"),
    "completion: an unknown role": (
        talk(completion=[{"role": "gpt", "content": "b"}]),
        f"completion[0].role: `gpt`; {ROLES}",
    ),
    "completion: no assistant": (
        talk(completion=[USER]),
        f"completion: no assistant turn, nothing to train on. {FIX}",
    ),
    "prompt: a weight": (talk([{**USER, "weight": 5}]), "prompt[0].weight: `5`; expected 0 or 1."),
    "prompt: trained": (
        talk([USER, {**SAID, "weight": 1}, USER]),
        f"prompt[1].weight: 1 in a prompt; only the completion is trained. {FIX}",
    ),
    # instruction and output
    "instruction: null": ({"instruction": None, "output": "b"}, f"instruction: null; expected text. {FIX}"),
    "instruction: list": ({"instruction": ["a"], "output": "b"}, f"instruction: a list; expected text. {FIX}"),
    "instruction: empty": ({"instruction": "", "output": "b"}, f"instruction: empty. {FIX}"),
    "input: number": ({"instruction": "a", "input": 7, "output": "b"}, f"input: a number; expected text. {FIX}"),
    "input: list": ({"instruction": "a", "input": [], "output": "b"}, f"input: a list; expected text. {FIX}"),
    "input: half a character": ({"instruction": "a", "input": HALF, "output": "b"}, f"input: {HALF_IS}"),
    "output: number": ({"instruction": "a", "output": 7}, f"output: a number; expected text. {FIX}"),
    "output: empty": ({"instruction": "a", "output": ""}, f"output: empty. {FIX}"),
    "output: missing": ({"instruction": "a"}, f"field `output` is missing; the rows are instruction+output. {FIX}"),
    # question and answer
    "question: null": ({"question": None, "answer": "b"}, f"question: null; expected text. {FIX}"),
    "question: object": ({"question": {}, "answer": "b"}, f"question: an object; expected text. {FIX}"),
    "answer: true": ({"question": "a", "answer": True}, f"answer: true or false; expected text. {FIX}"),
    "answer: list": ({"question": "a", "answer": []}, f"answer: a list; expected text. {FIX}"),
    "answer: empty": ({"question": "a", "answer": " "}, f"answer: empty. {FIX}"),
}
FORMATS = {
    "messages": {"messages": [USER, SAID]},
    "conversations": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "prompt": {"prompt": "a", "completion": "b"},
    "instruction": {"instruction": "a", "output": "b"},
    "question": {"question": "a", "answer": "b"},
    "text": {"text": "a"},
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_of_the_wrong_shape_is_refused(case, tmp_path):
    row, reason = ROWS[case]
    mixed = case in ("another format", "a name in the wrong case")
    first = next((good for name, good in FORMATS.items() if isinstance(row, dict) and name in row), FORMATS["text"])
    path = tmp_path / "r.jsonl"
    lines = [FORMATS["text"]] * 2 + [row] if mixed else [first, row]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert refusal(path) == f"r.jsonl:{len(lines)}: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no marker", f"text: no role marker at its start, such as `### Human:`. {FIX}"),
        ("a ### Human: a ### Assistant: b", f"text: no role marker at its start, such as `### Human:`. {FIX}"),
        ("### Human: a", f"text: no assistant turn, nothing to train on. {FIX}"),
        ("### Human: a ### Assistant: ", f"text[1].content: empty; the assistant must say something. {FIX}"),
        ("### Human: \ud83d ### Assistant: b", f"text: {HALF_IS}"),
        ("", f"text: empty. {FIX}"),
        (3, f"text: a number; expected text. {FIX}"),
    ],
)
def test_text_without_its_role_markers_is_refused(text, reason, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"text": text}))
    assert refusal(path, lambda source: read_rows(source, kind="marked-text")) == f"r.jsonl:1: {reason}"


GOOD_GZ = gzip.compress(b"".join(b'{"text": "row %d"}\n' % i for i in range(3000)))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LFS = "a git-lfs pointer in place of the file. Run `git lfs pull`."
PAGE = "a web page, not rows; often a login or an error. Fetch the file itself."
NO_ROWS = "no rows. Give at least one."
SEVERAL = "a row over several lines. Write it on one line, or all rows as a list `[...]` in a .json file."
COMMAS = "expected commas, or for tabs a name that ends in .tsv."
NO_PARQUET = "not readable as parquet (cut off, or a file of another kind). Fetch or write the file again."
ARROW = {"text": ["a", "b"]}

FILES = [
    # nothing in it, or something else than its name says
    ("r.jsonl", b"", NO_ROWS),
    ("r.jsonl", b"\xef\xbb\xbf", NO_ROWS),
    ("r.jsonl", b"\n \n\t\r\n", NO_ROWS),
    ("r.json", b"", NO_ROWS),
    ("r.json", b" [ ] ", NO_ROWS),
    ("r.csv", b"", NO_ROWS),
    ("r.csv", b"text\n", NO_ROWS),
    ("r.csv", b"text\n\n\n", NO_ROWS),
    ("r.parquet", parquet({"text": []}), NO_ROWS),
    ("r.jsonl.gz", gzip.compress(b""), NO_ROWS),
    ("r.jsonl", POINTER, LFS),
    ("r.csv", POINTER, LFS),
    ("r.parquet", POINTER, LFS),
    ("r.jsonl.gz", POINTER, LFS),
    ("r.jsonl", b"<!DOCTYPE html>\n<html><title>404</title></html>\n", PAGE),
    ("r.json", b"\n  <html lang='en'>\n", PAGE),
    ("r.csv", b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", PAGE),
    ("r.jsonl", '{"text": "a"}\n'.encode("utf-16"), "UTF-16. Save the file as UTF-8."),
    ("r.jsonl", b'\xfe\xff\0{\0"', "UTF-16. Save the file as UTF-8."),
    ("r.csv", "text\na\n".encode("utf-16"), "UTF-16. Save the file as UTF-8."),
    ("r.jsonl", GOOD_GZ, "compressed by gzip. End its name in .gz, or unpack it."),
    ("r.jsonl", zst(b'{"text": "a"}\n'), "compressed by zstd. End its name in .zst, or unpack it."),
    ("r.jsonl", parquet(ARROW), "a parquet file. End its name in .parquet."),
    ("r.csv", b"PK\x03\x04\x14\0\x06\0", "a zip archive or a spreadsheet. Unpack it, or export it as CSV."),
    ("r.txt", b'{"text": "a"}', f"a `.txt` file; {ENDINGS}"),
    ("r.yaml.gz", GOOD_GZ, f"a `.yaml` file; {ENDINGS}"),
    ("rows", b'{"text": "a"}', f"a file without ending; {ENDINGS}"),
    ("rows.gz", GOOD_GZ, f"a `.gz` file; {ENDINGS}"),
    # columns that fit no format
    ("r.jsonl", b'{"Question": "a", "Answer": "b"}', f"1: r.jsonl has columns [Question, Answer]; {WANTED}"),
    ("r.jsonl", b"{}", f"1: r.jsonl has columns []; {WANTED}"),
    ("r.jsonl", b'{"a\\nb": 1, "\\ud83d": 2}', f"1: r.jsonl has columns [a\\nb, \\ud83d]; {WANTED}"),
    ("r.json", b'{"data": [{"text": "a"}]}', f"1: r.json has columns [data]; {WANTED}"),
    (
        "r.jsonl",
        json.dumps({f"column{i}": 1 for i in range(1000)}).encode(),
        f"1: r.jsonl has columns [{', '.join(f'column{i}' for i in range(99))[:200]}...]; {WANTED}",
    ),
    ("r.csv", b"prompt,response\na,b\n", f"2: r.csv has columns [prompt, response]; {WANTED}"),
    ("r.parquet", parquet({"label": [1]}), f"1: r.parquet has columns [label]; {WANTED}"),
    ("r.jsonl", b'{"prompt": "a"}\n{"completion": "b"}\n', f"1: r.jsonl has columns [prompt]; {WANTED}"),
    (
        "r.jsonl",
        b'{"prompt": "a", "completion": "b"}\n{"question": "a", "answer": "b"}\n',
        f"2: field `prompt` is missing; the rows are prompt+completion. {FIX}",
    ),
    # json
    ("r.json", b"[", "1: not valid JSON (expecting value at column 2). Fix the file."),
    ("r.json", b'[{"text": "a"}', "1: not valid JSON (expected `,` or `]` after a row). Fix the file."),
    ("r.json", b'[\n{"text": "a"}\n', "3: not valid JSON (expected `,` or `]` after a row). Fix the file."),
    (
        "r.json",
        b'[\n{"text": "a"}\n{"text": "b"}\n]',
        "3: not valid JSON (expected `,` or `]` after a row). Fix the file.",
    ),
    ("r.json", b'[\n{"text": "a"},\n', "3: not valid JSON (expecting value at column 1). Fix the file."),
    ("r.json", b'[\n{"text": "a"},\n]', "2: not valid JSON (a comma too many at column 14). Fix the file."),
    ("r.json", b"[,]", "1: not valid JSON (expecting value at column 2). Fix the file."),
    ("r.json", b'[{"text": "a"},,{"text": "b"}]', "1: not valid JSON (expecting value at column 16). Fix the file."),
    (
        "r.json",
        b'[\n {\n  "text": "a"\n  "n": 1\n }\n]',
        "4: not valid JSON (expecting ',' delimiter at column 3). Fix the file.",
    ),
    (
        "r.json",
        b'[\n {"text": "a"},\n {"text": "b\n"}\n]',
        "3: not valid JSON (invalid control character at at column 13). Fix the file.",
    ),
    ("r.json", b'[{"text": "a"}}', "1: not valid JSON (expected `,` or `]` after a row). Fix the file."),
    (
        "r.json",
        b'[\n {"text": "a"},\n {"text": NaN}\n]',
        "3: not valid JSON (`NaN` is not a JSON number). Fix the file.",
    ),
    (
        "r.json",
        b'[\n {"text": "a"},\n {"text": "b", "text": "c"}]',
        "3: not valid JSON (field `text` is given twice). Fix the file.",
    ),
    (
        "r.json",
        b"[" * 50_000,
        "1: not valid JSON (maximum recursion depth exceeded: nested too deep). Fix the file.",
    ),
    (
        "r.json",
        b'[\n{"text": "a"},\n // more\n]',
        "3: not valid JSON (expecting value at column 2; JSON has no comments). Fix the file.",
    ),
    ("r.json", b'[{"text": "a"}]\n\n[{"text": "b"}]', "3: text after the closing `]`. Fix the file."),
    ("r.json", '[{"text": "a"}]\u00a0'.encode(), "1: text after the closing `]`. Fix the file."),
    ("r.json", b'[\n["a"]]', "2: the row is a list; expected an object with named fields."),
    ("r.json", b'[\n\n"a"]', "3: the row is text; expected an object with named fields."),
    ("r.json", b"3", "1: the row is a number; expected an object with named fields."),
    ("r.json", b'[\n{"text": "\xff"}]', "2: not UTF-8 (invalid start byte). Save the file as UTF-8."),
    ("r.json", b'{\n  "text": "a"\n}\n', f"1: {SEVERAL}"),
    ("r.jsonl", b'{\n  "text": "a"\n}\n', f"1: {SEVERAL}"),
    (
        "r.jsonl",
        b'[\n{"text": "a"},\n{"text": "b"}\n]\n',
        "1: a list over several lines; here each line is a row. End the file's name in .json.",
    ),
    ("r.jsonl", b'[{"text": "a"}]\n', "1: the row is a list; expected an object with named fields."),
    # csv and tsv
    ("r.csv", b"text,n\na\n", "2: 1 cells; the header has 2 columns. Fix the line."),
    ("r.csv", b'text,n\n"a\nb",1\na,1,2\n', "4: 3 cells; the header has 2 columns. Fix the line."),
    ("r.csv", b"text,n\nI say, old chap,1\n", "2: 3 cells; the header has 2 columns. Fix the line."),
    ("r.csv", b"text,n,n\na,1,2\n", "1: a column name is given twice. Rename one."),
    ("r.csv", b"text, text \na,b\n", "1: a column name is given twice. Rename one."),
    ("r.csv", b",,\na,b,c\n", "1: a column name is given twice. Rename one."),
    ("r.csv", b"\n\n,\na,b\n", "3: a column name is given twice. Rename one."),
    ("r.csv", b'""\na\n', f"2: r.csv has columns []; {WANTED}"),
    ("r.csv", b"text;n\na;1\n", f"1: columns separated by ';'; {COMMAS}"),
    ("r.csv", b"text\tn\na\t1\n", f"1: columns separated by '\\t'; {COMMAS}"),
    ("r.tsv", b"text,n\na,1\n", "1: columns separated by ','; expected tabs."),
    ("r.csv", b'text\na\n"b\nc\n', "3: not valid CSV (unexpected end of data). Fix the line."),
    ("r.csv", b'text\n"a"b\n', "2: not valid CSV (',' expected after '\"'). Fix the line."),
    ("r.tsv", b'text\n"a" b\n', "2: not valid CSV ('\\t' expected after '\"'). Fix the line."),
    ("r.csv", b'text\n"say \\"a\\" now"\n', "2: not valid CSV (',' expected after '\"'). Fix the line."),
    ("r.csv", b"text\n\xe9\n", "2: not UTF-8 (invalid continuation byte). Save the file as UTF-8."),
    ("r.csv", "text\na\n".encode("utf-16-le"), "1: a NUL byte, as in UTF-16. Save the file as UTF-8."),
    ("r.csv", b"text\na\nb\0\n", "3: a NUL byte, as in UTF-16. Save the file as UTF-8."),
    ("r.csv", b'text\n""\n', f"2: text: empty. {FIX}"),
    ("r.csv", b"question,answer\na,\n", f"2: answer: empty. {FIX}"),
    ("r.csv", b'messages\n"[{""role"": ""user""}]"\n', "2: messages: text; expected a list of messages."),
    # compressed
    ("r.jsonl.gz", b'{"text": "a"}\n', "not compressed, though its name ends in .gz. Rename it, or fetch it again."),
    ("r.jsonl.zst", b'{"text": "a"}\n', "not compressed, though its name ends in .zst. Rename it, or fetch it again."),
    ("r.jsonl.gz", b"", "not compressed, though its name ends in .gz. Rename it, or fetch it again."),
    ("r.jsonl.gz", GOOD_GZ[:-9], f"3001: {DAMAGED}"),
    ("r.jsonl.gz", GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:], f"3001: {DAMAGED}"),
    ("r.jsonl.gz", GOOD_GZ + b"and more", f"3001: {DAMAGED}"),
    ("r.jsonl.gz", GOOD_GZ[:40] + bytes(40) + GOOD_GZ[80:], f"1: {DAMAGED}"),
    ("r.jsonl.gz", GOOD_GZ[:12], f"1: {DAMAGED}"),
    ("r.json.gz", gzip.compress(b'[{"text": "a"}]')[:-3], DAMAGED),
    ("r.csv.gz", gzip.compress(b"text\na\n")[:-3], DAMAGED),
    (
        "r.jsonl.gz",
        gzip.compress(b'{"text": "a"}\n{"text": }\n'),
        f"2: not valid JSON (expecting value at column 10). {FIX}",
    ),
    ("r.jsonl.zst", zst(b'{"text": "a"}\n')[:-2], f"1: {DAMAGED}"),
    ("r.jsonl.zst", zst(b'{"text": "a"}\n') + b"and more", f"1: {DAMAGED}"),
    ("r.jsonl.zst", zst(b'{"text": "a"}\n')[:4] + b"\xff" * 40, f"1: {DAMAGED}"),
    ("r.csv.zst", zst(b"text\na\n")[:-2], DAMAGED),
    # parquet
    ("r.parquet", b"", f"1: {NO_PARQUET}"),
    ("r.parquet", b"text\na\n", f"1: {NO_PARQUET}"),
    ("r.parquet", parquet(ARROW)[:-5], f"1: {NO_PARQUET}"),
    ("r.parquet", parquet(ARROW)[50:], f"1: {NO_PARQUET}"),
    ("r.parquet.gz", gzip.compress(parquet(ARROW)), f"1: {NO_PARQUET}"),
    ("r.parquet", parquet({"text": [1, 2]}), f"1: text: a number; expected text. {FIX}"),
    ("r.parquet", parquet({"text": ["a", None]}), f"2: text: null; expected text. {FIX}"),
    ("r.parquet", parquet({"text": [b"a"]}), f"1: text: of type bytes; expected text. {FIX}"),
    ("r.parquet", parquet({"text": [["a"]]}), f"1: text: a list; expected text. {FIX}"),
    ("r.parquet", parquet({"text": [decimal.Decimal("1.5")]}), f"1: text: of type Decimal; expected text. {FIX}"),
    ("r.parquet", parquet({"text": [datetime.date(2026, 1, 1)]}), f"1: text: of type date; expected text. {FIX}"),
    (
        "r.parquet",
        parquet({"messages": [[USER, {**SAID, "sent": datetime.date(2026, 1, 1)}]]}),
        f'1: messages[1].sent: `"2026-01-01"` is no JSON value. {FIX}',
    ),
    (
        "r.parquet",
        parquet({"messages": [[{**USER, "weight": 1.0}, {**SAID, "weight": float("nan")}]]}),
        "1: messages[0].weight: 1 on a user turn; only the assistant's train.",
    ),
    (
        "r.parquet",
        parquet({"messages": [[{**USER, "weight": None}, {**SAID, "weight": float("nan")}]]}),
        "1: messages[1].weight: `NaN`; expected 0 or 1.",
    ),
]


@pytest.mark.parametrize(("name", "content", "reason"), FILES, ids=[f"{i}-{file[0]}" for i, file in enumerate(FILES)])
def test_a_file_that_is_no_rows_is_refused(name, content, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    between = ":" if re.match(r"\d+: ", reason) else ": "
    assert refusal(path) == f"{name}{between}{reason}"


def test_a_parquet_cell_that_python_cannot_hold_is_refused_alone(tmp_path):
    import pyarrow

    dates = pyarrow.array([0, 2**61], pyarrow.timestamp("us"))
    (tmp_path / "dates.parquet").write_bytes(parquet({"text": ["a", "b"], "day": dates}))
    where = "dates.parquet:2: day: not readable (date value out of range). Fix or remove the row."
    assert refusal(tmp_path / "dates.parquet") == where
    texts = pyarrow.array([b"a", b"\xff", b"c"], pyarrow.binary()).view(pyarrow.utf8())
    (tmp_path / "texts.parquet").write_bytes(parquet({"text": texts}))
    assert refusal(tmp_path / "texts.parquet") == (
        "texts.parquet:2: text: not readable ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte). "
        "Fix or remove the row."
    )
    rows, _, rejected = read_rows(str(tmp_path / "texts.parquet"), on_bad_row="drop")
    assert [(row.place[-1], row.text) for row in rows] == [("1", "a"), ("3", "c")]
    assert len(rejected) == 1


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    assert refusal(tmp_path / "r.parquet") == "r.parquet: a column name is given twice. Rename one."


def test_a_folder_names_the_file_that_is_wrong(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "README.md").write_text("# Rows")
    kinds = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet"
    assert refusal(folder) == f"rows: no rows in this folder; expected files of {kinds}."
    (folder / "a.jsonl").write_text("\n")
    assert refusal(folder) == "rows: no rows. Give at least one."
    (folder / "b.JSONL").write_text('{"text": "b"}\n{"text": 3}\n')
    assert refusal(folder) == f"rows/b.JSONL:2: text: a number; expected text. {FIX}"
    (folder / "a.jsonl").write_bytes(POINTER)
    assert refusal(folder) == f"rows/a.jsonl: {LFS}"
    (folder / "a.jsonl").unlink()
    (folder / "a.jsonl").symlink_to(folder / "gone.jsonl")
    gone = "not readable (no such file or directory). Check the path and who may read it."
    assert refusal(folder) == f"rows/a.jsonl: {gone}"
    missing = "no such file. Expected a path to rows, or a hub id such as org/name."
    assert refusal(folder / "gone.jsonl") == f"gone.jsonl: {missing}"


PROMPTS = {
    "a number": (3, "the row is a number; expected an object with named fields."),
    "true": (True, "the row is true or false; expected an object with named fields."),
    "a text with a field's name": ("messages", "the row is text; expected an object with named fields."),
    "null": (None, "the row is null; expected an object with named fields."),
    "no prompt": ({"text": "a"}, "nothing is asked; expected messages, prompt, instruction or question."),
    "prompt: number": ({"prompt": 3}, f"prompt: a number; expected text. {FIX}"),
    "prompt: empty": ({"prompt": []}, "prompt: empty; expected a list of messages."),
    "question: half a character": ({"question": HALF}, f"question: {HALF_IS}"),
    "messages: unknown role": ({"messages": [{"role": {}, "content": "a"}]}, f"messages[0].role: `an object`; {ROLES}"),
    "tools: text": ({"messages": [USER], "tools": ["f"]}, f"tools[0]: {NO_TOOL}"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_a_row_that_asks_nothing_is_refused(case, tmp_path):
    row, reason = PROMPTS[case]
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"question": "a"}) + "\n" + json.dumps(row))
    assert refusal(path, read_prompts) == f"r.jsonl:2: {reason}"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("r.jsonl", b"<!doctype html>\n", f": {PAGE}"),
        ("r.jsonl.gz", GOOD_GZ[:-9], f":3001: {DAMAGED}"),
        (
            "r.jsonl",
            json.dumps({"messages": [{"role": HALF + "\n", "content": "a"}]}).encode(),
            f":1: messages[0].role: `a \\ud83d b\\n`; {ROLES}",
        ),
        ("r.json", b'[\n{"text": "a"},\n]', ":2: not valid JSON (a comma too many at column 14). Fix the file."),
    ],
    ids=["a web page", "a cut gzip", "half a character in a role", "a trailing comma"],
)
def test_the_script_ends_with_the_one_line_and_exit_code_2(name, content, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    done = launch("scripts/sft.py", "recipes/quickstart.yaml", f"data.train={path}")
    assert done.returncode == 2
    assert done.stderr == f"error: {path}{reason}\n"


def test_a_long_list_in_json_is_read_in_time_linear_in_its_length(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"text": f"{i} " + "a" * 200} for i in range(20_000)], indent=1))
    start = time.process_time()
    rows, _, _ = read_rows(str(path))
    assert time.process_time() - start < 5
    assert rows[-1].place == f"{path}:{20_000 * 3 - 1}"


def test_a_row_as_deep_as_it_may_be_passes_all_that_walks_it(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(calling({**CALL, "arguments": {"x": deep(99)}})))
    [row], _, _ = read_rows(str(path))
    assert row.prompt_key
    with pytest.raises(DataError, match="the same row is trained on"):
        check_no_overlap([row], [row])


LONG = "длинно " * 160_000  # 2 MB in UTF-8
ODD = {
    "a byte order mark": ("r.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
    "a byte order mark in json": ("r.json", b'\xef\xbb\xbf[{"text": "a"}]', ["a"]),
    "a byte order mark in csv": ("r.csv", b"\xef\xbb\xbftext\na\n", ["a"]),
    "CRLF": ("r.jsonl", b'{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
    "CRLF inside a text": ("r.jsonl", b'{"text": "a\\r\\nb"}', ["a\r\nb"]),
    "CRLF in csv": ("r.csv", b'text,n\r\n"a\r\nb",1\r\nc,2\r\n', ["a\r\nb", "c"]),
    "an old Mac's csv": ("r.csv", b"text\ra\rb\r", ["a", "b"]),
    "empty lines": ("r.jsonl", b'\n\n{"text": "a"}\n \t\n{"text": "b"}\n\n\n', ["a", "b"]),
    "empty lines in csv": ("r.csv", b"\ntext\n\na\n\n", ["a"]),
    "no line end at the end": ("r.jsonl", b'{"text": "a"}\n{"text": "b"}', ["a", "b"]),
    "spaces and tabs around": ("r.jsonl", b' \t {"text" :\t"a" } \t\n', ["a"]),
    "white space around a text is kept": ("r.jsonl", b'{"text": " a\\n\\t "}', [" a\n\t "]),
    "line ends of Unicode": ("r.jsonl", '{"text": "a\u2028b\u2029c\u0085d"}'.encode(), ["a\u2028b\u2029c\u0085d"]),
    "line ends of Unicode in csv": ("r.csv", "text\na\u2028b\u0085c\n".encode(), ["a\u2028b\u0085c"]),
    "emoji": ("r.jsonl", '{"text": "👩🏽‍💻🇩🇪"}'.encode(), ["👩🏽‍💻🇩🇪"]),
    "combining characters are not composed": ("r.jsonl", '{"text": "e\u0301 \u00e9"}'.encode(), ["e\u0301 \u00e9"]),
    "text from right to left": ("r.jsonl", '{"text": "\u202e\u05e9\ufeff\u200b"}'.encode(), ["\u202e\u05e9\ufeff\u200b"]),
    "a character as an escaped pair": ("r.jsonl", b'{"text": "\\ud83d\\ude00 \\u00e9"}', ["😀 é"]),
    "all short escapes": ("r.jsonl", rb'{"text": "\" \\ \/ \b \f \n \r \t"}', ['" \\ / \b \f \n \r \t']),
    # Legal: JSON has an escape for it, tokenizers have a token for it, and who writes the escape means it. A NUL byte as
    # it is, which JSON forbids, comes from UTF-16 or a damaged disk and is refused.
    "an escaped NUL": ("r.jsonl", b'{"text": "a\\u0000b"}', ["a\0b"]),
    "a character that is none, escaped": ("r.jsonl", b'{"text": "\\uffff\\u007f"}', ["\uffff\x7f"]),
    "a name as escapes": ("r.jsonl", b'{"\\u0074ext": "a"}', ["a"]),
    "extra columns": ("r.jsonl", b'{"id": 7, "text": "a", "meta": {"text": null, "n": [1e9, {}]}}', ["a"]),
    "extra columns that are half a character": ("r.jsonl", b'{"text": "a", "note": "\\ud83d"}', ["a"]),
    "a long line": ("r.jsonl", json.dumps({"text": LONG}, ensure_ascii=False).encode(), [LONG]),
    "a long line of escapes": ("r.jsonl", json.dumps({"text": LONG}).encode(), [LONG]),
    "json that is lines": ("r.json", b'\n{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    "json on one line": ("r.json", b'[{"text":"a"},{"text":"b"}]', ["a", "b"]),
    "lines that are called ndjson": ("r.ndjson", b'{"text": "a"}\n', ["a"]),
    "an ending in capitals": ("R.JSONL", b'{"text": "a"}\n', ["a"]),
    "csv with quotes": ("r.csv", b'n,text\n1,"a\n""b"", c"\n2,it\'s "so"\n', ['a\n"b", c', 'it\'s "so"']),
    "csv with numbers": ("r.csv", b"text\n007\n1e3\nNaN\n", ["007", "1e3", "NaN"]),
    "csv with words for nothing": ("r.csv", b"text\nNone\nnull\nNA\n", ["None", "null", "NA"]),
    "csv with spaces": ("r.csv", b' text ,n\n a ," 1 "\n', [" a "]),
    "csv with an index": ("r.csv", b",text\n0,a\n1,b\n", ["a", "b"]),
    "tsv with quotes": ("r.tsv", b'text\tn\n"a\tb"\t1\nc, d\t2\n', ["a\tb", "c, d"]),
    "two gzips in one": ("r.jsonl.gz", gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'), ["a", "b"]),
    "two zstds in one": ("r.jsonl.zst", zst(b'{"text": "a"}\n') + zst(b'{"text": "b"}\n'), ["a", "b"]),
    "csv in gzip": ("r.csv.GZ", gzip.compress(b"text\na\n"), ["a"]),
    "json in zstd": ("r.json.zst", zst(b'[{"text": "a"}]'), ["a"]),
    "parquet with empty cells beside": ("r.parquet", parquet({"text": ["a"], "note": [None]}), ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_but_legal_is_read_as_it_stands(case, tmp_path):
    name, content, texts = ODD[case]
    path = tmp_path / name
    path.write_bytes(content)
    rows, kind, rejected = read_rows(str(path))
    assert [row.text for row in rows] == texts
    assert (kind, rejected) == ("text", [])


def plain(role, content):
    return {"role": role, "content": content}


def called(arguments):
    return {"type": "function", "function": {"name": "f", "arguments": arguments}}


ODD_ROWS = {
    "null in optional fields": (
        {"messages": [{**USER, "name": None, "weight": None}, {**SAID, "tool_calls": None}], "tools": None},
        [plain("user", "a"), plain("assistant", "b")],
    ),
    "empty lists of calls and tools": (
        {"messages": [{**USER, "tool_calls": []}, {**SAID, "tool_calls": []}], "tools": []},
        [plain("user", "a"), plain("assistant", "b")],
    ),
    "tools as empty text": (tools(""), [plain("user", "a"), plain("assistant", "b")]),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "\n b"}]}, SAID]},
        [plain("user", "a \n b"), plain("assistant", "b")],
    ),
    "a user who says nothing": ({"messages": [plain("user", ""), SAID]}, [plain("user", ""), plain("assistant", "b")]),
    "a call without content": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, plain("tool", "")]},
        [plain("user", "a"), {**plain("assistant", ""), "tool_calls": [called({"x": 1})]}, plain("tool", "")],
    ),
    "arguments as text, absent and wrapped": (
        calling({"name": "f", "arguments": ' {"x": [null, 1.0, "é"]} '}, {"name": "f"}, {"id": "1", **called({})}),
        [
            plain("user", "a"),
            {**plain("assistant", "c"), "tool_calls": [called({"x": [None, 1.0, "é"]}), called({}), called({})]},
            plain("assistant", "b"),
        ],
    ),
    "thinking beside": (
        {"messages": [USER, {**SAID, "reasoning_content": " so "}]},
        [plain("user", "a"), {**plain("assistant", "b"), "reasoning_content": " so "}],
    ),
    "sharegpt by other names": (
        {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "system": None},
        [plain("user", "a"), plain("assistant", "b")],
    ),
    "sharegpt with an empty system": (turn({"from": "system", "value": ""}, system=" "),
        [plain("user", "a"), plain("system", ""), plain("assistant", "b")],
    ),
    "input: null": ({"instruction": "a", "input": None, "output": "b"}, [plain("user", "a"), plain("assistant", "b")]),
    "input: white": ({"instruction": "a", "input": " ", "output": "b"}, [plain("user", "a"), plain("assistant", "b")]),
    "white space around": ({"question": " a\n", "answer": "\tb "}, [plain("user", " a\n"), plain("assistant", "\tb ")]),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_ROWS)
def test_a_conversation_that_is_odd_but_legal_is_read_as_it_stands(case, tmp_path):
    row, messages = ODD_ROWS[case]
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row))
    [found], _, _ = read_rows(str(path))
    assert found.messages == messages
    assert found.tools is None


def test_a_sharegpt_turn_of_weight_0_is_context(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(turn({"from": "gpt", "value": "c", "weight": 0}, system="s")))
    [row], _, _ = read_rows(str(path))
    assert row.trained == (False, False, False, True)


def test_parquet_gives_null_for_weights_that_other_messages_have(tmp_path):
    path = tmp_path / "r.parquet"
    path.write_bytes(parquet({"messages": [[USER, {**SAID, "weight": 0}, USER, SAID]]}))
    [row], _, _ = read_rows(str(path))
    assert row.trained == (False, False, False, True)
    assert row.messages == [USER, SAID, USER, SAID]


# The fuzz: good lines, broken in ways that have a name and in ways that have none.
GOOD = {
    "messages": [
        {"messages": [{"role": "system", "content": "Kürze!"}, USER, {**SAID, "weight": 0}, plain("user", "日本 😀"), SAID]},
        {"messages": [plain("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "é"}]), {**SAID, "name": "x"}]},
        {**calling(CALL, {"function": {"name": "g", "arguments": '{"y": [1, "zwei", null]}'}}), "tools": [{"name": "f"}]},
    ],
    "sharegpt": [
        turn({"from": "function_call", "value": '{"name": "f", "arguments": {"x": "ü"}}'}, tools='[{"name": "f"}]'),
        turn({"from": "observation", "value": "3\u2028"}, system="Sei kurz."),
    ],
    "prompt+completion": [
        {"prompt": "Frage: ", "completion": "ja 👍", "id": 1},
        talk([USER, SAID, plain("user", "und?")], [{**SAID, "loss_weight": 1}]),
    ],
    "instruction+output": [
        {"instruction": "Übersetze.", "input": "one\n two", "output": "eins\n zwei"},
        {"instruction": "Zähle.", "input": "", "output": "1 2", "score": 1.5},
    ],
    "question+answer": [{"question": "wie \"viel\"?", "answer": "\\ 4 \u0000", "more": [True, None]}],
    "marked-text": [{"text": "### Human: wie viel?\n### Assistant: 4é### Human: ok ### Assistant: ja"}],
    "text": [{"text": "Ein Text, élan \u0301 😀."}],
}  # fmt: skip
NASTY = [
    b"\xff",
    b"\0",
    b'"',
    b"\\",
    b"\\ud83d",
    b"\\u0000",
    b"NaN",
    b"1e999",
    b"[",
    b"}",
    b",",
    b"'",
    b"\xe2\x80\xa8",
    b" \t",
]
VALUES = [
    None,
    True,
    0,
    1,
    -1.5,
    "",
    " ",
    "x",
    HALF,
    "1",
    "[]",
    "{",
    [],
    {},
    [None],
    ["x"],
    {"text": "x"},
    deep(150),
    USER,
]
NAMES = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "question",
    "text",
    "Role",
    "role ",
    "from",
    "weight",
    HALF,
]


def places_of(value, at=()):
    """The path of every value inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*at, key)
        yield from places_of(item, (*at, key))


def with_another_value(row, rng):
    """A row with a value of another type, or a renamed field, somewhere inside."""
    row = json.loads(json.dumps(row))
    *way, last = rng.choice(list(places_of(row)))
    holder = row
    for key in way:
        holder = holder[key]
    if isinstance(last, str) and rng.random() < 0.3:
        name = rng.choice([*NAMES, last.upper(), last + " "])
        items = [(name if key == last else key, value) for key, value in holder.items()]
        holder.clear()
        holder.update(items)
    elif rng.random() < 0.2:
        del holder[last]
    else:
        holder[last] = rng.choice(VALUES)
    return row


def broken_line(kind, rng):
    """A good line of a format after one to three mutations."""
    row = rng.choice(GOOD[kind])
    for _ in range(rng.choice([0, 1, 1, 2])):
        if any(True for _ in places_of(row)):
            row = with_another_value(row, rng)
    line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        at, end = sorted(rng.randrange(len(line) + 1) for _ in range(2))
        other = json.dumps(rng.choice(GOOD[rng.choice(list(GOOD))]), ensure_ascii=False).encode()
        line = rng.choice(
            [
                line[:at] + bytes([line[at] ^ 1 << rng.randrange(8)]) + line[at + 1 :] if at < len(line) else line,
                line[:at] + line[at + rng.randrange(1, 4) :],
                line[:at] + line[end:],
                line[:end],
                line[:at] + rng.choice(NASTY) + line[at:],
                line[:at] + line[at:end] * 2 + line[end:],
                line[:at] + other[rng.randrange(len(other)) :],
            ]
        )
    return line.replace(b"\n", b" ")


def strict(line):
    """A line's value, by the standard library alone; ValueError for what readers differ on."""

    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    def never(_):
        raise ValueError("no number")

    return json.loads(line.decode("utf-8"), object_pairs_hook=once, parse_constant=never)


def text_of(content):
    return "".join(part["text"] for part in content) if isinstance(content, list) else content


def call_of(call):
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    arguments = strict(arguments.encode()) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def message_of(message):
    calls = [call_of(call) for call in message.get("tool_calls") or []]
    content = message.get("content")
    kept = {k: v for k, v in message.items() if v is not None and k not in ("weight", "loss_weight", "tool_calls")}
    kept["content"] = text_of("" if content is None and calls else content)
    return kept | ({"tool_calls": calls} if calls else {})


def turn_of(turn):
    speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    names = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
    if speaker != "function_call":
        return plain(names.get(speaker, speaker), value)
    calls = strict(value.encode())
    return {
        **plain("assistant", ""),
        "tool_calls": [call_of(c) for c in (calls if isinstance(calls, list) else [calls])],
    }


def expected(kind, value):
    """What a row of a format must hold, worked out apart from the code that reads it."""
    if kind == "messages":
        return [message_of(message) for message in value["messages"]]
    if kind == "sharegpt":
        system = value.get("system")
        first = [plain("system", system)] if system is not None and system.strip() else []
        return first + [turn_of(turn) for turn in value["conversations"]]
    if kind == "prompt+completion" and isinstance(value["prompt"], list):
        return [message_of(message) for message in value["prompt"] + value["completion"]]
    if kind == "prompt+completion":
        return value["prompt"], value["completion"]
    if kind == "question+answer":
        return [plain("user", value["question"]), plain("assistant", value["answer"])]
    if kind == "instruction+output":
        extra = value.get("input") or ""
        asked = f"{value['instruction']}\n\n{extra}" if extra.strip() else value["instruction"]
        return [plain("user", asked), plain("assistant", value["output"])]
    return value["text"]


def content_of(row):
    return row.messages or row.text or (row.prompt, row.completion)


def same(one, other):
    """Equal, and of equal types: 1, 1.0 and true are three things."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_of_10000_mutated_lines_each_is_refused_in_one_line_or_read_verbatim(tmp_path):
    rng = random.Random(20)
    count = read = 0
    for kind in GOOD:
        path = tmp_path / f"{kind}.jsonl"
        lines = [json.dumps(GOOD[kind][0]).encode()] + [broken_line(kind, rng) for _ in range(1430)]
        path.write_bytes(b"\n".join(lines) + b"\n")
        rows, _, rejected = read_rows(str(path), kind=kind, on_bad_row="drop")
        told = {}
        for text in rejected:
            match = re.fullmatch(rf"{re.escape(str(path))}:(\d+): (\S.*)", text)
            assert match, text
            assert TO_DO.search(match[2]), text
            text.encode("utf-8")
            told[int(match[1])] = text
        kept = {int(row.place.rpartition(":")[2]): row for row in rows}
        blank = {number for number, line in enumerate(lines, 1) if not line.strip(b" \t\r")}
        assert sorted([*told, *kept, *blank]) == list(range(1, len(lines) + 1))
        for number, row in kept.items():
            value = strict(lines[number - 1])
            found = content_of(row)
            if kind == "marked-text":
                assert all(m["content"] in value["text"] for m in found)
                pieces = re.split(
                    r"### (?:human|user|instruction|system|assistant|response):", value["text"], flags=re.I
                )
                assert [m["content"] for m in found] == [piece.strip() for piece in pieces[1:]]
            else:
                assert same(found, expected(kind, value)), lines[number - 1]
            assert row.digest
            assert row.prompt_key
            json.dumps([found, row.tools], ensure_ascii=False).encode("utf-8")
        count += len(lines) - 1
        read += len(kept)
        assert 100 < len(kept) < 1100, kind  # the mutations neither miss nor break everything
    assert count >= 10_000
    assert 2000 < read < 6000


def test_damaged_files_of_every_kind_are_refused_in_one_line_or_read(tmp_path):
    rng = random.Random(11)
    rows = [{"messages": [USER, {**SAID, "n": i}], "text": f"té\u2028xt {i}", "n": i * 1.5} for i in range(30)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    wholes = {
        "r.jsonl": lines,
        "r.json": json.dumps(rows, indent=1).encode(),
        "r.csv": b"text,n\n" + b"".join(b'"a ""%d""\nb",%d\n' % (i, i) for i in range(30)),
        "r.tsv": b'text\tn\na\t1\n"b\tc"\t2\n',
        "r.jsonl.gz": gzip.compress(lines, mtime=0),
        "r.jsonl.zst": zst(lines),
        "r.parquet": parquet({name: [row[name] for row in rows] for name in rows[0]}),
    }
    refused = 0
    for name, whole in wholes.items():
        path = tmp_path / name
        for _ in range(200):
            data = bytearray(whole)
            at = rng.randrange(len(data))
            if (luck := rng.random()) < 0.5:
                data[at] ^= 1 << rng.randrange(8)
            elif luck < 0.7:
                del data[at : at + rng.randrange(1, 20)]
            elif luck < 0.85:
                del data[at:]
            else:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            path.write_bytes(data)
            try:
                read_rows(str(path))
            except DataError as error:
                text = str(error)
            else:
                continue
            refused += 1
            assert text.startswith(str(path))
            assert len(text.splitlines()) == 1
    assert refused > 700
