"""scripts/question_answering.py: encoders and decoders that find answers in contexts."""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import launch, losses, run_script, stop_after, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.errors import LorasmithError

pytestmark = pytest.mark.usefixtures("no_network")

RECIPE = "recipes/question_answering/minilm-squad-lora-cpu.yaml"
COLOURS, THINGS = ("red", "orange", "blue", "green"), ("box", "cup", "lamp", "chair", "door")
OTHERS = ("round", "square", "small", "large", "old", "new", "a", "the", "was", "and")


def question(drawn: random.Random, words: int, has_answer: bool = True) -> dict[str, Any]:
    """A question with a context of words and colours, answered by the colour behind its only `is`, if there is one."""
    context = drawn.choices([*OTHERS, *OTHERS, *COLOURS], k=words)
    at = drawn.randrange(words - 1)
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if has_answer:
        context[at : at + 2] = ["is", drawn.choice(COLOURS)]
        answers = {"text": [context[at + 1]], "answer_start": [len(" ".join([*context[: at + 1], ""]))]}
    return {"question": f"the {drawn.choice(THINGS)}", "context": " ".join(context), "answers": answers}


def questions(count: int, words: int = 8, unanswerable: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    drawn = random.Random(seed)
    found = [question(drawn, words, drawn.random() >= unanswerable) for _ in range(2 * count)]
    return list({row["context"]: row for row in found}.values())[:count]


def split(folder: Path, rows: list[dict[str, Any]], held_out: int) -> tuple[Path, Path]:
    return write_rows(folder / "train.jsonl", *rows[held_out:]), write_rows(folder / "test.jsonl", *rows[:held_out])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return split(tmp_path_factory.mktemp("rows"), questions(1000), 100)


def words_for(model: Any, rows: Any, out: Any, *more: str) -> list[str]:
    return [
        RECIPE,
        f"model.name={model}",
        f"data.train={rows[0]}",
        f"data.eval={rows[1]}",
        "data.eval_fraction=0",
        f"output_dir={out}",
        "trainer.max_length=64",
        "task.stride=16",
        "trainer.logging_steps=1",
        "trainer.eval_strategy=no",
        "trainer.learning_rate=5e-3",
        *more,
    ]


def finder(model: Any, rows: Any, out: Path, *more: str) -> Path:
    return run_script("question_answering", *words_for(model, rows, out, *more))


def after(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["metrics"]["after"]


def predicted(model: Any, rows: Path, out: Path) -> list[dict[str, Any]]:
    run_script("predict", model, rows, "--output", out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SEES_PLACES = {"initializer_range": 0.1}  # so that a random model tells apart where words stand
LEARNING = ("trainer.max_steps=200", "trainer.logging_steps=50")


@pytest.fixture(scope="module")
def learnt(small_encoder, rows, tmp_path_factory):
    """A BERT that finds the colour, finished, with all its files."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    words = words_for(small_encoder("bert", **SEES_PLACES), rows, out, *LEARNING)
    done = launch("scripts/question_answering.py", *words)
    assert done.returncode == 0, done.stderr
    return out


def test_a_bert_learns_a_planted_rule(learnt):
    assert after(learnt)["eval_exact_match"] >= 0.9
    names = {"task.json", "README.md", "adapter_model.safetensors", "tokenizer.json", "audit.html", "status.json"}
    assert names <= {path.name for path in learnt.iterdir()}
    task = json.loads((learnt / "task.json").read_text())
    reading = {"max_length": 64, "stride": 16, "max_answer_length": 30, "after_question": ""}
    assert task == {"method": "question_answering", **reading}
    card = (learnt / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "| 100 held out while training | exact_match |" in card


SLOWLY = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("roberta", "deberta-v2", "electra")]


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", *SLOWLY])
def test_encoders_of_every_architecture_train_and_come_back(kind, small_encoder, rows, tmp_path):
    out = finder(small_encoder(kind), rows, tmp_path / "run", "trainer.max_steps=3", "run.effective_batch=4")
    assert figures_of(predicted(out, rows[1], tmp_path / "answers.jsonl"), read(rows[1])) == figures_in(out)


def figures_in(run: Path) -> dict[str, Any]:
    speeds = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return {
        key: pytest.approx(value)
        for key, value in after(run).items()
        if key.startswith("eval_") and key not in speeds and "tokens" not in key and "preparation" not in key
    }


def figures_of(answers: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, float]:
    from lorasmith.evaluation.squad_metrics import squad_metrics

    found = squad_metrics([one["answer"] for one in answers], [row["answers"]["text"] for row in rows])
    return {f"eval_{one.name}": one.value for one in found}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_learns_a_planted_rule(kind, small_model, rows, tmp_path):
    steps = ("trainer.max_steps=300", "trainer.logging_steps=50")
    out = finder(small_model(kind, **SEES_PLACES), rows, tmp_path / "run", *steps)
    assert after(out)["eval_exact_match"] >= 0.9


def test_losses_are_those_of_transformers_own_trainer(small_encoder, rows, tmp_path):
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    folder = small_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings = ("trainer.max_steps=6", "run.effective_batch=8", "trainer.warmup_steps=0", "trainer.max_grad_norm=0")
    out = finder(folder, rows, tmp_path / "run", *settings, "run.micro_batch=2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = read(rows[0])
    columns = tokenizer([row["question"] for row in given], [row["context"] for row in given])
    at = [columns.char_to_token(i, row["answers"]["answer_start"][0], sequence_index=1) for i, row in enumerate(given)]
    set_seed(42)
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    # Not QUESTION_ANS, whose class in peft 0.21 leaves token_type_ids out.
    heads = {"modules_to_save": ["qa_outputs"], "exclude_modules": ["qa_outputs"]}
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", **heads)
    theirs = Trainer(
        get_peft_model(model, lora),
        TrainingArguments(
            str(tmp_path / "theirs"),
            per_device_train_batch_size=8,
            max_steps=6,
            learning_rate=5e-3,
            logging_steps=1,
            max_grad_norm=0,
            report_to="none",
            use_cpu=True,
            seed=42,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({**columns, "start_positions": at, "end_positions": at}),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    theirs.train()
    expected = [event["loss"] for event in theirs.state.log_history if "loss" in event]
    assert losses(out) == pytest.approx(expected, abs=1e-5)


def test_micro_batches_of_any_size_learn_the_same_from_windows(small_encoder, tmp_path):
    made = [question(random.Random(n), 8 + n % 40) for n in range(40)]
    data = split(tmp_path, made, 1)
    folder = small_encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    both = []
    for micro in (8, 1):
        more = ("trainer.max_steps=3", "run.effective_batch=8", f"run.micro_batch={micro}", "data.eval=null")
        windows = ("trainer.max_length=24", "task.stride=8")
        out = finder(folder, data, tmp_path / f"run{micro}", *more, *windows)
        both.append(losses(out))
    assert both[0] == pytest.approx(both[1], abs=1e-5)
    account = json.loads((out / "run.json").read_text())["data"]["train_account"]
    assert account["unrolled"] > 20


@pytest.fixture(scope="module")
def doubting(small_encoder, tmp_path_factory):
    """A BERT that finds the colour where there is one, in windows, with its rows."""
    folder = tmp_path_factory.mktemp("doubting")
    rows = split(folder, questions(900, words=14, unanswerable=0.4), 100)
    windows = ("trainer.max_length=16", "task.stride=6", "trainer.max_steps=300")
    out = finder(small_encoder("bert", **SEES_PLACES), rows, folder / "run", *LEARNING, *windows)
    return out, rows[1]


def test_questions_without_an_answer_get_none_by_a_calibrated_threshold(doubting, tmp_path):
    out, test = doubting
    assert after(out)["eval_no_answer_exact_match"] >= 0.8
    assert after(out)["eval_has_answer_exact_match"] >= 0.8
    assert json.loads((out / "run.json").read_text())["data"]["train_account"]["unrolled"] >= 800
    task = json.loads((out / "task.json").read_text())
    assert task["null_threshold_chosen_for"] == "the best f1 on 100 evaluation rows"
    answers = predicted(out, test, tmp_path / "answers.jsonl")
    assert figures_of(answers, read(test)) == figures_in(out)
    for one, row in zip(answers, read(test), strict=True):
        assert row["context"][max(0, one["start"]) : max(0, one["end"])] == one["answer"]
        assert 0 <= one["no_answer"] <= 1
        assert one["answer"] or one["no_answer"] == one["probability"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_null_threshold_is_the_best_of_all(data):
    from lorasmith.data.answer_spans import FoundAnswer
    from lorasmith.data.squad import Question
    from lorasmith.runs.measuring_answers import answer_figures, null_threshold

    kinds = [True, False, *data.draw(st.lists(st.booleans(), max_size=6))]
    margins = data.draw(st.lists(st.integers(-20, 20), min_size=len(kinds), max_size=len(kinds), unique=True))
    texts = data.draw(st.lists(st.sampled_from(["a cup", "cup", "lamp"]), min_size=len(kinds), max_size=len(kinds)))
    asked = [Question(f"{n}", f"{n}", "?", "cup", (("cup", 0),) if has else ()) for n, has in enumerate(kinds)]
    found = [FoundAnswer(text, 0, 1, 1.0, float(one)) for text, one in zip(texts, margins, strict=True)]

    def f1(threshold: float) -> float:
        return next(one.value for one in answer_figures(found, asked, threshold) if one.name == "f1")

    assert f1(null_threshold(found, asked)) == pytest.approx(max(map(f1, [*margins, -99])))


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_quantized_encoder_learns_and_keeps_its_head_whole(quantization, small_encoder, rows, tmp_path):
    from lorasmith.runs.opening import open_task

    folder = small_encoder("bert", **SEES_PLACES)
    out = finder(folder, rows, tmp_path / "run", *LEARNING, f"model.quantization={quantization}")
    assert after(out)["eval_exact_match"] >= 0.9
    opened = open_task(str(out), None)
    assert opened.model.get_base_model().qa_outputs.modules_to_save["default"].weight.dtype == torch.float32
    kinds = {type(module).__name__ for module in opened.model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds
    run_script("merge", out, "--out", tmp_path / "merged")
    proof = json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert proof["proven"]
    assert proof["drift"]["top1"] == 1


def answers_of_card(folder: Path, name: str, rows: list[dict[str, Any]]) -> list[str]:
    """What the code in a card prints for each row."""
    code = (
        (folder / "README.md")
        .read_text()
        .split("```python\n")[1]
        .split("```")[0]
        .replace(f'"{name}"', repr(str(folder)))
    )
    start, loop = code.split('question, context = "...", "..."\n')
    program = f"{start}for question, context in {[(row['question'], row['context']) for row in rows]!r}:\n"
    program += "".join(f"    {line}\n" for line in loop.splitlines())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    return printed.getvalue().splitlines()


def test_the_cards_of_adapter_and_merge_answer_in_plain_transformers_as_predict_does(small_encoder, tmp_path):
    rows = split(tmp_path, questions(240, unanswerable=0.4), 40)
    out = finder(small_encoder("bert"), rows, tmp_path / "run", "trainer.max_steps=20")
    merged = tmp_path / "merged"
    run_script("merge", out, "--out", merged)
    assert json.loads((merged / "proof.json").read_text())["drift"]["rows"] == 32
    some = read(rows[1])[:12]
    plain = write_rows(tmp_path / "asked.jsonl", *({**row, "answers": None} for row in some))
    for folder, name in ((out, "run"), (merged, "merged")):
        ours = [one["answer"] for one in predicted(folder, plain, tmp_path / f"{name}.jsonl")]
        assert answers_of_card(folder, name, some) == ours
    assert not list(tmp_path.glob("*.part"))


def test_a_llama_whose_files_name_it_otherwise_trains_merges_and_answers_as_its_card_says(small_model, rows, tmp_path):
    out = finder(small_model("llama"), rows, tmp_path / "run", "trainer.max_steps=4", "run.effective_batch=4")
    assert json.loads((out / "task.json").read_text())["after_question"] == "\n"
    merged = tmp_path / "merged"
    run_script("merge", out, "--out", merged)
    assert json.loads((merged / "proof.json").read_text())["proven"]
    some = read(rows[1])[:6]
    plain = write_rows(tmp_path / "asked.jsonl", *some)
    for folder, name in ((out, "run"), (merged, "merged")):
        ours = [one["answer"] for one in predicted(folder, plain, tmp_path / f"{name}.jsonl")]
        assert answers_of_card(folder, name, some) == ours


def test_a_run_without_evaluation_rows_is_merged_on_made_up_ones(small_encoder, rows, tmp_path):
    out = finder(small_encoder("bert"), rows, tmp_path / "run", "trainer.max_steps=2", "data.eval=null")
    run_script("merge", out, "--out", tmp_path / "merged")
    proof = json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert (proof["proven"], proof["drift"]["rows"]) == (True, 8)


def test_a_prediction_that_was_interrupted_goes_on(doubting, tmp_path, capsys):
    from lorasmith.runs import predicting
    from lorasmith.runs.opening import open_task
    from lorasmith.runs.predicting_answers import read_questions_of
    from lorasmith.runs.results import fingerprint

    model, test = doubting
    out = tmp_path / "answers.jsonl"
    whole = predicted(model, test, out)
    out.unlink()
    opened = open_task(str(model), None)
    key = fingerprint(
        predicting.identity(opened, str(model)), [row.digest for row in read_questions_of(opened, str(test))]
    )
    kept = ({**one, "row": str(one["row"] - 1)} for one in whole[:60])
    part = out.with_name(f"{out.name}.{key}.part")
    part.write_text("".join(json.dumps(one) + "\n" for one in kept) + '{"row": "60", "pl')
    capsys.readouterr()
    again = predicted(model, test, out)
    assert "rows: 60 were answered before" in capsys.readouterr().out
    for one, other in zip(again, whole, strict=True):
        assert [one[key] for key in ("row", "place", "answer", "start", "end")] == [
            other[key] for key in ("row", "place", "answer", "start", "end")
        ]
        assert one["probability"] == pytest.approx(other["probability"], abs=2e-6)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(small_encoder, rows, tmp_path):
    more = ("trainer.max_steps=12", "run.effective_batch=8", "trainer.save_steps=4", "run.keep_checkpoints=true")
    folder = small_encoder("bert")
    whole = finder(folder, rows, tmp_path / "whole", *more)
    words = words_for(folder, rows, tmp_path / "cut", *more)
    stop_after("question_answering", 5, *words)
    again = run_script("question_answering", *words)
    one, other = ((out / "adapter_model.safetensors").read_bytes() for out in (whole, again))
    assert one == other
    assert losses(whole) == losses(again)
    figures = [json.loads((out / "run.json").read_text())["metrics"] for out in (whole, again)]
    for name in ("eval_exact_match", "eval_f1", "eval_loss"):
        assert [one["before"][name] for one in figures[:1]] == [one["before"][name] for one in figures[1:]]
        assert figures[0]["after"][name] == figures[1]["after"][name]


LONG = {"question": "box " * 60, "context": "a box is red", "answers": {"text": ["red"], "answer_start": [9]}}


@pytest.mark.parametrize(
    ("row", "overrides", "told"),
    [
        ({"question": "red", "context": "red"}, [], "test.jsonl:101: field `answers` is missing"),
        ({**LONG, "question": "box", "answers": {"text": ["red"], "answer_start": [8]}}, [], "but at 9, 1 character"),
        (LONG, ["trainer.max_length=32"], "test.jsonl:101: question: 63 tokens"),
        (None, ["task.labels=[a, b]"], "task.labels is for text_classification.py and token_classification.py"),
        (None, ["task.stride=64"], "task.stride is `64`; expected less than trainer.max_length (64)"),
        (None, ["adapter.target_modules=[qa_outputs]"], "the head is trained whole"),
        (None, ["trainer.max_length=512"], "the model has 128 positions"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_adapter(row, overrides, told, small_encoder, rows, tmp_path):
    test = write_rows(tmp_path / "test.jsonl", *read(rows[1]), *([row, row] if row else []))
    with pytest.raises(LorasmithError) as error:
        finder(small_encoder("bert"), (rows[0], test), tmp_path / "run", *overrides)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run/adapter*"))
