"""Preparing rows: what is planted is found and nothing else, the split is stable, an interrupted one ends the same."""

import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SHARED, launch, load_benchmark, needs_shared, sft, write_rows

from lorasmith.errors import DataError, RecipeError, RunError
from lorasmith.preparation import load_preparation
from lorasmith.preparing import pipeline


def prepare(*words) -> Path:
    """Run prepare.py in this process, which saves its imports, and give the output folder."""
    spec = importlib.util.spec_from_file_location("prepare_script", ROOT / "scripts/prepare.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before, sys.argv = sys.argv, ["scripts/prepare.py", *map(str, words)]
    try:
        script.main()
    finally:
        sys.argv = before
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    listed = [str(word) for word in words]
    if "--out" in listed:
        return Path(listed[listed.index("--out") + 1])
    return Path(next((word.partition("=")[2] for word in listed if word.startswith("output_dir=")), listed[0]))


def read(path):
    """The rows of a jsonl file; str.splitlines would end them at U+2028 as well."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def rows_of(folder, *names):
    """The rows of some splits, by default all."""
    paths = [folder / f"{name}.jsonl" for name in names or ("train", "eval", "test")]
    return [row for path in paths if path.exists() for row in read(path)]


def removed(folder):
    """Line -> reason of the rows that were left out."""
    return {int(one["place"].rpartition(":")[2]): one["reason"] for one in read(folder / "private/removed.jsonl")}


def summary(folder):
    return json.loads((folder / "manifest.json").read_text())["summary"]


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def made(count, seed=0, start=0):
    """Clean rows of made-up words, none like another."""
    words = load_benchmark("prepare_rows").vocabulary(1)
    draw = random.Random(seed)
    return [
        {
            "instruction": " ".join(draw.choices(words, k=20)),
            "output": " ".join(draw.choices(words, k=40)),
            "id": start + i,
        }
        for i in range(count)
    ]


# --- what is planted is found ----------------------------------------------------------------------------------------

PRIVATE = [
    *(("email", f"{name}.{i}@mail-{i}.org") for i, name in enumerate(("ann", "bo", "cy", "di", "ed", "flo", "gus"))),
    *(("phone", text) for text in ("+44 20 7946 0958", "+49 30 901820", "+1 415-555-2671", "(212) 555-0198")),
    *(
        ("iban", text)
        for text in ("DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "FR1420041010050500013M02606")
    ),
    *(("card", text) for text in ("4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009", "6011000000000004")),
    *(("ip", text) for text in ("192.168.14.7", "203.0.113.77", "2001:db8:85a3::8a2e:370:7334")),
    *(("url", f"https://user{i}:hunter2{i}@example.com/x") for i in range(3)),
    *(("national_id", text) for text in ("078-05-1126", "219-09-9987", "123-45-6781")),
    ("secret", "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"),
    ("secret", "AKIA" + "IOSFODNN7EXAMPLQ"),
    ("secret", "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90Kl12Mn34"),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """2,000 real rows with others among them, each of which stands for one thing that must be found."""
    if not SHARED.is_dir():
        pytest.skip("the real rows of ../shared are not here")
    folder = tmp_path_factory.mktemp("planted")
    alpaca, math = (read(SHARED / f"data/{name}.jsonl") for name in ("sft_alpaca_en", "math_gsm8k_train"))
    asked = read(SHARED / "data/math_gsm8k_test.jsonl")[:300]
    real = [{"question": f"{row['instruction']}\n{row['input']}".strip(), "answer": row["output"]} for row in alpaca]
    real += [{"question": row["question"], "answer": row["answer"]} for row in math[: 2000 - len(real)]]
    draw = random.Random(5)
    long = [row for row in real if len(row["answer"].split()) >= 30]
    plants = [("exact duplicate", dict(row)) for row in draw.sample(long, 7)]
    for i, row in enumerate(draw.sample(long, 5)):
        spaced = row["answer"].replace(" ", "  ") if i % 2 else row["answer"]
        plants.append(("normalised duplicate", {"question": row["question"].upper(), "answer": spaced}))
    for row in draw.sample(long, 20):
        words = row["answer"].split(" ")
        for i in draw.sample(range(len(words)), len(words) // 10):
            words[i] = draw.choice(("amber", "violin", "harbour", "seventeen"))
        plants.append(("near duplicate", {"question": row["question"], "answer": " ".join(words)}))
    for row in draw.sample(long, 3):
        plants.append(("same prompt", {"question": row["question"], "answer": " ".join(draw.choices(asked[0]["question"].split(), k=25)) + str(draw.random())}))  # fmt: skip
    for i, row in enumerate(asked[:10]):
        question = row["question"] if i % 2 else f"Here is a riddle of mine. {row['question']} Tell me."
        plants.append(("contaminated", {"question": question, "answer": f"It is {row['final']}."}))
    fresh = made(30, 3)
    for (kind, text), row in zip(PRIVATE, fresh, strict=True):
        plants.append(
            (kind, {"question": row["instruction"], "answer": f"{row['output']}. You can use {text} for it."})
        )
    rows = [("", row) for row in real]
    for plant in plants:
        rows.insert(draw.randrange(len(real), len(rows) + 1), plant)  # behind the real ones, which are the first
    write_rows(folder / "rows.jsonl", *(row for _, row in rows))
    write_rows(folder / "asked.jsonl", *asked)
    out = prepare(folder / "rows.jsonl", "--out", folder / "out", f"decontaminate.against=[{folder}/asked.jsonl]")
    return out, [kind for kind, _ in rows]


@needs_shared
@pytest.mark.scorecard(row="R14")
def test_each_planted_row_is_found_and_under_its_name(planted):
    out, kinds = planted
    gone = removed(out)
    for line, kind in enumerate(kinds, 1):
        if kind in ("exact duplicate", "normalised duplicate", "near duplicate", "contaminated"):
            assert gone.get(line) == kind, line


@needs_shared
@pytest.mark.scorecard(row="R14")
def test_hardly_a_real_row_is_touched(planted):
    out, kinds = planted
    gone = {line: why for line, why in removed(out).items() if not kinds[line - 1] and why != "refused answer"}
    assert len(gone) <= 0.01 * 2000, gone
    assert summary(out)["changes"].get("html", {"rows": 0})["rows"] <= 20


@needs_shared
@pytest.mark.scorecard(row="R14")
def test_each_private_item_is_masked_once_and_hardly_anything_else(planted):
    out, _ = planted
    text = "\n".join(path.read_text() for path in out.glob("*.*"))
    for _, item in PRIVATE:
        assert item not in text, item
    counted = {kind: told["items"] for kind, told in summary(out)["masked"].items()}
    wanted = {kind: sum(one == kind for one, _ in PRIVATE) for kind, _ in PRIVATE}
    assert all(counted.get(kind, 0) >= count for kind, count in wanted.items()), (counted, wanted)
    assert sum(counted.values()) <= sum(wanted.values()) + 20, counted


@needs_shared
@pytest.mark.scorecard(row="R14")
def test_rows_with_one_prompt_stay_on_one_side(planted):
    out, _ = planted
    sides = {}
    for name in ("train", "eval", "test"):
        for row in rows_of(out, name):
            sides.setdefault(row["question"], set()).add(name)
    assert all(len(one) == 1 for one in sides.values())


@needs_shared
@pytest.mark.scorecard(row="R13")
def test_every_row_is_accounted_for(planted):
    out, kinds = planted
    told = summary(out)
    assert told["steps"][0]["rows_in"] == len(kinds)
    for before, after in zip(told["steps"], told["steps"][1:], strict=False):
        assert before["rows_out"] == after["rows_in"]
    for step in told["steps"]:
        assert step["rows_in"] - step["rows_out"] == sum(step["removed"].values()), step
    assert told["steps"][-1]["rows_out"] == len(rows_of(out))
    assert len(removed(out)) == len(kinds) - len(rows_of(out))


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.scorecard(row="R14")
def test_a_test_row_of_yesterday_is_never_trained_on_tomorrow(tmp_path):
    rows = made(600)
    draw = random.Random(2)
    near = [row | {"output": row["output"].rsplit(" ", 2)[0] + f" new{i}", "id": 1000 + i} for i, row in enumerate(draw.sample(rows, 150))]  # fmt: skip
    more = made(300, seed=9, start=2000) + near
    draw.shuffle(more)
    options = ["duplicates.near=false"]
    before = prepare(write_rows(tmp_path / "a.jsonl", *rows), "--out", tmp_path / "a", *options)
    after = prepare(
        write_rows(tmp_path / "b.jsonl", *more[:200], *rows, *more[200:]), "--out", tmp_path / "b", *options
    )
    held = {row["id"] for row in rows_of(before, "test")}
    assert 30 < len(held) < 100
    assert not held & {row["id"] for row in rows_of(after, "train")}
    assert held <= {row["id"] for row in rows_of(after)}
    other = prepare(tmp_path / "a.jsonl", "--out", tmp_path / "c", "seed=7", *options)
    assert held != {row["id"] for row in rows_of(other, "test")}


@pytest.mark.scorecard(row="R14")
def test_near_duplicates_that_are_kept_do_not_straddle(tmp_path):
    rows = made(300)
    twins = [
        row | {"output": " ".join(row["output"].split(" ")[:-1]), "instruction": row["instruction"] + " x"}
        for row in rows
    ]
    labelled = [row | {"label": i % 2} for i, row in enumerate(rows)] + [
        row | {"label": 1 - i % 2} for i, row in enumerate(twins)
    ]
    out = prepare(write_rows(tmp_path / "rows.jsonl", *labelled), "--out", tmp_path / "out")
    side = {}
    for name in ("train", "eval", "test"):
        for row in rows_of(out, name):
            side.setdefault(row["id"], []).append(name)
    assert len(rows_of(out)) == 600, "rows with different labels are no duplicates"
    assert all(one[0] == one[1] for one in side.values())


def test_shares_and_labels_come_out_as_asked(tmp_path):
    rows = [row | {"label": ("good", "bad", "ugly")[min(2, i % 10 // 4)]} for i, row in enumerate(made(4000))]
    out = prepare(write_rows(tmp_path / "rows.jsonl", *rows), "--out", tmp_path / "out")
    told = summary(out)
    sizes = {name: part["rows"] for name, part in told["splits"].items()}
    assert sum(sizes.values()) == 4000
    assert abs(sizes["test"] - 400) < 60
    assert abs(sizes["eval"] - 400) < 60
    for name, counts in told["labels"].items():
        assert abs(counts["good"] / sizes[name] - 0.4) < 0.07, name
        assert sum(counts.values()) == sizes[name]


def test_a_group_stays_together_and_the_newest_rows_test(tmp_path):
    rows = [
        row | {"author": f"a{i % 40}@mail.org", "day": f"2026-01-{1 + i % 28:02d}"} for i, row in enumerate(made(800))
    ]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    grouped = prepare(path, "--out", tmp_path / "g", "split.by=group", "split.column=author")
    by_side = [{row["id"] % 40 for row in rows_of(grouped, name)} for name in ("train", "eval", "test")]
    assert sum(map(len, by_side)) == len(set().union(*by_side)) == 40
    assert {row["author"] for row in rows_of(grouped)} == {"[EMAIL_1]"}, "masked behind the split"
    timed = prepare(path, "--out", tmp_path / "t", "split.by=time", "split.column=day")
    days = [[row["day"] for row in rows_of(timed, name)] for name in ("train", "eval", "test")]
    assert max(days[0]) < min(days[1])
    assert max(days[1]) < min(days[2])
    without = [*rows[:5], {key: value for key, value in rows[5].items() if key != "author"}, *rows[6:]]
    write_rows(path, *without)
    out = prepare(path, "--out", tmp_path / "m", "split.by=group", "split.column=author")
    [told] = read(out / "private/rejected.jsonl")
    assert told["place"] == f"{path}:6"
    assert "author: missing" in told["reason"]


def test_weights_mix_the_training_rows_alone(tmp_path):
    a, b = made(1000), made(500, seed=3, start=5000)
    write_rows(tmp_path / "a.jsonl", *a)
    write_rows(tmp_path / "b.jsonl", *b)
    recipe = tmp_path / "mix.yaml"
    recipe.write_text(
        f"sources:\n  - {{path: {tmp_path}/a.jsonl, weight: 0.3}}\n  - {{path: {tmp_path}/b.jsonl, weight: 2.5}}\n"
        f"output_dir: {tmp_path}/out\n"
    )
    out = prepare(recipe, f"output_dir={tmp_path}/out")
    trained = [row["id"] for row in rows_of(out, "train")]
    small, large = sum(one < 5000 for one in trained), sum(one >= 5000 for one in trained)
    assert abs(small / 800 - 0.3) < 0.06
    assert abs(large / 400 - 2.5) < 0.15
    held = [row["id"] for row in rows_of(out, "eval", "test")]
    assert len(held) == len(set(held))
    assert sum(one < 5000 for one in held) > 120


# --- the same bytes, interrupted or not ------------------------------------------------------------------------------


def test_twice_and_by_one_process_or_two_it_is_the_same_bytes(tmp_path, monkeypatch):
    load_benchmark("prepare_rows").write_rows(tmp_path / "raw", 3000)
    words = (
        tmp_path / "raw/rows.jsonl",
        "--out",
        tmp_path / "out",
        f"decontaminate.against=[{tmp_path}/raw/eval.jsonl]",
    )
    first = bytes_of(prepare(*words))
    assert bytes_of(prepare(*words, "--overwrite")) == first
    monkeypatch.setattr(pipeline, "SMALL", 0)
    assert bytes_of(prepare(*words, "--overwrite", "--processes", "2")) == first


def test_the_same_preparation_is_reused_and_another_is_not_replaced(tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", *made(60))
    out = prepare(path, "--out", tmp_path / "out")
    before = {one.name: one.stat().st_mtime_ns for one in out.iterdir()}
    prepare(path, "--out", out)
    assert "holds this very preparation" in capsys.readouterr().out
    assert {one.name: one.stat().st_mtime_ns for one in out.iterdir()} == before
    with pytest.raises(RunError, match=r"other settings \(seed\)\. Choose another output_dir, or --overwrite"):
        prepare(path, "--out", out, "seed=1")
    with pytest.raises(RunError, match=r"other settings \(clean.html, read.strict\)"):
        prepare(path, "--out", out, "clean.html=false", "--strict")
    prepare(out / "recipe.yaml")
    assert "holds this very preparation" in capsys.readouterr().out
    write_rows(path, *made(90))  # new rows, the same settings: what a daily run does
    assert len(rows_of(prepare(path, "--out", out))) == 90
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(RunError, match="is not empty and holds no preparation"):
        prepare(path, "--out", tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(tmp_path, number):
    load_benchmark("prepare_rows").write_rows(tmp_path / "raw", 12_000)
    words = [sys.executable, "scripts/prepare.py", str(tmp_path / "raw/rows.jsonl"), "--out", str(tmp_path / "out")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        end = time.time() + 400
        while not list((tmp_path / "out/.work").glob("[0-9]*.json")):
            assert time.time() < end
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(60)
    assert code == (75 if number == signal.SIGTERM else -number), (tmp_path / "log").read_text()
    if number == signal.SIGTERM:
        assert (
            "stopped: SIGTERM received. What is done is kept; the same command goes on."
            in (tmp_path / "log").read_text()
        )
    assert not (tmp_path / "out/manifest.json").exists()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "goes on behind" in done.stdout
    resumed = bytes_of(tmp_path / "out")
    again = launch(*words[1:], "--overwrite", "--processes", "1")
    assert again.returncode == 0, again.stderr
    assert bytes_of(tmp_path / "out") == resumed
    assert not (tmp_path / "out/.work").exists()


def test_parts_of_other_rows_are_not_gone_on_with(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", *made(50))
    chosen = pipeline.plan(load_preparation(None, {"sources": [str(path)], "output_dir": str(tmp_path / "out")}, []))
    pipeline.make_parts(chosen, pipeline.open_folder(chosen, False), 1)  # and interrupted here
    write_rows(path, *made(50, seed=8, start=500))
    assert {row["id"] for row in rows_of(prepare(path, "--out", tmp_path / "out"))} == set(range(500, 550))


def test_no_file_of_a_preparation_holds_what_was_masked(tmp_path):
    # Its cleaning is an example on the page, cut in the midst of the address.
    broken = "It\u00e2\u20ac\u2122s the long and winding address of a friend of mine: ann.lee@mail-7.org, "
    rows = [
        {"instruction": f"{broken} {i}", "output": f"{row['output']} ann.lee@mail-7.org"}
        for i, row in enumerate(made(12))
    ]
    rows += [{"instruction": "Hi ann.lee@mail-7.org", "output": "I'm sorry, but I can't help ann.lee@mail-7.org."}] * 3
    out = prepare(write_rows(tmp_path / "rows.jsonl", *rows), "--out", tmp_path / "out", "duplicates.near=false")
    for path in out.rglob("*.*"):
        assert "ann.lee" not in path.read_text(), path
    assert "[EMAIL_1]" in (out / "report.html").read_text()
    assert summary(out)["masked"]["email"]["rows"] == len(rows_of(out)) > 5


# --- the real files, the recipes and the command ---------------------------------------------------------------------

REAL = {
    "sft_alpaca_en": [],
    "math_gsm8k_train": [],
    "tools_glaive_sharegpt": [],
    "chat_v1_sft_demo": [],
    "cls_sst2_test": [],
    "text_c4_demo": [],
    "pref_hh_harmless_dpo": ["--to", "messages"],
    "pref_llamafactory_kto": ["--to", "messages"],
}


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_files_come_out_trainable(tmp_path, name, capsys):
    out = prepare(SHARED / f"data/{name}.jsonl", "--out", tmp_path / "out", *REAL[name])
    told = summary(out)
    assert told["rejected"]["rows"] <= 0.01 * told["steps"][0]["rows_in"], told["rejected"]
    unwanted = told["removed"].get("unwanted answer", {"rows": 0})["rows"]
    assert unwanted == (150 if "kto" in name else 0), "an answer that was judged bad is never trained"
    assert told["steps"][-1]["rows_out"] > 0.6 * (told["steps"][0]["rows_in"] - unwanted), told["steps"]
    capsys.readouterr()
    sft("recipes/quickstart.yaml", "--dry-run", f"data.train={out}/train.jsonl", "data.eval=null", "data.on_too_long=drop",
        "trainer.max_length=512", "trainer.eval_strategy=no", "model.chat_template=chatml", f"output_dir={tmp_path}/run")  # fmt: skip
    assert "is as it was prepared" in capsys.readouterr().out


@needs_shared
@pytest.mark.parametrize("name", ["pref_hh_harmless_dpo", "pref_llamafactory_kto"])
def test_preference_and_judged_rows_stay_what_they_are(tmp_path, name):
    out = prepare(SHARED / f"data/{name}.jsonl", "--out", tmp_path / "out")
    told = summary(out)
    assert told["format"] == ("preference" if "hh" in name else "kto")
    assert "refused answer" not in told["removed"], "an answer that declines was judged, so it teaches something"
    assert told["rejected"]["rows"] <= 3
    first = read(SHARED / f"data/{name}.jsonl")[0]
    assert all(row.keys() == first.keys() for row in rows_of(out))


RECIPES = sorted((ROOT / "recipes/prepare").glob("*.yaml"))
MADE = {
    "convert": {"instruction": "{i}", "output": "{o}"},
    "chat": {"messages": [{"role": "user", "content": "{i}"}, {"role": "assistant", "content": "{o}"}]},
    "openai": {"messages": [{"role": "user", "content": "{i}"}, {"role": "assistant", "content": "{o}"}]},
    "classification": {"text": "{o}", "label": "good"},
    "preference": {"prompt": "{i}", "chosen": "{o}", "rejected": "{i}"},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_prepares_rows(tmp_path, path, capsys):
    recipe = load_preparation(path, {}, [])
    assert Path(recipe.output_dir).name == path.stem
    assert f"scripts/prepare.py recipes/prepare/{path.name}" in path.read_text()
    if path.stem == "text":
        source = tmp_path / "documents"
        source.mkdir()
        for i, row in enumerate(made(60)):
            (source / f"{i}.md").write_text(f"# Title {i}\n\n{row['instruction']}.\n\n{row['output']}.\n")
    else:
        text = json.dumps(MADE[path.stem])
        filled = [json.loads(text.replace("{i}", row["instruction"]).replace("{o}", row["output"])) for row in made(80)]
        source = write_rows(tmp_path / "rows.jsonl", *filled)
    out = prepare(path, f"sources={source}", f"output_dir={tmp_path}/out")
    assert summary(out)["splits"]["train"]["rows"] > 40
    if path.stem == "openai":
        train = summary(out)["splits"]["train"]["rows"]
        assert f"openai: {train} examples, about " in capsys.readouterr().out
    if path.stem == "convert":
        assert [row["messages"][1]["content"] for row in rows_of(out)] == [row["output"] for row in filled]
    assert (out / "report.html").stat().st_size > 5000
    assert "train.jsonl" in (out / "dataset_card.md").read_text()


def test_the_schema_of_preparations_is_current():
    from lorasmith.preparation import Preparation

    stored = json.loads((ROOT / "recipes/prepare.schema.json").read_text())
    assert stored == Preparation.model_json_schema(), "run: make schema"


def test_the_command_says_what_became_of_the_rows_and_what_comes_next(tmp_path):
    done = launch("scripts/prepare.py", "quickstart/data/train.jsonl", "--out", tmp_path / "orders")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "rows: quickstart/data/train.jsonl, recognised as messages"
    assert (
        done.stdout.splitlines()[-1]
        == f"next: accelerate launch scripts/sft.py RECIPE data.train={tmp_path}/orders/train.jsonl"
    )
    dry = launch("scripts/prepare.py", "quickstart/data/train.jsonl", "--out", tmp_path / "dry", "--dry-run")
    assert dry.returncode == 0
    assert "threshold: 0.65" in dry.stdout
    assert not (tmp_path / "dry").exists()


WRONG = {
    "no words": ([], "no recipe and no sources"),
    "no output": (["quickstart/data/train.jsonl"], "no output folder. Give one with --out"),
    "a typo": (["quickstart/data/train.jsonl", "--out", "{out}", "clean.unicod=true"], "Did you mean `unicode`?"),
    "a typo a floor up": (["quickstart/data/train.jsonl", "--out", "{out}", "spilt.test=0"], "Did you mean `split`?"),
    "a wrong shape": (["quickstart/data/train.jsonl", "--out", "{out}", "--to", "message"], "Did you mean `messages`?"),
    "shares": (["quickstart/data/train.jsonl", "--out", "{out}", "split.test=0.95"], "expected a sum below 1"),
    "no column": (["quickstart/data/train.jsonl", "--out", "{out}", "split.by=group"], "need split.column"),
    "processes": (["quickstart/data/train.jsonl", "--out", "{out}", "--processes", "0"], "expected at least 1"),
    "no file": (["nowhere.jsonl", "--out", "{out}"], "nowhere.jsonl: no such file"),
    "no match": (["nowhere/*.jsonl", "--out", "{out}"], "nowhere/*.jsonl: no file matches this pattern."),
    "kinds": (
        ["quickstart/data/train.jsonl", "--out", "{out}", "private.kinds=[mail]"],
        "expected structured, all, or some of",
    ),
    "tokenizer": (
        ["quickstart/data/train.jsonl", "--out", "{out}", "report.tokenizer=nowhere"],
        "has no tokenizer.json",
    ),
    "mixed": (["quickstart/data/train.jsonl", "{mixed}", "--out", "{out}"], "Set read.to (--to)"),
    "another kind": (["{mixed}", "--out", "{out}", "read.format=messages"], "all 3 rows are broken"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_is_one_line(tmp_path, name):
    words, told = WRONG[name]
    mixed = write_rows(tmp_path / "mixed.jsonl", *made(3))
    words = [word.format(out=tmp_path / "out", mixed=mixed) for word in words]
    with pytest.raises((RecipeError, DataError)) as caught:
        prepare(*words)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out/train.jsonl").exists()


def test_a_missing_library_is_named_before_the_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "LIBRARIES", ("ftfy", "no-such-library"))
    with pytest.raises(
        RunError, match=r"no-such-library: not installed, .* pip install -c constraints.txt -e '.\[data\]'"
    ):
        prepare("quickstart/data/train.jsonl", "--out", tmp_path / "out")


def test_a_wrong_command_takes_under_two_seconds():
    start = time.perf_counter()
    done = launch("scripts/prepare.py", "quickstart/data/train.jsonl", "--out", "x", "clean.unicod=true")
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: clean: unknown key `unicod`.")
    assert time.perf_counter() - start < 2 * (1 + os.getloadavg()[0])
