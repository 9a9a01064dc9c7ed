"""Rows become rows of other formats that train the same, hold every column, and can be turned back."""

import json
import random
import re

import pytest
from conftest import ROOT, SHARED, needs_shared, write_rows

from lorasmith.data.convert import TARGETS, answer_of, check, converted, prompt_of, recognise, text_fields
from lorasmith.data.files import records
from lorasmith.data.formats import COLUMNS, is_marked, parse_row
from lorasmith.data.messages import checked_calls, checked_tools
from lorasmith.data.openai import estimate, file_problems, openai_record, problems
from lorasmith.data.pairs import pair_of, read_judged, read_pairs
from lorasmith.errors import DataError

KIND = {"prompt_completion": "prompt+completion", "instruction": "instruction+output", "openai": "messages"}
REAL = {
    "pref_hh_harmless_dpo": "preference",
    "pref_llamafactory_kto": "kto",
    "chat_v1_sft_demo": "messages",
    "tools_glaive_sharegpt": "sharegpt",
    "sft_alpaca_en": "instruction+output",
    "math_gsm8k_test": "question+answer",
    "text_c4_demo": "text",
}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content, **more):
    return turn("user", content, **more)


def said(content, **more):
    return turn("assistant", content, **more)


CALL = {"id": "c7", "type": "function", "function": {"name": "rain", "arguments": '{"city": "Oslo é"}'}}
TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]
MADE = {
    "messages": [
        {"id": 7, "messages": [user("Q"), said("A")]},
        {"messages": [turn("system", "S"), user("Q"), said("A", weight=0), user("R"), said("B")], "meta": {"a": [1]}},
        {"messages": [user("Q"), said("A"), user("R"), said("B", weight=0), user("T"), said("C")]},
        {"messages": [user([{"type": "text", "text": "Q"}], loss_weight=0.0), said("A", loss_weight=1.0)]},
        {
            "messages": [user("Q"), said("", tool_calls=[CALL]), turn("tool", "no", tool_call_id="c7"), said("No.")],
            "tools": TOOLS,
        },
        {"messages": [turn("developer", "S"), user("Q", name="Ann"), said("A", reasoning_content="hm")]},
        {"messages": [said("A first word"), user("Q"), said("A")]},
        {"messages": [user("Q\n\nmore of it"), said("A")], "input": "more of it"},
        {"messages": [user("Q"), said("A")], "rejected": [said("B")], "label": True},
        {"messages": [user(" Q \n"), said("  indented\n")]},
        {"messages": [user("### User: Q"), said("A")]},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S", "id": 1},
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": '{"name": "rain", "arguments": {}}', "weight": 0},
                {"from": "observation", "value": "no"},
                {"from": "gpt", "value": "No."},
            ],
            "tools": json.dumps(TOOLS),
        },
    ],
    "prompt+completion": [
        {"prompt": "The colour of snow is", "completion": " white.", "id": 3},
        {"prompt": [user("Q"), said("A"), user("R")], "completion": [said("B")]},
        {"prompt": [user("Q")], "completion": [said("A"), user("R"), said("B")], "n": None},
    ],
    "instruction+output": [
        {"instruction": "Add.", "input": "1 2", "output": "3", "level": "easy"},
        {"instruction": "Add.", "input": "", "output": "3"},
        {"instruction": "Add.", "output": "3"},
        {"instruction": "Add.", "input": None, "output": " 3\n"},
    ],
    "question+answer": [{"question": "Q", "answer": "A #### 1", "final": "1"}],
    "marked-text": [{"text": "### Human: Q\n### Assistant: A### Human: R\n### Assistant: B", "id": 4}],
    "text": [{"text": "Snow is white.", "source": "made up"}],
    "preference": [
        {"prompt": "Q", "chosen": " A", "rejected": " B", "score": 0.5},
        {"prompt": [user("Q"), said("A"), user("R")], "chosen": [said("B")], "rejected": [said("C")]},
        {"prompt": [user("Q")], "chosen": "A", "rejected": "B"},
        {"chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("B")]},
        {"prompt": "Q", "chosen": [turn("system", "S"), user("Q"), said("A")], "rejected": [turn("system", "S"), user("Q"), said("B")]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: B", "rejected": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: C"},
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"},
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4", "id": "x"},
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}},
        {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
        {"input": {"messages": [user("Q")], "tools": TOOLS}, "preferred_output": [said("A")], "non_preferred_output": [said("B")]},
        {"chosen": "The end is near", "rejected": "The end is far"},
    ],
    "kto": [
        {"messages": [user("Q"), said("A"), user("R"), said("B")], "label": True, "id": 5},
        {"prompt": "Q", "completion": "A", "label": False},
        {"prompt": [user("Q")], "completion": [said("A")], "label": False},
        {"instruction": "Add.", "input": "1 2", "output": "3", "kto_tag": True},
        {"messages": [user("Q"), said("", tool_calls=[CALL]), turn("tool", "no", tool_call_id="c7"), said("A")], "label": True},
    ],
}  # fmt: skip
ROWS = [(kind, row) for kind, rows in MADE.items() for row in rows]


def plain_turn(message, calls):
    """A message in the normal form that the documents describe: joined text, weights only where they are 0."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", part.get("value")) for part in content)
    kept = {
        name: value for name, value in message.items() if name not in ("weight", "loss_weight") and value is not None
    }
    kept["content"] = content or ""
    if message["role"] == "assistant" and 0 in (message.get("weight"), message.get("loss_weight")):
        kept["weight"] = 0
    if calls and "tool_calls" in kept:
        kept["tool_calls"] = checked_calls(kept["tool_calls"], "", "")
    if calls:
        kept.pop("tool_call_id", None)
    return kept


def normal(record, *, calls=False, stripped=False):
    """A record without what its formats write in more than one way."""

    def of(value, name):
        if isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value):
            turns = [plain_turn(one, calls) for one in value]
            for one in turns if name == "prompt" else ():
                one.pop("weight", None)
            return [one | {"content": one["content"].strip()} for one in turns] if stripped else turns
        return value.strip() if stripped and isinstance(value, str) else value

    return {name: of(value, name) for name, value in record.items()}


def in_lists(record):
    """A record with its text prompt and answers as messages."""
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    texts = {name: [turn(role, record[name])] for name, role in roles.items() if isinstance(record.get(name), str)}
    return record | texts


def kind_of(record, target):
    if target == "text":
        return "marked-text" if is_marked(record["text"]) else "text"
    return "preference" if "preferred_output" in record else KIND.get(target, target)


def there_and_back(rows):
    """Each row in every form, from there into every other and back; how many ways there were for each pair."""
    ways = {}
    for kind, row in rows:
        for first in TARGETS:
            try:
                starts = converted(row, kind, first, "r:1")
            except DataError:
                continue
            for start in starts:
                for second in TARGETS:
                    try:
                        [other] = converted(start, kind_of(start, first), second, "r:1")
                    except (DataError, ValueError):  # the target cannot hold it, or makes two rows of it
                        continue
                    back = turned_back(start, other, first, second)
                    if back:
                        ways[first, second] = ways.get((first, second), 0) + 1
    return ways


def turned_back(start, other, first, second):
    """Convert back and compare; False where the way back is one that another format has lost, as is documented."""
    if first == "text" and kind_of(start, first) == "text":
        assert other == start
        return True
    if first == "kto" and second == "openai":  # which has no verdicts
        return False
    if "preferred_output" in start and second != "preference":  # to OpenAI, what comes back is a chat, not a pair
        return False
    [back] = converted(other, kind_of(other, second), first, "r:1")
    if "openai" in (first, second):  # which keeps no other columns, so an instruction's input stays in the question
        start, back = (of_openai(one, first) for one in (start, back))
    through_text = second == "text" or first == "text"
    shape = {"calls": "openai" in (first, second), "stripped": through_text}
    assert normal(in_lists(back), **shape) == normal(in_lists(start), **shape), (first, second)
    return True


def of_openai(record, target):
    """What OpenAI's form holds of a record: its messages or pair, and its tools."""
    kind = kind_of(record, target)
    [made] = converted(record, kind, "preference" if kind == "preference" else "messages", "r:1")
    tools = [tool.get("function", tool) for tool in checked_tools(made, "") or []]
    names = ("prompt", "chosen", "rejected") if kind == "preference" else ("messages",)
    return {name: made[name] for name in names} | {"tools": tools}


def test_made_rows_go_there_and_back_between_all_formats_that_hold_them():
    ways = there_and_back(ROWS)
    chats = ("messages", "prompt_completion", "instruction", "text")
    assert all(ways.get((a, b), 0) >= 3 for a in chats for b in chats), ways
    for a, b in [("preference", "messages"), ("preference", "prompt_completion"), ("kto", "messages")]:
        assert ways.get((a, b), 0) >= 3, (a, b)


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_rows_go_there_and_back_and_are_recognised(name):
    found = list(records(str(SHARED / f"data/{name}.jsonl")))
    kind = recognise([value for _, value in found])
    assert kind == REAL[name]
    for place, value in found:
        check(value, kind, place)
    ways = there_and_back([(kind, value) for _, value in found[:300]])
    assert sum(ways.values()) >= 300


def trains(kind, record):
    row = parse_row(kind, record, "r:1")
    return row.messages, row.trained, row.tools


@pytest.mark.parametrize("to", ["messages", "prompt_completion", "instruction", "openai"])
def test_a_converted_row_trains_what_the_row_trained(to):
    held = 0
    for kind in ("messages", "sharegpt", "prompt+completion", "instruction+output", "question+answer", "marked-text"):
        for row in MADE[kind]:
            if isinstance(row.get("prompt"), str):
                continue  # text without a template becomes turns
            try:
                [made] = converted(row, kind, to, "r:1")
            except DataError:
                continue
            held += 1
            messages, trained, tools = trains(kind_of(made, to), made)
            wanted = trains(kind, row)
            for message in (*messages, *wanted[0]):
                message.pop("tool_call_id", None)
                message.pop("name", None) if message["role"] == "tool" else None
            assert (messages, trained, tools) == wanted
    assert held >= (8 if to == "instruction" else 13)


@pytest.mark.parametrize("to", [to for to in TARGETS if to != "openai"])
def test_every_column_survives(to):
    used = {name for names in COLUMNS.values() for name in names} | {"chosen", "rejected", "kto_tag", "system"}
    used |= {"preferred_output", "non_preferred_output", "input"}
    for kind, row in ROWS:
        try:
            made = converted(row, kind, to, "r:1")
        except DataError:
            continue
        for one in made:
            for name in row.keys() - used:
                assert one[name] == row[name]


REFUSED = [
    ("text", {"text": "a"}, "messages", "plain text asks and answers nothing, so it cannot become messages. Leave it text."),
    ("kto", MADE["kto"][1], "preference", "no rejected answer; preference needs a pair. Give a column `rejected`."),
    ("messages", MADE["messages"][0], "kto", "no verdict on the answer; kto needs one. Give a column `label` of true or false."),
    ("messages", MADE["messages"][4], "text", "turn 2: tool_calls has no place in text. Convert to messages."),
    ("messages", MADE["messages"][5], "instruction", "turn 1: a turn of the developer has no place in instruction. Convert to messages."),
    ("messages", MADE["messages"][1], "text", "turn 3: text trains every answer, this one is not. Convert to messages."),
    ("messages", {"messages": [user("Q"), said("A"), user("R"), said("B")]}, "instruction", "an instruction is one question and one answer, no more. Convert to messages."),
    ("messages", MADE["messages"][10], "text", "a turn holds a role marker such as `### User:` itself. Convert to messages."),
    ("messages", {**MADE["messages"][0], "tools": TOOLS}, "text", "tools have no place in text. Convert to messages."),
    ("messages", {**MADE["messages"][0], "input": "x"}, "instruction", "input: not the end of what is asked. Rename or remove the column."),
    ("messages", {**MADE["messages"][0], "prompt": "x"}, "prompt_completion", "prompt: the row has such a column already. Rename or remove it."),
    ("messages", MADE["messages"][6], "prompt_completion", "nothing stands before the first trained answer. Leave such rows as messages."),
    ("messages", MADE["messages"][5], "openai", "messages[2].reasoning_content: OpenAI takes no such field. Remove it."),
    ("messages", {"messages": [user("Q"), turn("tool", "x"), said("A")]}, "openai", "messages[1]: the answer of a tool that was not called. Fix or remove the line."),
    ("messages", {"messages": [user("Q"), said("A"), user("R")]}, "openai", "messages: the last is not the assistant's, so nothing is learnt. Remove what follows."),
    ("preference", {"prompt": "Q", "chosen": [said("A"), user("R"), said("B")], "rejected": "C"}, "openai", "preferred_output: OpenAI takes exactly one message of the assistant. Fix or remove the line."),
    ("preference", {"prompt": [user("Q")], "chosen": [user("R"), said("B")], "rejected": [said("A")]}, "messages", "where the answer begins is lost in messages. Convert to prompt_completion."),
    ("messages", {"messages": "x"}, "text", "messages: text; expected a list of messages."),
    ("kto", MADE["kto"][1], "openai", "label: false, and OpenAI would train the answer all the same. Leave the row out."),
    ("records", {"a": "b"}, "text", "rows taken as they are (`records`) cannot become text. Name their format."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "to", "reason"), REFUSED, ids=[f"{r[0]} to {r[2]} {i}" for i, r in enumerate(REFUSED)])  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(kind, row, to, reason):
    with pytest.raises(DataError) as caught:
        converted(row, kind, to, "r.jsonl:1")
    assert str(caught.value) == f"r.jsonl:1: {reason}"


def test_a_row_converts_to_what_the_documents_say():
    [row] = converted({"question": "Q", "answer": "A", "final": "1"}, "question+answer", "messages", "r:1")
    assert row == {"messages": [user("Q"), said("A")], "final": "1"}
    [row] = converted(MADE["instruction+output"][0], "instruction+output", "messages", "r:1")
    assert row == {"messages": [user("Add.\n\n1 2"), said("3")], "input": "1 2", "level": "easy"}
    [row] = converted(MADE["preference"][1], "preference", "messages", "r:1")
    assert row == {"messages": [user("Q"), said("A", weight=0), user("R"), said("B")], "rejected": [said("C")]}
    pair = converted(MADE["preference"][0], "preference", "kto", "r:1")
    assert pair == [
        {"prompt": "Q", "completion": " A", "label": True, "score": 0.5},
        {"prompt": "Q", "completion": " B", "label": False, "score": 0.5},
    ]
    [row] = converted(MADE["sharegpt"][0], "sharegpt", "text", "r:1")
    assert row == {"text": "### System: S\n### User: Q\n### Assistant: A", "id": 1}
    [row] = converted(MADE["sharegpt"][1], "sharegpt", None, "r:1")
    assert row is MADE["sharegpt"][1]


@pytest.mark.parametrize("kind", MADE)
def test_kinds_are_recognised_checked_and_told_apart(kind):
    assert recognise(MADE[kind]) == kind
    assert recognise([DataError("broken"), *MADE[kind], [1]]) == kind
    for row in MADE[kind]:
        check(row, kind, "r:1")
        assert answer_of(row, kind)
        assert bool(prompt_of(row, kind)) == (kind != "text")
    for row in (None, 3, [1], {}, {"text": 3}, DataError("r:1: broken")):
        with pytest.raises(DataError, match=r"^r:1: "):
            check(row, kind, "r:1")


def test_columns_of_no_kind_are_named_with_the_way_to_take_them_as_they_are():
    with pytest.raises(DataError) as caught:
        recognise([{"en": "a", "de": "b"}])
    assert str(caught.value) == (
        "columns [en, de]; expected one of: preference, kto, messages, sharegpt, prompt+completion, instruction+output, "
        "question+answer, text. Rename them, or set `format: records`, which takes rows as they are."
    )
    with pytest.raises(DataError, match="no row with named fields"):
        recognise([[1], DataError("x")])
    check({"tokens": ["a", "b"], "tags": [0, 1]}, "records", "r:1")
    with pytest.raises(DataError, match="r:1: no text in any field"):
        check({"n": 1, "text": " ", "more": [None]}, "records", "r:1")


def test_prompts_and_answers_are_told_as_text():
    assert prompt_of(MADE["messages"][1], "messages") == "S\n\nQ\n\nA\n\nR"
    assert answer_of(MADE["messages"][1], "messages") == "B"
    assert prompt_of(MADE["messages"][3], "messages") == "Q"
    assert answer_of(MADE["preference"][7], "preference") == "3"
    assert (prompt_of({"text": "a"}, "text"), answer_of({"text": "a"}, "text")) == ("", "a")
    assert (prompt_of({"a": "b"}, "records"), answer_of({"a": "b"}, "records")) == ("", "")
    for kind, row in ROWS:
        for to in TARGETS:
            try:
                made = converted(row, kind, to, "r:1")
            except DataError:
                continue
            assert all(answer_of(one, to) for one in made)
            if kind not in ("text", "marked-text", "kto") and to not in ("text", "kto", "preference", "openai"):
                assert prompt_of(made[0], to) == prompt_of(row, kind)


@pytest.mark.parametrize("kind", [*MADE, *TARGETS])
def test_the_fields_that_hold_text_are_named(kind):
    fields = text_fields(kind)
    rows = MADE.get(kind, []) + [one for source, row in ROWS for one in attempt(row, source, kind)]
    for row in rows:
        holding = {
            name for name, value in row.items() if value and name not in ("id", "final", "level", "source", "tools")
        }
        holding = {name for name in holding if isinstance(row[name], str | list)}
        assert holding <= fields, (kind, row)


def attempt(row, kind, to):
    if to not in TARGETS:
        return []
    try:
        return converted(row, kind, to, "r:1")
    except DataError:
        return []


def test_all_fields_of_records_hold_text():
    assert text_fields("records") is None


BROKEN_PAIRS = [
    ({"prompt": "Q", "chosen": "A"}, "field `rejected` is missing; the rows are preference. Fix or remove the line."),
    ({"prompt": "Q", "chosen": "A", "rejected": 3}, "rejected: a number; expected text or messages. Fix or remove the line."),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen and rejected are the same, so that none is preferred. Fix or remove the line."),
    ({"prompt": "Q", "chosen": "A", "rejected": " "}, "rejected: empty. Fix or remove the line."),
    ({"prompt": [], "chosen": "A", "rejected": "B"}, "prompt: empty; expected a list of messages."),
    ({"chosen": "A", "rejected": "B"}, "no prompt, and chosen and rejected do not begin alike. Give a field `prompt`."),
    ({"prompt": "X", "chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("B")]}, "prompt: other than what chosen and rejected both begin with. Fix or remove the line."),
    ({"prompt": [user("Q")], "chosen": [said("A"), user("R")], "rejected": [said("B")]}, "chosen: ends with the user's turn; expected the assistant's. Fix or remove the line."),
    ({"prompt": [user("Q")], "chosen": [said("")], "rejected": [said("B")]}, "chosen[0].content: empty; the assistant must say something. Fix or remove the line."),
    ({"prompt": "a \ud83d", "chosen": "A", "rejected": "B"}, "prompt: half of a surrogate pair, which is no character. Fix or remove the line."),
    ({"input": "x", "preferred_output": [said("A")], "non_preferred_output": [said("B")]}, "input: no messages in it; expected {messages: [...]}. Fix or remove the line."),
    ({"prompt": [3], "chosen": "A", "rejected": "B"}, "prompt: a list of other things; expected a list of messages."),
]  # fmt: skip


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize(("row", "reason"), BROKEN_PAIRS, ids=range(len(BROKEN_PAIRS)))
def test_a_broken_pair_is_named(row, reason, tmp_path):
    path = write_rows(tmp_path / "r.jsonl", MADE["preference"][0])
    path.write_text(path.read_text() + json.dumps(row))
    with pytest.raises(DataError) as caught:
        read_pairs(str(path))
    assert str(caught.value) == f"{path}:2: {reason}"
    found = read_pairs(str(path), on_bad_row="drop")
    assert len(found.rows) == 1
    assert found.rejected == [str(caught.value)]


BROKEN_VERDICTS = [
    ({"prompt": "Q", "completion": "A"}, "field `label` is missing; the rows are kto. Fix or remove the line."),
    ({"prompt": "Q", "completion": "A", "label": "yes"}, "label: text; expected true or false. Fix or remove the line."),
    ({"prompt": "Q", "completion": "A", "label": True, "kto_tag": False}, "label and kto_tag differ. Keep one."),
    ({"messages": [user("Q")], "label": True}, "completion: empty; expected a list of messages."),
    ({"messages": "Q", "label": True}, "messages: text; expected a list of messages."),
    ({"messages": [user("Q"), said("")], "label": True}, "messages[1].content: empty; the assistant must say something. Fix or remove the line."),
    ({"prompt": [user("Q")], "completion": [said("A", weight=2)], "label": True}, "completion[0].weight: `2`; expected 0 or 1."),
    ({"answer": "Q", "label": True}, "no answer; expected one of messages, sharegpt, prompt+completion, instruction+output, question+answer. Fix or remove the line."),
]  # fmt: skip


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize(("row", "reason"), BROKEN_VERDICTS, ids=range(len(BROKEN_VERDICTS)))
def test_a_broken_verdict_is_named(row, reason, tmp_path):
    path = write_rows(tmp_path / "r.jsonl", MADE["kto"][0], row)
    with pytest.raises(DataError) as caught:
        read_judged(str(path))
    assert str(caught.value) == f"{path}:2: {reason}"


def test_pairs_and_verdicts_are_read_with_mapped_columns(tmp_path):
    path = write_rows(tmp_path / "r.jsonl", {"q": "Q", "good": "A", "bad": "B"})
    [pair], _ = read_pairs(str(path), columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Q", "A", "B")
    [judged], _ = read_judged(str(write_rows(tmp_path / "k.jsonl", MADE["kto"][0])))
    assert (judged.prompt[-1], judged.completion, judged.label) == (user("R"), [said("B")], True)
    assert pair_of(MADE["preference"][5], "r:1").prompt == [user("Q"), said("A"), user("R")]
    assert pair_of(MADE["preference"][10], "r:1").tools == TOOLS


def test_broken_rows_of_any_kind_raise_nothing_but_data_errors():
    rng = random.Random(5)
    odd = [None, 3, "", " ", "a", [], [3], {}, {"role": "user"}, [{"role": "user", "content": 3}], [user("x")], True, 0]

    def spoiled(value):
        if isinstance(value, dict) and value and rng.random() < 0.7:
            name = rng.choice(sorted(value))
            return {**value, name: spoiled(value[name])}
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return [*value[:at], spoiled(value[at]), *value[at + 1 :]]
        return rng.choice(odd)

    held, refusals = 0, []
    for _ in range(300):
        for kind, row in ROWS:
            broken = spoiled(row)
            for to in TARGETS:
                try:
                    made = converted(broken, kind, to, "r:1")
                except DataError as error:
                    refusals.append(str(error))
                else:
                    held += 1
                    json.dumps(made)
    assert held > 3000
    assert all(text.startswith("r:1: ") and len(text.splitlines()) == 1 for text in refusals)


def test_openai_rows_get_ids_and_arguments_as_text():
    row = {"messages": [user("Q"), said(None, tool_calls=[{"name": "rain", "arguments": {"b": 1}}] * 2), turn("tool", "1"), turn("tool", "2"), said("A", loss_weight=0), user("R"), said("B")], "tools": [{"name": "rain"}], "id": 9}  # fmt: skip
    made = openai_record(row, "messages", "r:1")
    assert made["messages"][1] == {
        "role": "assistant",
        "tool_calls": [
            {"id": f"call_{i}", "type": "function", "function": {"name": "rain", "arguments": '{"b": 1}'}}
            for i in (1, 2)
        ],
    }
    assert [message.get("tool_call_id") for message in made["messages"][2:4]] == ["call_1", "call_2"]
    assert made["messages"][4] == said("A", weight=0)
    assert made["tools"] == [{"type": "function", "function": {"name": "rain"}}]
    assert made.keys() == {"messages", "tools"}
    assert problems(made, "r:1") == []
    assert trains("messages", made)[1] == trains("messages", row)[1]
    pair = openai_record(MADE["preference"][1], "preference", "r:1")
    assert pair == {"input": {"messages": [user("Q"), said("A"), user("R")]}, "preferred_output": [said("B")], "non_preferred_output": [said("C")]}  # fmt: skip


BAD_FOR_OPENAI = [
    (3, "the row is a number; expected an object with named fields."),
    ({"messages": []}, "messages: empty; expected a list of messages."),
    ({"messages": [turn("human", "a"), said("b")]}, "messages[0].role: `human`; expected one of system, developer, user, assistant, tool."),
    ({"messages": [user("a"), said("b")], "id": 1}, "id: OpenAI takes no such column. Remove it."),
    ({"messages": [user("a"), said("b", weight=0.5)]}, "messages[1].weight: `0.5`; expected 0 or 1."),
    ({"messages": [user("a", weight=0), said("b")]}, "messages[0].weight: OpenAI takes no such field. Remove it."),
    ({"messages": [user("a"), said("")]}, "messages[1].content: empty, and no tool is called. Fix or remove the line."),
    ({"messages": [user("a"), said("b", weight=0)]}, "messages: all assistant turns have weight 0, nothing to train on. Remove the line."),
    ({"messages": [user("a"), said("b"), user("c")]}, "messages: the last is not the assistant's, so nothing is learnt. Remove what follows."),
    ({"messages": [user("a"), said(None, tool_calls=[{"name": "f"}])]}, "messages[1].tool_calls[0]: expected {id, type: function, function: {name, arguments}}."),
    ({"messages": [user("a"), said(None, tool_calls=[{**CALL, "function": {"name": "f", "arguments": {}}}])]}, "messages[1].tool_calls[0].function.arguments: expected a JSON object as text."),
    ({"messages": [user("a"), turn("tool", "b", tool_call_id="c7"), said("c")]}, "messages[1].tool_call_id: of no call before it. Give the id of the call."),
    ({"messages": [user("a"), said("b")], "tools": [{"name": "f"}]}, "tools[0]: expected {type: function, function: {name, ...}}."),
    ({"messages": [user("a"), said("b")], "parallel_tool_calls": "no"}, "parallel_tool_calls: expected true or false."),
    ({"input": {"messages": [user("a")]}, "preferred_output": [user("a")], "non_preferred_output": [said("b")]}, "preferred_output: OpenAI takes exactly one message of the assistant. Fix or remove the line."),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD_FOR_OPENAI, ids=range(len(BAD_FOR_OPENAI)))
def test_what_openai_refuses_is_named(row, reason):
    assert problems(row, "r.jsonl:4") == [f"r.jsonl:4: {reason}"]


def test_a_file_for_openai_is_measured_and_priced():
    assert file_problems(10, 1000, 500) == []
    assert len(file_problems(9, 600_000_000, 70_000)) == 3
    assert estimate(1_000_000, 3, 25.0) == {"tokens": 1_000_000, "epochs": 3, "billed_tokens": 3_000_000, "price": 75.0}
    assert estimate(10, 1, None)["price"] is None


def test_the_examples_in_the_documents_are_what_they_stand_under(tmp_path):
    section = (ROOT / "docs/rows.md").read_text().partition("## Other formats and converting")[2]
    preference, kto = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    for kind, lines in (("preference", preference), ("kto", kto)):
        rows = [json.loads(line) for line in lines.splitlines()]
        assert recognise(rows) == kind
        for row in rows:
            check(row, kind, "r:1")
    assert re.findall(r"^\| (\w+) \| ", section, re.MULTILINE)[1:] == list(TARGETS)
