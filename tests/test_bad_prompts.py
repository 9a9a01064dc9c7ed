"""Files of prompts that are broken end grpo.py in one line: file, line, what, and what to do."""

import datetime
import gzip
import json
import re

import pytest
from conftest import BASE, write_rows
from test_bad_rows import parquet
from transformers import AutoTokenizer

from lorasmith.data.prepare_prompts import prepare_prompts, read_train_and_eval_prompts
from lorasmith.errors import DataError
from lorasmith.recipe import Data

TO_DO = re.compile(r"Fix|Save|Give|Fetch|Rename|Write|Remove|Set |expected|must")
FIX = "Fix or remove the line."
ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = SAID | {"tool_calls": [{"name": "weather", "arguments": {}}]}
QUESTION = {"question": "What is 2 + 2?", "answer": "4"}
MANY = b"".join(json.dumps(QUESTION | {"id": n}).encode() + b"\n" for n in range(99))
# Behind two good rows: the line, and what is said of it.
LINES = {
    "cut off": (b'{"question": "a', "not valid JSON (unterminated string starting at at column 14). " + FIX),
    "not UTF-8": (b'{"question": "caf\xe9"}', "not UTF-8 (invalid continuation byte). Save the file as UTF-8."),
    "a field twice": (b'{"question": "a", "question": "b"}', "not valid JSON (field `question` is given twice). " + FIX),
    "a list": (b'["a"]', "the row is a list; expected an object with named fields."),
    "nothing asked": ({"answer": "4", "final": 4}, "nothing is asked in the columns [answer, final]; expected one of: messages, conversations, prompt, instruction, question. Rename one, or map it with data.columns."),
    "a null prompt": ({"prompt": None, "answer": "4"}, "prompt: null; expected text or messages. " + FIX),
    "a prompt that is a number": ({"prompt": 4}, "prompt: a number; expected text or messages. " + FIX),
    "an empty prompt": ({"prompt": " \n"}, "prompt: empty. " + FIX),
    "an empty question": ({"question": ""}, "question: empty. " + FIX),
    "no messages": ({"prompt": []}, "prompt: empty; expected a list of messages."),
    "a list of texts": ({"prompt": ["a"]}, "prompt: a list of other things; expected a list of messages."),
    "an unknown role": ({"messages": [ASKED | {"role": "customer"}]}, "messages[0].role: `customer`; expected one of system, developer, user, assistant, tool."),
    "a turn without content": ({"messages": [{"role": "user"}, SAID]}, "messages[0].content: null; expected text. " + FIX),
    "an answered prompt": ({"prompt": [ASKED, SAID]}, "prompt: ends with the assistant's turn; expected the user's, to be answered. " + FIX),
    "an answered transcript": ({"prompt": "\n\nHuman: a\n\nAssistant: b"}, "prompt: ends with the assistant's turn; expected the user's, to be answered. " + FIX),
    "nothing but an answer": ({"messages": [SAID]}, "messages: no turn before the assistant's, so that nothing is asked. " + FIX),
    "nothing but a system turn": ({"messages": [{"role": "system", "content": "a"}]}, "messages: ends with the system's turn; expected the user's, to be answered. " + FIX),
    "a broken answer behind it": ({"messages": [ASKED, SAID | {"content": ""}]}, "messages[1].content: empty; the assistant must say something. " + FIX),
    "an unknown speaker": ({"conversations": [{"from": "bot", "value": "a"}]}, "conversations[0].from: `bot`; expected one of human, user, gpt, assistant, system, function_call, observation, tool."),
    "a column of trl's": (QUESTION | {"completions": []}, "column `completions` has a name that trl gives to something else. Rename it, as by data.columns: {my_completions: completions}."),
    "a picture": (QUESTION | {"image": "a.png"}, "column `image` has a name that trl gives to something else. Rename it, as by data.columns: {my_image: image}."),
    "tools": (QUESTION | {"tools": [{"name": "weather"}]}, "tools: grpo.py shows the model none, so it could not call them. Remove the field."),
    "half a surrogate pair": (b'{"question": "\\ud83d"}', "question: half of a surrogate pair, which is no character. " + FIX),
    "text among messages": ({"prompt": "Snow is", "answer": "white"}, "the prompt is text, that of PATH:1 is messages. Write all the same way."),
    "a call that the template leaves out": ({"prompt": [ASKED, CALL, {"role": "tool", "content": "3"}]}, "messages[1]: the chat template leaves the tool call `weather` out. Set model.chat_template to one that knows tools, such as chatml."),
    "too long": ({"question": "long " * 100}, "1 of 3 prompts are over data.max_prompt_length (64 tokens; the longest has 315). Set data.max_prompt_length: 320, which holds 99 %, or data.on_too_long: drop."),
}  # fmt: skip
FILES = {
    "empty": ("rows.jsonl", b"", ": no rows. Give at least one."),
    "a compressed file that is cut off": ("rows.jsonl.gz", gzip.compress(MANY)[:40], ":1: the compressed data is damaged or cut off. Fetch or write the file again."),
    "a table without a question": ("rows.csv", b"answer,final\na,b\n", f":2: {LINES['nothing asked'][1]}"),
    "a date": ("rows.parquet", parquet({"question": ["a"], "when": [datetime.date(2020, 1, 1)]}), ":1: when: `2020-01-01` (date) is no JSON value. Write it as text, or remove the column."),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def refusal(tokenizer, path, **section):
    data = Data(train=str(path), **section)
    with pytest.raises(DataError) as caught:
        prepare_prompts(data, tokenizer, *read_train_and_eval_prompts(data, 42), 64)
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert TO_DO.search(told.partition(": ")[2]), "it does not say what to do"
    return told


def broken(path, line):
    lines = [QUESTION, QUESTION | {"question": "b?"}]
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(b"\n".join([*(json.dumps(row).encode() for row in lines), data]) + b"\n")
    return path


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", LINES)
def test_a_broken_prompt_is_refused_with_its_line(tokenizer, tmp_path, name):
    line, told = LINES[name]
    path = broken(tmp_path / "rows.jsonl", line)
    assert refusal(tokenizer, path) == f"{path}:3: {told}".replace("PATH", str(path))


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_of_prompts_is_refused_with_its_name(tokenizer, tmp_path, name):
    file, data, told = FILES[name]
    (tmp_path / file).write_bytes(data)
    assert refusal(tokenizer, tmp_path / file) == f"{tmp_path / file}{told}"


@pytest.mark.scorecard(row="R6")
def test_a_prompt_that_is_also_trained_on_is_refused_with_both_lines(tokenizer, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", {"question": "a"}, QUESTION)
    for changed in (QUESTION, QUESTION | {"answer": "5"}, {"messages": [ASKED | {"content": QUESTION["question"]}]}):
        held = write_rows(tmp_path / "held.jsonl", {"question": "c"}, changed)
        what = "row" if changed == QUESTION else "prompt"
        assert refusal(tokenizer, train, eval=str(held)) == (
            f"{held}:2: the same {what} is trained on ({train}:2). Remove it from one of the files."
        )


@pytest.mark.scorecard(row="R6")
def test_dropped_prompts_are_listed_with_their_lines(tokenizer, tmp_path):
    lines = [
        LINES[name][0] for name in ("an empty question", "tools", "a call that the template leaves out", "too long")
    ]
    path = write_rows(tmp_path / "rows.jsonl", QUESTION, *lines)
    data = Data(train=str(path), on_bad_row="drop", on_too_long="drop")
    found = prepare_prompts(data, tokenizer, *read_train_and_eval_prompts(data, 1), 64)
    assert [row.place for row in found.train] == [f"{path}:1"]
    assert [line.partition(": ")[0] for line in found.rejected] == [f"{path}:{n}" for n in (2, 3, 4, 5)]
    assert found.accounts["train"].dropped == {"refused by the template": 1, "too long": 1}


@pytest.mark.scorecard(row="R6")
def test_prompts_that_the_tokenizer_begins_or_ends_wrongly_are_refused(tokenizer, tmp_path):
    eos = tokenizer.eos_token
    path = write_rows(tmp_path / "rows.jsonl", {"prompt": f"Snow is{eos}"})
    assert refusal(tokenizer, path).startswith(
        f"{path}:1: ends with {eos}, behind which a model says nothing. Remove it;"
    )
    twice = AutoTokenizer.from_pretrained(BASE)
    twice.bos_token = "<|im_start|>"
    path = write_rows(tmp_path / "rows.jsonl", {"prompt": "<|im_start|><|im_start|>Snow"})
    assert refusal(twice, path) == (
        f"{path}:1: begins with <|im_start|> twice. Remove it from the row, or from the template."
    )
    twice.chat_template = None
    path = write_rows(tmp_path / "rows.jsonl", {"question": "a"})
    assert refusal(twice, path) == (
        f"{path}:1: the tokenizer has no chat template. Set model.chat_template: chatml, or a .jinja file."
    )
