"""Files of preferences that are broken end dpo.py and kto.py in one line: file, line, what, and what to do."""

import gzip
import json

import pytest
from conftest import run_script
from test_bad_rows import TO_DO, parquet
from test_dpo import pairs_of_orders, written_recipe
from test_kto import judged_orders

from lorasmith.errors import DataError

FIX = "Fix or remove the line."
PAIR = {"prompt": "The colour of snow is", "chosen": " white.", "rejected": " black."}
ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TURNS = {"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID | {"content": "c"}]}
JUDGED = {"messages": [ASKED, SAID], "label": True}


def line(row, **changes):
    return json.dumps(row | changes).encode()


def cut(data):
    return data[: len(data) // 2]


MANY = [{key: f"{value} {i}" for key, value in PAIR.items()} for i in range(200)]
# Behind two good rows: the script, the line, and what is said of it.
LINES = {
    "cut off": ("dpo", line(PAIR)[:-12], "not valid JSON (expecting ':' delimiter at column 68). " + FIX),
    "not UTF-8": ("dpo", b'{"prompt": "a", "chosen": "caf\xe9", "rejected": "b"}', "not UTF-8 (invalid continuation byte). Save the file as UTF-8."),
    "an answer twice": ("dpo", b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}', "not valid JSON (field `chosen` is given twice). " + FIX),
    "an empty prompt": ("dpo", line(PAIR, prompt=""), "prompt: empty. " + FIX),
    "turns of nothing but spaces": ("dpo", line(TURNS, rejected=[SAID | {"content": " \n"}]), "rejected[0].content: empty; the assistant must say something. " + FIX),
    "no turn of the assistant": ("dpo", line(TURNS, chosen=[]), "chosen: empty; expected a list of messages."),
    "a turn without content": ("dpo", line(TURNS, chosen=[{"role": "assistant"}]), "chosen[0].content: null; expected text. " + FIX),
    "an unknown role": ("dpo", line(TURNS, prompt=[ASKED | {"role": "customer"}]), "prompt[0].role: `customer`; expected one of system, developer, user, assistant, tool."),
    "another prompt in each answer": ("dpo", line({}, chosen=[ASKED, SAID], rejected=[SAID | {"role": "user"}, SAID]), "no prompt, and chosen and rejected do not begin alike. Give a field `prompt`."),
    "a prompt that ends inside a token": ("dpo", line(PAIR, prompt="The colour of sn", chosen="ow.", rejected="ails."), "the answer begins in the middle of token 'na', which the model never sees when asked. End the prompt, or begin the answer, without white space."),
    "an answer beyond max_length": ("dpo", line(PAIR, chosen=" white" * 600), "1 of 3 rows are over trainer.max_length (512 tokens; the longest has 610). Set trainer.max_length: 616, which holds 99 %, or data.on_too_long: drop or truncate."),
    "no verdict at all": ("kto", line(JUDGED, label=None), "field `label` is missing; the rows are kto. " + FIX),
    "a verdict of 1": ("kto", line(JUDGED, label=1), "label: a number; expected true or false. " + FIX),
    "a tool's answer alone": ("kto", line(JUDGED, messages=[ASKED, {"role": "tool", "content": "b"}]), "completion: ends with the tool's turn; expected the assistant's. " + FIX),
    "a pair among verdicts": ("kto", line(PAIR), "field `label` is missing; the rows are kto. " + FIX),
    "a verdict among pairs": ("dpo", line(JUDGED), "field `chosen` is missing; the rows are preference. " + FIX),
}  # fmt: skip
FILES = {
    "a parquet file that is cut off": ("dpo", "rows.parquet", cut(parquet({k: [r[k] for r in MANY] for k in PAIR})), "not readable as parquet (cut off, or a file of another kind). Fetch or write the file again."),
    "a compressed file that is cut off": ("dpo", "rows.jsonl.gz", cut(gzip.compress(b"".join(line(r) + b"\n" for r in MANY))), "the compressed data is damaged or cut off. Fetch or write the file again."),
    "a table without one answer": ("dpo", "rows.csv", b"prompt,chosen\na,b\n", "field `rejected` is missing; the rows are preference. " + FIX),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    rows = {"dpo": pairs_of_orders(100), "kto": judged_orders(100)}
    return {name: written_recipe(tmp_path_factory.mktemp(name), rows[name]) for name in rows}


def refusal(recipes, script, path):
    with pytest.raises(DataError) as caught:
        run_script(script, recipes[script], f"data.train={path}", "data.eval=null", "output_dir=unset", "--dry-run")
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert TO_DO.search(told.partition(": ")[2]), "it does not say what to do"
    return told


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", LINES)
def test_a_broken_preference_ends_the_script_with_its_line(recipes, tmp_path, name):
    script, broken, told = LINES[name]
    good = {"dpo": [TURNS, TURNS | {"prompt": [SAID, ASKED]}], "kto": [JUDGED, JUDGED | {"label": False}]}[script]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*map(line, good), broken]) + b"\n")
    assert refusal(recipes, script, path) == f"{path}:3: {told}"


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_of_preferences_ends_the_script_with_its_name(recipes, tmp_path, name):
    script, file, data, told = FILES[name]
    (tmp_path / file).write_bytes(data)
    where, _, said = refusal(recipes, script, tmp_path / file).partition(": ")
    assert where.rpartition(":")[0] == str(tmp_path / file), "and the line up to which it could be read"
    assert said == told
