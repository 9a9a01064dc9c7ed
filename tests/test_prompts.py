"""Prompts of grpo.py: asked as sft.py asks them, and their columns handed to rewards as they stand in the file."""

import json
import random
from dataclasses import asdict

import pytest
from conftest import BASE, SHARED, needs_shared, write_rows
from transformers import AutoTokenizer

from lorasmith.data import prompts as reading
from lorasmith.data.audit import write_audit
from lorasmith.data.formats import parse_row, read_rows
from lorasmith.data.prepare_prompts import (
    prepare_prompts,
    prompts_as_dataset,
    read_train_and_eval_prompts,
    restored,
    tokenize_prompts,
)
from lorasmith.data.prompts import Prompt, prompt_of, read_prompts, with_answer
from lorasmith.data.render import IGNORED, answer_prompt, tokenize
from lorasmith.recipe import Data
from lorasmith.rewards import checking, loading
from lorasmith.runs.proving import kept_rows

HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
MORE = {"role": "user", "content": "More?"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def prepared(tokenizer, path, longest=None, **section):
    data = Data(train=str(path), **section)
    return prepare_prompts(data, tokenizer, *read_train_and_eval_prompts(data, 42), longest)


def asked(record, **options):
    return prompt_of(record, "rows.jsonl:1", **options).asked


SHAPES = {
    "question": ({"question": "Hi"}, [HI]),
    "instruction": ({"instruction": "Add.", "input": "1 2"}, [{"role": "user", "content": "Add.\n\n1 2"}]),
    "text": ({"prompt": "Snow is"}, "Snow is"),
    "messages": ({"messages": [HI]}, [HI]),
    "prompt of messages": ({"prompt": [HI, HELLO, MORE]}, [HI, HELLO, MORE]),
    "prompt of one message": ({"prompt": HI}, [HI]),
    "messages before a prompt": ({"prompt": "Hi", "messages": [HI, HELLO, MORE, HELLO]}, [HI, HELLO, MORE]),
    "an answer at the end": ({"messages": [HI, HELLO, MORE, HELLO]}, [HI, HELLO, MORE]),
    "weights": ({"messages": [HI, HELLO | {"weight": 0}, MORE, HELLO]}, [HI, HELLO, MORE]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [HI]),
    "a tool's answer": (
        {"messages": [HI, HELLO | {"tool_calls": [{"name": "f"}]}, {"role": "tool", "content": "3"}]},
        [HI, HELLO | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}, {"role": "tool", "content": "3"}],
    ),
    "a transcript": ({"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More?\n\nAssistant:"}, [HI, HELLO, MORE]),
    "markers": ({"text": "### Human: Hi\n### Assistant: Hello"}, [HI]),
    "a pair": ({"prompt": "Hi", "chosen": [HELLO], "rejected": [HELLO | {"content": "No"}]}, [HI]),
    "a system column": ({"system": "Be brief.", "prompt": "Hi"}, [{"role": "system", "content": "Be brief."}, HI]),
    "text before messages": ({"prompt": "Hi", "completion": [HELLO]}, [HI]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_that_asks_is_read(name):
    record, wanted = SHAPES[name]
    assert asked(record) == wanted


ANSWERED = {
    "question+answer": {"question": "Hi", "answer": "Hello"},
    "instruction+output": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "prompt+completion": {"prompt": "Snow is", "completion": " white."},
    "messages": {"messages": [HI, HELLO, MORE, HELLO]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "a"}], "system": "s"},
    "marked-text": {"text": "### Human: Hi\n### Assistant: Hello"},
}


@pytest.mark.parametrize("kind", ANSWERED)
def test_the_model_is_asked_with_the_tokens_that_sft_shows_it_before_an_answer(tokenizer, kind):
    row = parse_row(kind, ANSWERED[kind], "rows.jsonl:1")
    [ours] = tokenize_prompts(tokenizer, [prompt_of(ANSWERED[kind], "rows.jsonl:1")])
    assert list(ours.ids) == answer_prompt(tokenizer, row)
    [trained] = tokenize(tokenizer, [row], "assistant")
    last_context = max(
        i for i, label in enumerate(trained.labels[:-1]) if label == IGNORED and i < last_trained(trained)
    )
    assert list(ours.ids) == list(trained.input_ids[: last_context + 1])


def last_trained(row):
    return max(i for i, label in enumerate(row.labels) if label != IGNORED)


def test_a_system_turn_of_the_recipe_stands_before_prompts_that_have_none():
    turn = {"role": "system", "content": "Think."}
    assert asked({"question": "Hi"}, system="Think.") == [turn, HI]
    assert asked({"prompt": "Hi"}, system="Think.") == [turn, HI]
    own = [{"role": "developer", "content": "Be brief."}, HI]
    assert asked({"prompt": own}, system="Think.") == own


def test_an_answer_that_rows_hold_becomes_a_column_that_trl_hands_over():
    def columns(record):
        return prompt_of(record, "rows.jsonl:1").columns

    assert columns({"messages": [HI, HELLO]}) == {"messages": [HI, HELLO], "answer": "Hello"}
    later = [HI, HELLO | {"weight": 0}, MORE, HELLO | {"content": "Yes"}, MORE, HELLO | {"content": "No"}]
    assert columns({"messages": later})["answer"] == "Yes", "the answer to the question that is asked"
    assert columns({"prompt": "a", "completion": " b"}) == {"completion": " b", "answer": " b"}
    assert columns({"prompt": "a", "completion": " b", "answer": "c"}) == {"completion": " b", "answer": "c"}
    assert columns({"question": "a", "solution": 3}) == {"question": "a", "solution": 3}
    judged = {"messages": [HI, HELLO], "label": False}
    assert columns(judged) == judged, "a judged answer is not known to be right"


def test_rows_that_lack_a_column_have_none_in_it_and_that_is_said_once(tmp_path, capsys):
    rows = [{"question": f"{n}?", **({"hint": "h"} if n else {})} for n in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    held = write_rows(tmp_path / "held.jsonl", {"question": "x?", "source": {"a": 1}})
    train, held_out, _ = read_train_and_eval_prompts(Data(train=str(path), eval=str(held)), 1)
    assert [prompt.columns for prompt in train][:2] == [
        {"question": "0?", "hint": None, "source": None},
        {"question": "1?", "hint": "h", "source": None},
    ]
    assert held_out[0].columns == {"question": "x?", "hint": None, "source": {"a": 1}}
    told = [line for line in capsys.readouterr().out.splitlines() if "as None" in line]
    assert len(told) == 1
    assert "`hint` (2), `source` (3)" in told[0]


def any_json(draw, depth=0):
    """A JSON value of any kind, such as Arrow would change: keys of one object alone, numbers and texts in one list."""
    kinds = ["text", "number", "fraction", "truth", "null", *(["list", "object"] * 2 if depth < 3 else [])]
    kind = draw.choice(kinds)
    if kind == "list":
        return [any_json(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == "object":
        return {draw.choice("abcdé") + str(i): any_json(draw, depth + 1) for i in range(draw.randrange(4))}
    texts = ["", "a", "\0", "ß🙂", "null", "1", "{}", " \n\u2028"]
    numbers = [0, -1, 2**31, 2**63, 10**30]
    fractions = [0.0, -0.0, 1.0, 0.1, 1e300]
    return {"text": draw.choice(texts), "number": draw.choice(numbers), "fraction": draw.choice(fractions)}.get(
        kind, draw.choice([True, False]) if kind == "truth" else None
    )


@pytest.mark.parametrize("seed", range(5))
def test_columns_reach_a_reward_as_they_stand_in_the_file(tokenizer, tmp_path, seed):
    draw = random.Random(seed)
    names = ["answer", "tests", "meta", "_a b", "columns"]
    turns = [[HI], [HI | {"name": "Ada"}], [HI, HELLO | {"extra": {"k": [1, "x"]}}, MORE]]
    rows = [{"prompt": draw.choice(turns), **{name: any_json(draw) for name in names}} for _ in range(30)]
    found = read_prompts(str(write_rows(tmp_path / "rows.jsonl", *rows))).rows
    dataset = prompts_as_dataset(tokenize_prompts(tokenizer, found))
    order = draw.sample(range(30), 30)
    back = restored(dataset.select(order).__getitems__(list(range(30))))
    assert [json.dumps(row) for row in back] == [json.dumps(rows[i]) for i in order]
    assert restored([dataset[3]]) == [rows[3]]
    assert dataset.column_names == ["prompt", *names, "input_ids"]


def test_arrow_by_itself_would_change_the_columns():
    from datasets import Dataset

    assert Dataset.from_dict({"a": [{"x": 1}, {"y": 2.0}]})["a"][:] == [{"x": 1, "y": None}, {"x": None, "y": 2.0}]


def test_trl_asks_with_the_same_ids_and_hands_over_the_same_columns(tokenizer, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    seen = {}

    def reward(completions, **columns):
        seen.update(columns)
        return [0.0] * len(completions)

    rows = [{"question": f"{n} + {n}?", "meta": {f"k{n}": [n, str(n)]}, "tests": [n, None, "x"][n]} for n in range(3)]
    kinds = {"messages": rows, "text": [{"prompt": f"Snow {n}", "tests": n} for n in range(3)]}
    for kind, records in kinds.items():
        found = read_prompts(str(write_rows(tmp_path / f"{kind}.jsonl", *records)), system=None).rows
        tokens = tokenize_prompts(tokenizer, found)
        config = GRPOConfig(
            output_dir=str(tmp_path / kind), per_device_train_batch_size=6, num_generations=2, use_cpu=True, bf16=False,
            report_to="none", shuffle_dataset=False,
        )  # fmt: skip
        dataset = prompts_as_dataset(tokens)
        trainer = GRPOTrainer(BASE, reward, args=config, train_dataset=dataset, processing_class=tokenizer)
        theirs, _, _ = trainer._tokenize_prompts([row["prompt"] for row in dataset])
        assert theirs == [one.ids.tolist() for one in tokens]
        batch = restored(next(iter(trainer.get_train_dataloader())))
        asked = [row["prompt"] for row in batch]
        trainer._calculate_rewards(batch, asked, asked, [[1]] * 6)
        given = checking.as_trl(batch, [""] * 6)
        assert seen.keys() == given.keys() - {"completions"}
        for name in records[0].keys() - {"prompt"}:
            assert seen[name] == [record[name] for record in records for _ in range(2)]
        seen.clear()


def test_what_trl_names_itself_is_refused_as_a_column():
    assert {*loading.GIVEN, "image", "images", "input_ids"} == set(reading.TAKEN)
    assert reading.ANSWERS == checking.ANSWERS


def test_other_columns_are_another_run(tokenizer, tmp_path):
    rows = [{"question": f"{n}?", "answer": str(n)} for n in range(3)]
    marks = [
        prepared(tokenizer, write_rows(tmp_path / "rows.jsonl", *changed)).fingerprint
        for changed in (rows, rows, [*rows[:2], rows[2] | {"answer": "3"}], [*rows[:2], rows[2] | {"question": "3?"}])
    ]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


def test_the_audit_says_how_the_model_is_asked_and_what_rewards_get(tokenizer, tmp_path, capsys):
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", *rows, rows[0], {"question": "long " * 90, "answer": "1"})
    held = write_rows(tmp_path / "held.jsonl", {"question": "a?", "answer": " "}, {"question": "b?", "answer": 4})
    found = prepared(tokenizer, path, 64, on_too_long="drop", eval=str(held))
    told = capsys.readouterr().out
    assert "prompts: 42 read, 41 kept, 1 dropped (too long)\n" in told
    assert "evaluation prompts: 2 read, 2 kept\n" in told
    assert "prompts: 1 stand in an earlier row too" in told
    assert "3 prompts as the model sees them:\n" in told
    assert "<|im_start|>user\n    What is 0 + 0?<|im_end|>\n    <|im_start|>assistant" in told
    assert "columns that rewards are given: question, answer\n" in told
    assert found.rejected == [f"{path}:42: {len(long_ids(tokenizer))} tokens, over data.max_prompt_length (64)."]
    assert [set(row.labels) for row in found.train] == [{IGNORED}] * 41
    assert [row.place for row in found.train] == [one.prompt.place for one in found.train_prompts]
    assert [row.answer for row in found.eval_rows] == ["4"], "an answer of white space is none"
    write_audit(tmp_path, tokenizer, found.train, found.accounts, found.mask_check)
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["train"]["trained"] == 41
    page = (tmp_path / "audit.html").read_text()
    assert "prompts: 42 read, 41 kept" in page
    assert "mark</mark>" not in page
    assert "trained" not in page.partition("<body")[2].replace("What is trained on", "")


def long_ids(tokenizer):
    return tokenize_prompts(tokenizer, [Prompt("a:1", messages=[{"role": "user", "content": "long " * 90}])])[0].ids


def test_what_is_odd_about_how_the_model_is_asked_is_said(tokenizer, tmp_path, capsys):
    found = prepared(tokenizer, write_rows(tmp_path / "rows.jsonl", {"prompt": "Snow is"}))
    told = capsys.readouterr().out
    assert "prompts: text, taken as it is without the chat template" in told
    assert "columns that rewards are given: none\n" in told
    assert tokenizer.decode(found.train[0].input_ids) == "Snow is"
    closed = AutoTokenizer.from_pretrained(BASE)
    closed.chat_template = closed.chat_template.replace("add_generation_prompt", "nothing")
    prepared(closed, write_rows(tmp_path / "rows.jsonl", {"question": "Hi"}))
    assert "the chat template does not open the assistant's turn" in capsys.readouterr().out


def test_rows_with_a_known_answer_can_prove_an_export(tokenizer, tmp_path):
    held = [{"prompt": "Snow is", "solution": " white."}, {"prompt": "The sk", "solution": "y"}, {"prompt": "Rain"}]
    path = write_rows(tmp_path / "rows.jsonl", {"prompt": "Ice is", "solution": " cold."})
    found = prepared(tokenizer, path, eval=str(write_rows(tmp_path / "held.jsonl", *held)))
    assert "Snow is white." in [row.prompt + row.completion for row in found.eval_rows]
    assert all(row.supervised for row in tokenize(tokenizer, found.eval_rows, "assistant"))
    (tmp_path / "private").mkdir()
    write_rows(tmp_path / "private/eval_rows.jsonl", *map(asdict, found.eval_rows))
    assert kept_rows(tmp_path, 8) == found.eval_rows
    assert with_answer(Prompt("a:1", text="Rain")) is None


@needs_shared
def test_gsm8k_is_asked_as_it_is_and_its_answers_are_right(tokenizer, capsys):
    train, test = (str(SHARED / f"data/math_gsm8k_{part}.jsonl") for part in ("train", "test"))
    data = Data(train=train, eval=test)
    found = prepare_prompts(data, tokenizer, *read_train_and_eval_prompts(data, 1), None)
    assert (len(found.train_prompts), len(found.eval_prompts), len(found.eval_rows)) == (7473, 1319, 1319)
    rows = restored(list(prompts_as_dataset(found.train_prompts).select(range(50))))
    with open(train) as file:
        records = [json.loads(line) for line, _ in zip(file, range(50), strict=False)]
    assert [{key: row[key] for key in records[0]} for row in rows] == records
    theirs = read_rows(train).rows
    assert [list(one.ids) for one in found.train_prompts[:50]] == [answer_prompt(tokenizer, row) for row in theirs[:50]]
    [line] = checking.check(loading.load(["rewards/match.py:numeric"]), rows)
    assert "1.00 for the rows' answers, 0.00 for no text" in line
