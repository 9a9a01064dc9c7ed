"""Rewards: functions by name, checked on rows, those that are shipped, and programs in a sandbox."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import BASE, ROOT, SHARED, needs_shared

from lorasmith.errors import RecipeError
from lorasmith.rewards import sandbox
from lorasmith.rewards.checking import check
from lorasmith.rewards.loading import load
from lorasmith.rewards.locked import CALLS, CHANGES, FCNTL, MACHINES, OPENAT
from lorasmith.rewards.sandbox import Limits, accepted, protection, run, run_all, run_as
from lorasmith.rewards.texts import fenced, text_of

QUICK = Limits(seconds=2.0)
GOOD = ("def plus(a, b):\n    return a + b", "assert plus(2, 3) == 5")
LOCKED = [kind for kind in ("landlock", "seccomp") if run_as(kind, *GOOD, Limits(seconds=20.0)).passed]
needs_lock = pytest.mark.skipif(not LOCKED, reason="this machine has neither Landlock nor seccomp")


def score(name, completions, **columns):
    """What one reward gives, named as in a recipe or with its parameters."""
    return load([name])[0].function(completions=completions, **columns)


def programs_running(parent):
    """Process ids of programs of the sandbox, of whichever parent, whose folder is or was made in this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            there = Path(os.readlink(folder / "cwd")).is_relative_to(parent)
        except OSError:
            continue
        if there and str(sandbox.LOCKED).encode() in words:
            found.append(int(folder.name))
    return found


@pytest.fixture
def programs_folder(tmp_path, monkeypatch):
    """Where the folders of programs are made, and must be gone from."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


ATTACKS = {
    "an endless loop": "while True: pass",
    "an endless sleep": "import time\ntime.sleep(1000)",
    "a fork bomb": "import os\nwhile True: os.fork()",
    "a stubborn fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except Exception: pass",
    "another program": "import subprocess\nsubprocess.run(['sleep', '1000'])",
    "a bomb of threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "10 GB at once": "held = bytearray(10 << 30)",
    "10 GB bit by bit": "held = []\nwhile True: held.append(bytearray(1 << 20))",
    "a file outside": "open('OUTSIDE/evil', 'w').write('x')",
    "a file removed": "import os\nos.remove('OUTSIDE/kept')",
    "a file emptied": "import os\nos.open('OUTSIDE/kept', os.O_RDONLY | os.O_TRUNC)",
    "rights changed": "import os\nos.chmod('OUTSIDE/kept', 0)",
    "a folder outside": "import os\nos.mkdir('OUTSIDE/evil')",
    "a link out": "import os\nos.symlink('OUTSIDE/kept', 'link')\nopen('link', 'w')",
    "folders without end": "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
    "a disk full of files": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').write(bytes(8 << 20))",
    "a socket": "import socket\nsocket.socket()",
    "a connection": "import socket\nsocket.create_connection(('127.0.0.1', PORT))",
    "100 MB of output": "print('x' * 100_000_000)",
    "errors without end": "import os\nwhile True: os.write(2, bytes(65536))",
    "a closed output": "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)",
    "a signal to the trainer": "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)",
    "a crash": "import ctypes\nctypes.string_at(0)",
}


@needs_lock
@pytest.mark.parametrize("kind", LOCKED)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_scores_nothing_and_leaves_nothing(name, kind, programs_folder, tmp_path):
    import socket

    (tmp_path / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = ATTACKS[name].replace("OUTSIDE", str(tmp_path)).replace("PORT", str(server.getsockname()[1]))
        started = time.monotonic()
        outcome = run_as(kind, code, "", Limits(seconds=1.0))
        took = time.monotonic() - started
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not outcome.passed
    assert outcome.reason
    assert "\n" not in outcome.reason
    assert took < 3.0
    assert not programs_running(programs_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "programs"]
    assert (tmp_path / "kept").read_text() == "kept"
    assert not list(programs_folder.iterdir())
    assert run_as(kind, *GOOD, QUICK).passed


@needs_lock
def test_the_reward_goes_on_past_every_attack_at_once(programs_folder):
    completions = []
    for code in ATTACKS.values():
        completions += [f"```python\n{code}\n```", f"Here it is:\n```python\n{GOOD[0]}\n```\nIt adds."]
    scores = score(
        {"function": "rewards/code.py:passes_tests", "seconds": 1.5}, completions, tests=[GOOD[1]] * len(completions)
    )
    assert scores == [0.0, 1.0] * len(ATTACKS)
    assert not programs_running(programs_folder)
    assert not list(programs_folder.iterdir())


LIES = {
    "ends at once": "import os\nos._exit(0)",
    "ends politely": "import sys\nsys.exit(0)",
    "ends when tested": "import os\ndef plus(a, b):\n    os._exit(0)",
    "says that it passed": "print('passed')\nprint('OK', end='')\ndef plus(a, b): return 0",
    "no program": "The sum is five.",
    "no text": "",
    "a null": "\0",
    "half a letter": "x = '\ud800'",
    "brackets": "(" * 100_000,
}


@needs_lock
@pytest.mark.parametrize("name", LIES)
def test_a_program_that_does_not_pass_its_tests_scores_nothing(name):
    assert not run(LIES[name], GOOD[1], QUICK).passed


TESTS = {
    "statements": ("assert plus(1, 2) == 3", "assert plus(1, 2) == 4"),
    "functions": (
        "from solution import plus\ndef test_plus():\n    assert plus(1, 2) == 3",
        "from solution import plus\ndef test_plus():\n    assert plus(1, 2) == 4",
    ),
    "cases": (
        "import unittest\nclass Plus(unittest.TestCase):\n    def test_it(self): self.assertEqual(plus(1, 2), 3)",
        "import unittest\nclass Plus(unittest.TestCase):\n    def test_it(self): self.assertEqual(plus(1, 2), 4)",
    ),
}


@needs_lock
@pytest.mark.parametrize("name", TESTS)
def test_tests_of_each_style_are_run(name):
    right, wrong = TESTS[name]
    assert run(GOOD[0], right).passed
    outcome = run(GOOD[0], wrong)
    assert not outcome.passed
    assert outcome.reason.startswith("AssertionError")


@needs_lock
def test_rows_of_humaneval_and_mbpp_are_run_and_rows_without_tests_do_not_count():
    tests = [
        "def check(candidate):\n    assert candidate(1, 2) == 3",
        ["assert plus(1, 2) == 3", "assert plus(0, 0) == 1"],
        "",
        None,
    ]
    given = score("rewards/code.py:passes_tests", [GOOD[0]] * 4, tests=tests, entry_point=["plus", None, "plus", None])
    assert given == [1.0, 0.0, None, None]


@needs_lock
@pytest.mark.parametrize("kind", LOCKED)
def test_ordinary_programs_find_the_standard_library(kind):
    code = (
        "import asyncio, bisect, collections, concurrent.futures, csv, dataclasses, datetime, decimal, fractions, functools, hashlib\n"
        "import heapq, io, itertools, json, logging, math, random, re, sqlite3, statistics, string, typing, unittest, uuid\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int = 1\n"
        "random.seed()\nuuid.uuid4()\ndatetime.datetime.now().astimezone()\nsqlite3.connect(':memory:').execute('select 1')\n"
        "import time\ntime.sleep(0.01)\nprint('hello')"
    )
    assert run_as(kind, code, "assert Point().x == 1", Limits(seconds=10.0)).reason == ""


@needs_lock
@pytest.mark.parametrize("kind", LOCKED)
def test_every_call_of_the_system_that_is_not_allowed_fails_by_any_door(kind):
    column = MACHINES[os.uname().machine][0]
    tables = [*CALLS.values(), OPENAT, FCNTL, *(CHANGES.values() if kind == "landlock" else ())]
    # uretprobe and uprobe, which kernels from 6.14 on let past every filter: they do nothing that no debugger prepared
    closed = sorted(set(range(600)) - {numbers[column] for numbers in tables} - {335, 336})
    closed += [0x40000000 + number for number in range(600)]  # the x32 door of x86_64
    code = (
        "import ctypes, errno\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        f"for number in {closed}:\n"
        "    if library.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != errno.ENOSYS:\n"
        "        raise RuntimeError(number)\n"
    )
    assert run_as(kind, code, "", Limits(seconds=5.0)).reason == ""
    if column == 0:  # getpid as a 32-bit program asks for it, in machine code
        door = (
            "import ctypes, mmap\nroom = mmap.mmap(-1, 4096, prot=7)\nroom.write(bytes.fromhex('b814000000cd80c3'))\n"
            "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(room)))()\n"
        )
        assert run_as(kind, door, "", QUICK).reason in ("ended by SIGSYS", "ended by SIGSEGV")


@pytest.mark.skipif("landlock" not in LOCKED, reason="this machine has no Landlock")
def test_under_landlock_a_program_has_its_folder_and_reads_no_other(tmp_path):
    (tmp_path / "secret").write_text("secret")
    own = "open('a', 'w').write('x')\nassert open('a').read() == 'x'\nimport os\nos.rename('a', 'b')\nos.remove('b')"
    assert run_as("landlock", own, "", QUICK).reason == ""
    for path in (tmp_path / "secret", "/etc/passwd", "/proc/self/environ", "/proc/1/cmdline"):
        assert "PermissionError" in run_as("landlock", f"open({str(path)!r}).read()", "", QUICK).reason


def test_without_protection_programs_are_refused_unless_asked_for_and_honest_slips_are_caught(tmp_path):
    with pytest.raises(RecipeError, match="this machine can lock no program up"):
        accepted("none", Limits())
    assert accepted("none", Limits(unprotected=True)) == "none"
    assert run_as("none", *GOOD, QUICK).passed
    for code in (
        f"open('{tmp_path}/a', 'w')",
        "import os\nos.fork()",
        "import socket\nsocket.socket()",
        "while True: pass",
    ):
        assert not run_as("none", code, "", Limits(seconds=1.0)).passed
    assert not list(tmp_path.iterdir())


@needs_lock
def test_programs_run_beside_each_other():
    started = time.monotonic()
    outcomes = run_all([("import time\ntime.sleep(4)", "")] * 4, Limits(seconds=30.0), workers=4)
    assert all(outcome.passed for outcome in outcomes)
    assert time.monotonic() - started < 14.0  # 16 s one after another
    assert protection() == LOCKED[0]


@needs_lock
def test_a_program_ends_with_the_trainer_that_was_killed(tmp_path):
    code = "from lorasmith.rewards.sandbox import *\nrun('import time\\ntime.sleep(1000)', '', Limits(seconds=1000))"
    trainer = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 120
    # The folder is there while the protection is tried out, too; the program that stays is the one that sleeps.
    while time.monotonic() < deadline and not sleeping(programs_running(tmp_path)):
        time.sleep(0.05)
    assert programs_running(tmp_path)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    while time.monotonic() < deadline and programs_running(tmp_path):
        time.sleep(0.05)
    assert not programs_running(tmp_path)


def sleeping(ids):
    """Whether one of these processes has lived for half a second."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for one in ids:
        try:
            ticks = int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[19])
        except OSError:
            continue
        if now - ticks / os.sysconf("SC_CLK_TCK") > 0.5:
            return True
    return False


def test_texts_of_completions_of_each_shape():
    assert text_of("a") == text_of([{"role": "assistant", "content": "a"}]) == "a"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [
        {"role": "assistant", "content": parts},
        {"role": "tool", "content": "c"},
        {"role": "assistant", "content": None},
    ]
    assert text_of(turns) == "ab\n"
    assert fenced("a\n```python\nb\n```\nc\n```\nd\n```") == "d\n"
    assert fenced("a") == "a"


@needs_shared
def test_numbers_of_gsm8k_are_read_as_its_own_expression_reads_them():
    rows = [json.loads(line) for line in (SHARED / "data/math_gsm8k_train.jsonl").open()]
    answers = [row["answer"] for row in rows]
    # https://github.com/openai/grade-school-math, dataset.py
    official = [re.search(r"#### (\-?[0-9\.\,]+)", answer).group(1).strip().replace(",", "") for answer in answers]
    numeric = load(["rewards/match.py:numeric"])[0].function
    assert numeric(completions=answers, answer=answers) == [1.0] * len(rows)
    assert numeric(completions=answers, answer=[row["final"] for row in rows]) == [1.0] * len(rows)
    order = random.Random(0).sample(range(len(rows)), len(rows))
    others = numeric(completions=[answers[i] for i in order], answer=answers)
    assert others == [float(float(official[i]) == float(right)) for i, right in zip(order, official, strict=True)]
    assert 0 < sum(others) < len(rows) / 10
    assert numeric(completions=official, answer=answers) == [0.0] * len(rows)


NUMBERS = [
    ("#### 42", 1), ("so it is\n#### 42\n", 1), ("#### 42.0", 1), ("#### $42", 1), ("#### 42 apples", 1), ("#### 042", 1),
    ("#### 42.", 1), ("####42", 1), ("#### 42,", 1), ("#### 42\n\nQ: next\n#### 7", 1), ("#### 7\n#### 42", 0),
    ("#### 41", 0), ("#### -42", 0), ("42", 0), ("####", 0), ("", 0), ("####\n42", 0), ("#### 4 2", 0), ("#### 421", 0),
    ("#### 42.5", 0), ("#### forty-two", 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), NUMBERS)
def test_a_number_counts_with_its_mark_and_whatever_its_dress(text, wanted):
    assert score("rewards/match.py:numeric", [text], answer=["#### 42"]) == [wanted]


def test_numbers_without_a_mark_with_signs_and_commas():
    free = {"function": "rewards/match.py:numeric", "marked": False}
    assert score(free, ["It is 7, no, 1,234.50."], answer=["1234.5"]) == [1.0]
    assert score(free, ["\u22125 degrees"], answer=[-5]) == [1.0]
    assert score(free, ["-$5", "$-5", "10-5", ".5", "none"], answer=[-5, "-5", 5, 0.5, 5]) == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert score(free, ["5", "5"], answer=[None, "no number"]) == [None, None]


def test_exact_text_alone_or_in_a_tag():
    assert score("rewards/match.py:exact", [" Paris\n", "paris", ""], answer=["Paris"] * 3) == [1.0, 0.0, 0.0]
    tag = {"function": "rewards/match.py:exact", "tag": "answer"}
    assert score(tag, ["It is <answer> 4 </answer>.", "4", "<answer>4"], answer=[4] * 3) == [1.0, 0.0, 0.0]


def test_the_tag_of_an_answer_stands_once_at_the_end_with_something_in_it():
    texts = [
        "Well. <answer>4</answer>\n",
        "<answer> </answer>",
        "<answer>4</answer> or so",
        "<answer>4",
        "<answer><answer>4</answer>",
        "",
    ]
    assert score("rewards/format.py:has_answer_tag", texts) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert score({"function": "rewards/format.py:has_answer_tag", "tag": "a"}, ["<a>1</a>"]) == [1.0]


def test_a_regular_expression_of_the_recipe_or_of_the_row():
    assert score({"function": "rewards/format.py:matches", "pattern": r"^\d+$"}, ["12", "a12"]) == [1.0, 0.0]
    assert score("rewards/format.py:matches", ["12", "a12", "x"], pattern=[r"\d", r"^\d", None]) == [1.0, 0.0, None]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 2, "uniqueItems": True},
        "extra": {"anyOf": [{"type": "null"}, {"const": True}]},
    },
    "required": ["name"],
    "additionalProperties": False,
}
VALUES = [
    ('{"name": "Ann", "age": 3.0, "tags": ["a", 1], "extra": null}', 1), ('{"name": "Ann", "extra": true}', 1),
    ('{"name": "ann"}', 0), ('{"name": ""}', 0), ('{"age": 3}', 0), ('{"name": "A", "age": 3.5}', 0), ('{"name": "A", "age": 150}', 0),
    ('{"name": "A", "age": true}', 0), ('{"name": "A", "tags": ["c"]}', 0), ('{"name": "A", "tags": [true]}', 0),
    ('{"name": "A", "tags": ["a", "a"]}', 0), ('{"name": "A", "more": 1}', 0), ('{"name": "A", "extra": 1}', 0), ("[]", 0), ("", 0),
    ('```json\n{"name": "A"}\n```', 0), ('{"name": "A", "age": NaN}', 0), ("[" * 100_000, 0), ("9" * 10_000, 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), VALUES, ids=range(len(VALUES)))
def test_json_is_what_its_schema_allows(text, wanted):
    assert score({"function": "rewards/format.py:json_schema", "schema": SCHEMA}, [text]) == [wanted]
    assert score("rewards/format.py:json_schema", [text, text], schema=[json.dumps(SCHEMA), None]) == [wanted, None]


def test_a_schema_with_an_unknown_keyword_is_refused_before_the_weights():
    rows = [{"prompt": "a", "answer": "1"}]
    with pytest.raises(
        RecipeError, match=r"rewards/format.py:\d+: the reward json_schema raised ValueError: JSON schema with \$ref"
    ):
        check(load([{"function": "rewards/format.py:json_schema", "schema": {"items": {"$ref": "#"}}}]), rows)


def test_lengths_in_words_characters_and_tokens():
    within = {"function": "rewards/length.py:within", "most": 3}
    ids = [[1] * 3, [1] * 4, []]
    texts = ["a b c", "a b c d", ""]
    assert score(within, texts, completion_ids=ids) == [1.0, 0.0, 0.0]
    assert score({**within, "unit": "tokens", "least": 0}, texts, completion_ids=ids) == [1.0, 0.0, 1.0]
    assert score({**within, "unit": "characters"}, texts, completion_ids=ids) == [0.0, 0.0, 0.0]
    overlong = {"function": "rewards/length.py:not_overlong", "most": 8, "margin": 4}
    assert score(overlong, [""] * 4, completion_ids=[[1] * n for n in (4, 6, 8, 9)]) == [0.0, -0.5, -1.0, -1.0]


SHIPPED = [
    "rewards/match.py:exact", "rewards/match.py:numeric", {"function": "rewards/match.py:numeric", "marked": False},
    {"function": "rewards/match.py:exact", "tag": "answer"}, "rewards/format.py:has_answer_tag",
    {"function": "rewards/format.py:matches", "pattern": "^a"}, {"function": "rewards/format.py:json_schema", "schema": SCHEMA},
    {"function": "rewards/length.py:within", "most": 9},
]  # fmt: skip


def test_random_texts_never_make_a_shipped_reward_raise():
    draw = random.Random(0)
    bits = [
        "#### ",
        "<answer>",
        "</answer>",
        "-",
        "\u2212",
        "$",
        ",",
        ".",
        "1",
        "23",
        "\u0663",
        "\n",
        " ",
        "{",
        "}",
        "[",
        "]",
        '"a"',
        ":",
        "\0",
        "\ud800",
        "```",
        "e999",
        "null",
    ]
    texts = ["".join(draw.choices(bits, k=draw.randrange(12))) for _ in range(2000)]
    rewards = load(SHIPPED)
    for completions in (texts, [[{"role": "assistant", "content": text}] for text in texts]):
        for reward in rewards:
            given = reward.function(
                completions=completions,
                answer=texts[::-1],
                completion_ids=[[1]] * len(texts),
                prompts=texts,
                trainer_state=None,
            )
            assert set(given) <= {0.0, 1.0, None}


ROWS = [{"prompt": [{"role": "user", "content": f"{n} + 1?"}], "answer": f"#### {n + 1}"} for n in range(6)]
BROKEN = {
    "raises": (
        "return [int(answer[9]) for c in completions]",
        "2: the reward f raised IndexError: list index out of range.",
    ),
    "text": (
        "return ['good'] * len(completions)",
        "1: the reward f returned str 'good' for completion 0; expected a number",
    ),
    "too few": ("return [1.0]", "1: the reward f returned 1 numbers for 8 completions."),
    "not a number": ("return [float('nan')] * len(completions)", "1: the reward f returned nan for completion 0."),
    "no list": ("return 1.0", "1: the reward f returned a value of type float; expected a list of 8 numbers."),
    "no return": ("pass", "1: the reward f returned a value of type NoneType; expected a list"),
    "for ever": ("while True: pass", "1: the reward f took more than 0.5 s"),
    "ends the run": ("raise SystemExit(3)", "2: the reward f raised SystemExit: 3."),
    "one list": (
        "S.extend([0.0] * len(completions)); return S",
        "1: the reward f returned 9 numbers for 1 completions.",
    ),
    "library": ("import json; json.loads('{')", "2: the reward f raised JSONDecodeError: Expecting"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reward_is_one_line_with_its_place(name, tmp_path):
    body, told = BROKEN[name]
    path = tmp_path / "broken.py"
    path.write_text(f"def f(completions, answer, **columns):\n    {body}\n\nS = []\n")
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(RecipeError) as caught:
        check(load([f"{path}:f"]), ROWS, seconds=0.5)
    assert str(caught.value).startswith(f"{path}:{told}")
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGALRM) == handler


def test_a_column_that_the_rows_lack_is_named_with_those_that_are_there(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("def f(completions, anwser): return [0.0 for _ in completions]")
    with pytest.raises(
        RecipeError, match=r"a.py:1: the reward f takes `anwser`.* The rows have: answer. Did you mean `answer`\?"
    ):
        check(load([f"{path}:f"]), ROWS)


UNLOADABLE = {
    "no function named": ("rewards/match.py", "names no function. Write path/file.py:function."),
    "no file": ("rewards/macth.py:exact", "there is no file rewards/macth.py. Did you mean `rewards/match.py`?"),
    "no such function": ("rewards/match.py:exct", "rewards/match.py has no function `exct`. Did you mean `exact`?"),
    "a number": ("rewards/match.py:NUMBER", "is of type Pattern; expected a function"),
    "unknown parameter": ({"function": "rewards/format.py:matches", "patern": "a"}, "has no parameter `patern`. Did you mean `pattern`?"),
    "weight": ({"function": "rewards/match.py:exact", "weight": "much"}, "weight is 'much'; expected a number"),
    "no name": ({"weight": 1}, "has no `function`"),
    "syntax": ("BROKEN:f", "broken.py:2: importing it raised SyntaxError: "),
    "import": ("IMPORTS:f", "imports.py:2: importing it raised ModuleNotFoundError: No module named 'nowhere'. Mend the file."),
    "signature": ("OTHER:f", "other.py:1: f(texts) does not take the completions. Write def f(completions, **columns)."),
    "async": ("OTHER:g", "other.py:2: g is async or yields"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLOADABLE)
def test_what_cannot_be_loaded_is_one_line(name, tmp_path):
    (tmp_path / "broken.py").write_text("a = 1\ndef f(:\n")
    (tmp_path / "imports.py").write_text("import json\nimport nowhere\n")
    (tmp_path / "other.py").write_text("def f(texts): return []\nasync def g(completions): return []\n")
    entry, told = UNLOADABLE[name]
    for file in ("broken", "imports", "other"):
        entry = entry.replace(file.upper(), f"{tmp_path}/{file}.py") if isinstance(entry, str) else entry
    path = list(sys.path)
    with pytest.raises(RecipeError) as caught:
        load([entry])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sys.path == path


def test_a_file_imports_those_beside_it_and_none_of_them_hides_the_standard_library(tmp_path, capsys):
    (tmp_path / "beside_it_words.py").write_text("GOOD = 'yes'\n")
    (tmp_path / "code.py").write_text("raise SystemExit('the standard library has this name')\n")
    (tmp_path / "mine.py").write_text(
        "import code\nfrom beside_it_words import GOOD\nassert code.InteractiveConsole\n"
        "def f(completions): return [float(c == GOOD) for c in completions]\n"
    )
    rewards = load([f"{tmp_path}/mine.py:f", {"function": f"{tmp_path}/mine.py:f", "weight": 0.5}])
    assert [(reward.name, reward.weight) for reward in rewards] == [("f", 1.0), ("f:2", 0.5)]
    assert rewards[0].function(prompts=["a"], completions=["yes"], trainer_state=None, other=[1]) == [1.0]
    assert capsys.readouterr().out.count("is run, with all that you may do") == 1


def test_the_shipped_rewards_pass_the_check_and_say_what_they_gave():
    lines = check(
        load(["rewards/match.py:numeric", {"function": "rewards/format.py:has_answer_tag", "weight": 0.5}]), ROWS
    )
    assert lines == [
        "reward numeric (weight 1): 1.00 for the rows' answers, 0.00 for no text",
        "reward has_answer_tag (weight 0.5): 0.00 for the rows' answers, 0.00 for no text",
    ]


def test_a_reward_that_raises_in_mid_run_names_its_line(tmp_path):
    path = tmp_path / "late.py"
    path.write_text("def f(completions, **columns):\n    return [1 / len(text) for text in completions]\n")
    reward = load([f"{path}:f"])[0]
    assert reward.function(prompts=["p"], completions=["ab"]) == [0.5]
    with pytest.raises(
        RecipeError, match=r"late.py:2: the reward f raised ZeroDivisionError: division by zero. A reward must"
    ):
        reward.function(prompts=["p"], completions=[""])


def test_the_page_names_every_shipped_function_and_its_example_and_error_are_real(tmp_path, monkeypatch):
    page = (ROOT / "docs/rewards.md").read_text()
    for file in sorted((ROOT / "rewards").glob("*.py")):
        functions = re.findall(r"^def (\w+)\(\n? *completion\w*,", file.read_text(), re.MULTILINE)
        assert functions
        for name in functions:
            assert f"`rewards/{file.name}:{name}`" in page
    (tmp_path / "my").mkdir()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my/rewards.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    polite = load([{"function": "my/rewards.py:polite", "words": 3}])[0]
    assert polite.function(completions=["Well, thank you.", "It is 4, thank you."]) == [1.0, 0.0]
    (tmp_path / "my/rewards.py").write_text(
        example.replace("for one in completions", "for one in completions if columns['tone']")
    )
    with pytest.raises(RecipeError) as caught:
        load([{"function": "my/rewards.py:polite", "words": 3}])[0].function(completions=["a"])
    assert f"error: {caught.value}" in page


@pytest.mark.slow
def test_trl_calls_a_reward_with_the_arguments_of_the_check(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lorasmith.rewards.checking import as_trl

    path = tmp_path / "mine.py"
    path.write_text(
        "import json\n"
        "def f(completions, **columns):\n"
        f"    open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps([sorted(columns), completions[0]]))\n"
        "    return [float(i) for i in range(len(completions))]\n"
    )
    rewards = load([f"{path}:f", {"function": "rewards/match.py:numeric", "weight": 0.5}])
    config = GRPOConfig(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=8,
        use_cpu=True, bf16=False, report_to="none", logging_steps=1, reward_weights=[reward.weight for reward in rewards],
    )  # fmt: skip
    trainer = GRPOTrainer(
        BASE, [reward.function for reward in rewards], args=config, train_dataset=Dataset.from_list(ROWS)
    )
    trainer.train()
    [logged] = [event for event in trainer.state.log_history if "rewards/f/mean" in event]
    assert logged["rewards/f/mean"] == 0.5
    assert logged["rewards/numeric/mean"] == 0.0
    seen, completion = json.loads((tmp_path / "seen").read_text())
    given = as_trl(ROWS, [row["answer"] for row in ROWS])
    assert seen == sorted(given.keys() - {"completions"})
    assert completion[0].keys() == given["completions"][0][0].keys()
