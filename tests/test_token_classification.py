"""scripts/token_classification.py: encoders and decoders with a head, on words with tags."""

import json
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ENCODER_WORDS, ROOT, launch, load_benchmark, losses, run_script, stop_after, write_rows

from lorasmith.errors import LorasmithError
from lorasmith.runs.measuring_tags import TagFigures

pytestmark = pytest.mark.usefixtures("no_network")

RECIPE = "recipes/token_classification/minilm-wnut-lora-cpu.yaml"
KINDS = {"red": "warm", "orange": "warm", "blue": "cold", "green": "cold"}
SIZES = {"warm": "small", "cold": "large"}
OTHERS = [word for word in ENCODER_WORDS if word not in KINDS and word not in SIZES.values()]
# Words that the tokenizer of `base` knows only in two parts.
PARTS = {"orange": ("ora", "##nge"), "green": ("gre", "##en"), "chair": ("ch", "##air"), "lamp": ("la", "##mp")}


def sentences(count: int, seed: int, words: int = 8) -> list[dict[str, Any]]:
    """Words of which a colour begins an entity, and the size that may stand behind it belongs to it."""
    drawn = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        tokens: list[str] = []
        tags: list[str] = []
        while len(tokens) < words:
            word = drawn.choice([*KINDS, *drawn.sample(OTHERS, 5)])
            kind = KINDS.get(word)
            tokens.append(word)
            tags.append(f"B-{kind}" if kind else "O")
            if kind and len(tokens) < words and drawn.random() < 0.5:
                tokens.append(SIZES[kind])
                tags.append(f"I-{kind}")
        found[" ".join(tokens)] = {"tokens": tokens, "ner_tags": tags}
    return list(found.values())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    made = sentences(500, 0)
    long = [
        {"tokens": [w for one in made[at : at + 5] for w in one["tokens"]],
         "ner_tags": [t for one in made[at : at + 5] for t in one["ner_tags"]]}
        for at in (400, 405)
    ]  # fmt: skip
    return write_rows(folder / "train.jsonl", *made[:400]), write_rows(folder / "test.jsonl", *made[410:], *long)


@pytest.fixture(scope="module")
def base(small_encoder, tmp_path_factory):
    """A random BERT without dropout, whose tokenizer splits some words, and all unknown ones into letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz.,'-_0123456789"
    pieces = [part for parts in PARTS.values() for part in parts]
    known = [word for word in ENCODER_WORDS if word not in PARTS and len(word) > 1]
    vocabulary = {one: at for at, one in enumerate([*special, *known, *pieces, *letters, *(f"##{x}" for x in letters)])}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = tmp_path_factory.mktemp("base") / "bert"
    shutil.copytree(small_encoder("bert", vocab_size=len(vocabulary), **still), folder)
    words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


def words_for(model: Any, rows: Any, out: Any, *more: str) -> list[str]:
    return [
        RECIPE,
        f"model.name={model}",
        f"data.train={rows[0]}",
        f"data.eval={rows[1]}",
        f"output_dir={out}",
        "trainer.max_length=32",
        "trainer.logging_steps=1",
        "trainer.eval_strategy=no",
        "trainer.warmup_steps=0",
        "trainer.learning_rate=2e-3",
        *more,
    ]


def tagger(model: Any, rows: Any, out: Path, *more: str) -> Path:
    return run_script("token_classification", *words_for(model, rows, out, *more))


def after(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["metrics"]["after"]


def told(model: Path, rows: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """What predict.py says of rows."""
    run_script("predict", model, rows, "--output", out, "--overwrite", *more)
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def learnt(base, rows, tmp_path_factory):
    """A BERT that finds entities, finished, with all its files."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    done = launch(
        "scripts/token_classification.py",
        *words_for(base, rows, out, "trainer.max_steps=60", "trainer.learning_rate=5e-3"),
    )
    assert done.returncode == 0, done.stderr
    assert "entities: " in done.stdout
    assert "2 are longer than trainer.max_length and read in windows" in done.stdout
    return out


def test_a_tagger_with_one_tag_for_all_words_is_told(capsys):
    row, window = SimpleNamespace(tags=("O", "B-warm")), SimpleNamespace(row=0, words=[-1, 0, 1, -1])
    figures = TagFigures(SimpleNamespace(eval_rows=[row], windows=[window]), ["O", "B-warm"])
    for tags, line in (([0, 0, 0, 0], "warning: every word of the evaluation rows is given `O`"), ([0, 0, 1, 0], "")):
        figures(SimpleNamespace(predictions=[tags]))
        figures.warn()
        assert capsys.readouterr().err[: len(line) or None] == line


def test_a_bert_learns_planted_entities(learnt):
    assert after(learnt)["eval_f1_micro"] >= 0.95
    assert after(learnt)["eval_f1_of_warm"] >= 0.95
    names = {"task.json", "README.md", "adapter_model.safetensors", "tokenizer.json", "audit.html", "status.json"}
    assert names <= {path.name for path in learnt.iterdir()}
    card = (learnt / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "| f1_of_cold |" in card
    assert "| f1_micro |" in card
    task = json.loads((learnt / "task.json").read_text())
    assert task["labels"] == ["O", "B-cold", "I-cold", "B-warm", "I-warm"]


def test_the_figures_of_a_run_are_seqevals_on_what_predict_says(learnt, rows, tmp_path):
    seqeval = pytest.importorskip("seqeval.metrics")
    said = [one["tags"] for one in told(learnt, rows[1], tmp_path / "answers.jsonl")]
    gold = [json.loads(line)["ner_tags"] for line in rows[1].read_text().splitlines()]
    assert after(learnt)["eval_f1_micro"] == pytest.approx(seqeval.f1_score(gold, said))
    assert after(learnt)["eval_f1_macro"] == pytest.approx(seqeval.f1_score(gold, said, average="macro"))
    assert after(learnt)["eval_precision_micro"] == pytest.approx(seqeval.precision_score(gold, said))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama"])
def test_models_of_every_architecture_train_and_come_back(kind, small_encoder, small_model, rows, tmp_path):
    pytest.importorskip("seqeval")
    from seqeval.metrics import f1_score

    folder = (small_model if kind in ("gpt2", "llama") else small_encoder)(kind)
    more = ("trainer.max_steps=6", "run.effective_batch=8", "trainer.train_sampling_strategy=group_by_length")
    out = tagger(folder, rows, tmp_path / "run", *more)
    said = [one["tags"] for one in told(out, rows[1], tmp_path / "answers.jsonl")]
    gold = [json.loads(line)["ner_tags"] for line in rows[1].read_text().splitlines()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert after(out)["eval_f1_micro"] == pytest.approx(f1_score(gold, said), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_learns_planted_entities(kind, small_model, rows, tmp_path):
    settings = ("trainer.max_steps=150", "trainer.learning_rate=5e-3", "trainer.max_length=128")
    out = tagger(small_model(kind), rows, tmp_path / "run", *settings)
    assert after(out)["eval_f1_micro"] >= 0.95


def test_losses_are_those_of_transformers_own_trainer(base, rows, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    settings = ("trainer.max_steps=6", "run.effective_batch=8", "trainer.learning_rate=1e-3", "trainer.max_grad_norm=0")
    out = tagger(base, rows, tmp_path / "run", *settings, "run.micro_batch=2")
    tokenizer = AutoTokenizer.from_pretrained(base)
    read = [json.loads(line) for line in rows[0].read_text().splitlines()]
    names = ["O", "B-cold", "I-cold", "B-warm", "I-warm"]
    columns = tokenizer([row["tokens"] for row in read], is_split_into_words=True)
    labels = []  # as in run_ner.py
    for at, row in enumerate(read):
        ids = columns.word_ids(at)
        starts = [word is not None and (not i or ids[i - 1] != word) for i, word in enumerate(ids)]
        labels.append(
            [names.index(row["ner_tags"][w]) if first else -100 for w, first in zip(ids, starts, strict=True)]
        )
    set_seed(42)
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=5)
    linear = ["query", "key", "value", "dense"]  # peft's all-linear takes a tagger's head in, and fails
    lora = LoraConfig(task_type="TOKEN_CLS", r=16, lora_alpha=32, target_modules=linear)
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
        train_dataset=Dataset.from_dict({**columns, "labels": labels}),
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    theirs.train()
    expected = [event["loss"] for event in theirs.state.log_history if "loss" in event]
    assert losses(out) == pytest.approx(expected, abs=1e-5)


def test_micro_batches_of_any_size_learn_the_same(base, tmp_path):
    made = [row for words in (3, 5, 9, 14) for row in sentences(8, words, words)]
    data = write_rows(tmp_path / "train.jsonl", *made), "null"
    both = []
    for micro in (8, 1):
        more = ("trainer.max_steps=4", "run.effective_batch=8", f"run.micro_batch={micro}")
        both.append(losses(tagger(base, data, tmp_path / f"run{micro}", *more)))
    assert both[0] == pytest.approx(both[1], abs=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_tagger_learns_and_merges_with_proof(quantization, base, rows, tmp_path):
    steps = ("trainer.max_steps=60", "trainer.learning_rate=5e-3", f"model.quantization={quantization}")
    out = tagger(base, rows, tmp_path / "run", *steps)
    assert after(out)["eval_f1_micro"] >= 0.95
    run_script("merge", out, "--out", tmp_path / "merged")
    proof = json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert proof["proven"]
    assert proof["drift"]["top1"] == 1
    assert proof["drift"]["rows"] == 32


@pytest.fixture(scope="module")
def merged(learnt, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "model"
    run_script("merge", learnt, "--out", out)
    return out


def test_a_merged_tagger_gives_the_same_entities_in_a_plain_pipeline_as_predict(learnt, merged, tmp_path):
    from transformers import pipeline

    texts = [
        "The red small box, a green lamp.",
        "Was 'blue large chair' old? the orange",
        "door",
        "orange small red-green large.",
    ]
    found = pipeline("token-classification", model=str(merged), aggregation_strategy="first")(texts)
    plain = write_rows(tmp_path / "texts.jsonl", *({"text": text} for text in texts))
    for model in (learnt, merged):
        ours = told(model, plain, tmp_path / "answers.jsonl")
        for text, one, other in zip(texts, ours, found, strict=True):
            assert [(e["label"], e["start"], e["end"]) for e in one["entities"]] == [
                (e["entity_group"], e["start"], e["end"]) for e in other
            ]
            assert [e["score"] for e in one["entities"]] == pytest.approx([e["score"] for e in other], abs=1e-4)
            assert all(text[e["start"] : e["end"]] == e["text"] for e in one["entities"])
            assert len(one["words"]) == len(one["tags"]) == len(one["probabilities"])
        assert ours[0]["entities"][0]["text"] == "red small"
    assert "blue large" in [e["text"] for e in ours[1]["entities"]]


def test_words_joined_by_an_underscore_are_one_word_to_predict_and_three_to_the_pipeline(merged, tmp_path):
    from transformers import pipeline

    text = "red_small"
    found = pipeline("token-classification", model=str(merged), aggregation_strategy="first")(text)
    [one] = told(merged, write_rows(tmp_path / "texts.jsonl", {"text": text}), tmp_path / "answers.jsonl")
    assert one["words"] == [text]
    assert [(e["start"], e["end"]) for e in one["entities"]] == [(0, 9)]
    assert (found[0]["start"], found[0]["end"]) == (0, 3)


def test_a_long_row_is_read_in_windows_and_no_word_is_left_out(learnt, tmp_path):
    made = sentences(40, 7)
    long = {part: [one for row in made for one in row[part]] for part in ("tokens", "ner_tags")}
    [one] = told(learnt, write_rows(tmp_path / "long.jsonl", long), tmp_path / "answers.jsonl")
    assert len(one["tags"]) == 320
    assert sum(a == b for a, b in zip(one["tags"], long["ner_tags"], strict=True)) > 300
    text = " ".join(long["tokens"])
    assert all(text[e["start"] : e["end"]] == e["text"] for e in one["entities"])


def test_the_card_loads_the_adapter_as_it_says(learnt):
    code = (learnt / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('folder = "run"', f'folder = "{learnt}"').replace('"..."', '"the red small box"')
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "'entity_group': 'warm'" in done.stdout


def test_a_prediction_that_was_interrupted_goes_on(learnt, rows, tmp_path, capsys):
    from lorasmith.runs import predicting, predicting_tags
    from lorasmith.runs.opening import open_task
    from lorasmith.runs.results import fingerprint

    out = tmp_path / "answers.jsonl"
    whole = told(learnt, rows[1], out)
    out.unlink()
    opened = open_task(str(learnt), None)
    read = predicting_tags.read_words(opened, str(rows[1]))
    key = fingerprint(predicting.identity(opened, str(learnt)), [row.digest for row in read])
    kept = ({**one, "row": str(one["row"] - 1)} for one in whole[:50])
    out.with_name(f"{out.name}.{key}.part").write_text(
        "".join(json.dumps(one) + "\n" for one in kept) + '{"row": "50", '
    )
    capsys.readouterr()
    again = told(learnt, rows[1], out)
    assert "rows: 50 were answered before" in capsys.readouterr().out
    for one, other in zip(again, whole, strict=True):
        assert (one["row"], one["place"], one["tags"]) == (other["row"], other["place"], other["tags"])
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(base, rows, tmp_path):
    more = ("trainer.max_steps=12", "run.effective_batch=8", "trainer.save_steps=4", "run.keep_checkpoints=true")
    whole = tagger(base, rows, tmp_path / "whole", *more)
    words = words_for(base, rows, tmp_path / "cut", *more)
    stop_after("token_classification", 5, *words)
    again = run_script("token_classification", *words)
    one, other = ((out / "adapter_model.safetensors").read_bytes() for out in (whole, again))
    assert one == other
    assert losses(whole) == losses(again)
    assert after(whole)["eval_f1_micro"] == after(again)["eval_f1_micro"]


def test_plain_tags_of_raw_text_and_of_numbers_are_learnt_without_evaluation_rows(base, tmp_path):
    """Parts of speech by number, merged on made-up rows."""
    names = ["COLOUR", "SIZE", "OTHER"]
    made = [
        {"words": row["tokens"], "tags": [0 if w in KINDS else 1 if w in SIZES.values() else 2 for w in row["tokens"]]}
        for row in sentences(300, 3)
    ]
    data = write_rows(tmp_path / "train.jsonl", *made[:240]), "null"
    named = ("trainer.max_steps=30", f"task.labels=[{', '.join(names)}]")
    out = tagger(base, data, tmp_path / "run", *named)
    test = write_rows(tmp_path / "test.jsonl", *made[240:])
    said = told(out, test, tmp_path / "answers.jsonl")
    gold = [[names[tag] for tag in row["tags"]] for row in made[240:]]
    right = sum(a == b for one, tags in zip(said, gold, strict=True) for a, b in zip(one["tags"], tags, strict=True))
    assert right / sum(map(len, gold)) >= 0.95
    assert "entities" not in said[0]
    run_script("merge", out, "--out", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "proof.json").read_text())["proven"]


def test_figures_of_plain_tags_are_scikit_learns(tmp_path):
    sklearn = pytest.importorskip("sklearn.metrics")
    from lorasmith.evaluation.tag_metrics import tag_metrics

    drawn = random.Random(5)
    labels = ["NOUN", "VERB", "DET", "X"]  # X never occurs
    gold = [[drawn.choice(labels[:3]) for _ in range(drawn.randrange(1, 9))] for _ in range(30)]
    said = [[one if drawn.random() < 0.6 else drawn.choice(labels[:3]) for one in row] for row in gold]
    found = {one.name: one.value for one in tag_metrics(gold, said, labels)}
    flat = [[one for row in side for one in row] for side in (gold, said)]
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(*flat))
    for kind in ("macro", "weighted"):
        assert found[f"f1_{kind}"] == pytest.approx(sklearn.f1_score(*flat, average=kind))
    each = sklearn.precision_score(*flat, average=None, labels=labels, zero_division=0)
    assert [found[f"precision_of_{name}"] for name in labels] == pytest.approx(each)


def test_rows_of_raw_text_with_spans_are_trained_on(base, tmp_path):
    made = []
    for row in sentences(40, 9):
        text = " ".join(row["tokens"])
        at = text.find("red")
        spans = [{"start": at, "end": at + 3, "label": "warm", "text": "red"}] if "red" in row["tokens"] else []
        made.append({"text": text, "spans": spans})
    data = write_rows(tmp_path / "train.jsonl", *made[:30]), write_rows(tmp_path / "test.jsonl", *made[30:])
    out = tagger(base, data, tmp_path / "run", "trainer.max_steps=2", "run.effective_batch=8")
    assert json.loads((out / "task.json").read_text())["labels"] == ["O", "B-warm", "I-warm"]
    assert 0 <= after(out)["eval_f1_micro"] <= 1


GOOD = {"tokens": ["red"], "ner_tags": ["B-warm"]}


@pytest.mark.parametrize(
    ("row", "overrides", "said"),
    [
        ({"tokens": ["red"]}, [], "test.jsonl:93: field `ner_tags` is missing"),
        ({"tokens": ["red"], "ner_tags": ["B-hot"]}, [], "test.jsonl:93: the tag of word 1: `B-hot`; expected one of O, "),
        ({"tokens": ["red"], "ner_tags": ["I-warm"]}, [], "test.jsonl:93: ner_tags[0]: `I-warm` continues nothing"),
        ({"tokens": ["red"], "ner_tags": [3]}, [], "Name the tags in task.labels"),
        (GOOD, ["task.labels=[O, B-warm, NOUN]"], "task.labels: `NOUN` is plain"),
        (GOOD, ["task.labels=[O, B-warm]"], "train.jsonl:1: the tag of word"),
        (GOOD, ["task.threshold=0.2"], "task.threshold is for text_classification.py, not token_classification.py"),
        (GOOD, ["adapter.target_modules=[classifier]"], "the head is trained whole"),
        (GOOD, ["trainer.max_length=512"], "the model has 128 positions"),
        (GOOD, ["trainer.max_length=4", "data.on_too_long=error"], "rows are over trainer.max_length"),
        (GOOD, ["trainer.max_length=2"], "no row is left of 400"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_leaves_no_adapter(row, overrides, said, base, rows, tmp_path):
    test = tmp_path / "test.jsonl"
    test.write_text(rows[1].read_text() + json.dumps(row) + "\n")
    with pytest.raises(LorasmithError) as error:
        tagger(base, (rows[0], test), tmp_path / "run", *overrides)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/adapter*"))


def test_the_page_on_taggers_has_the_figures_of_the_benchmark():
    report = json.loads((ROOT / "benchmarks/task_entities.json").read_text())
    assert load_benchmark("task_entities").table(report["found"]) in (ROOT / "docs/token_classification.md").read_text()


def test_evaluation_rows_with_another_tag_are_dropped_where_broken_rows_are(base, rows, tmp_path, capsys):
    test = tmp_path / "test.jsonl"
    test.write_text(rows[1].read_text() + json.dumps({"tokens": ["red"], "ner_tags": ["B-hot"]}) + "\n")
    out = tagger(base, (rows[0], test), tmp_path / "run", "data.on_bad_row=drop", "trainer.max_steps=1")
    assert "evaluation rows: 93 read, 92 trained, 1 dropped (another tag)" in capsys.readouterr().out
    assert "`B-hot`" in (out / "private" / "rejected_rows.txt").read_text()
