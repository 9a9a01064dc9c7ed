"""kto.py: single answers with a thumbs up or down, trl's own losses, both kinds weighed alike."""

import json
from pathlib import Path

import pytest
from conftest import BASE, SHARED, launch, losses, needs_shared, run_script, write_rows
from test_dpo import pairs_of_orders, written_recipe

from lorasmith.errors import DataError, RecipeError


def judged_orders(count):
    """Orders confirmed rightly, thumbs up, and wrongly, thumbs down, one after the other."""
    found = []
    for i, pair in enumerate(pairs_of_orders(count)):
        answer = pair["rejected"] if i % 2 else pair["chosen"]
        found.append({"messages": [*pair["prompt"], *answer], "label": i % 2 == 0})
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return written_recipe(tmp_path_factory.mktemp("kto"), judged_orders(400))


def kto(*words) -> Path:
    return run_script("kto", *words)


@pytest.mark.slow
def test_what_is_wanted_is_learnt(recipe, tmp_path, capsys):
    folder = kto(recipe, f"output_dir={tmp_path}/run", "trainer.max_steps=30", "trainer.learning_rate=2e-3")
    run = json.loads((folder / "run.json").read_text())
    before, after = run["metrics"]["before"], run["metrics"]["after"]
    assert before["eval_loss"] == pytest.approx(0.5, abs=1e-6)
    assert after["eval_loss"] < 0.48
    assert after["eval_rewards/chosen"] > after["eval_rewards/rejected"]
    told = capsys.readouterr().out
    assert "judged: 160 answers are wanted, of 36 tokens on average, and 160 are not, of 36" in told
    assert "Kahneman-Tversky" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.scorecard(row="R8")
def test_our_losses_are_trls_own_over_twenty_steps(recipe, tmp_path):
    import trl

    rows = tmp_path / "rows"
    rows.mkdir()
    made = [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:], "label": row["label"]}
        for row in judged_orders(320)
    ]
    path = write_rows(rows / "train.jsonl", *made)
    ours = losses(
        kto(recipe, f"output_dir={tmp_path}/run", f"data.train={path}", "data.eval=null", "speed.fused_lora=false")
    )
    out = tmp_path / "trl"
    done = launch(
        Path(trl.__file__).parent / "scripts/kto.py", "--model_name_or_path", BASE, "--dataset_name", rows, "--output_dir", out,
        "--dtype", "float32", "--bf16", "false", "--use_cpu", "true", "--use_peft", "--lora_r", "16", "--lora_alpha", "32",
        "--lora_dropout", "0.0", "--lora_target_modules", "all-linear", "--learning_rate", "1e-3", "--warmup_steps", "0",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "false",
        "--max_steps", "20", "--logging_steps", "1", "--max_length", "512", "--seed", "42", "--report_to", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = json.loads((out / "checkpoint-20/trainer_state.json").read_text())
    theirs = [event["loss"] for event in state["log_history"] if "loss" in event]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert min(ours) < 0.47


def test_the_rarer_kind_counts_more_unless_the_recipe_says_how_much(recipe, tmp_path, capsys):
    rows = [row for i, row in enumerate(judged_orders(200)) if row["label"] or i % 8 == 1]
    path = write_rows(tmp_path / "few.jsonl", *rows)
    folder = kto(recipe, f"output_dir={tmp_path}/a", f"data.train={path}", "data.eval=null", "trainer.max_steps=1")
    assert "desirable_weight 1.00, undesirable_weight 4.00: both kinds count the same in all" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["recipe"]["trainer"]["undesirable_weight"] == 4.0
    kto(
        recipe,
        f"output_dir={tmp_path}/b",
        f"data.train={path}",
        "data.eval=null",
        "trainer.max_steps=1",
        "trainer.undesirable_weight=2.0",
    )
    assert "both kinds count the same" not in capsys.readouterr().out


@pytest.mark.slow
@needs_shared
def test_real_judged_rows_train_unedited(recipe, tmp_path):
    folder = kto(
        recipe, f"data.train={SHARED}/data/pref_llamafactory_kto.jsonl", "data.eval=null", "data.eval_fraction=0.1",
        "data.on_too_long=truncate", "trainer.max_length=400", "trainer.max_steps=1", f"output_dir={tmp_path}/run",
    )  # fmt: skip
    account = json.loads((folder / "run.json").read_text())["data"]["train_account"]
    assert account["read"] == account["trained"] + sum(account["dropped"].values())
    assert account["trained"] > 90


WRONG = {
    "no verdict": ({"prompt": "a", "completion": "b"}, "field `label` is missing"),
    "a verdict in words": ({"prompt": "a", "completion": "b", "label": "good"}, "label: text; expected true or false"),
    "an empty answer": ({"prompt": "a", "completion": "", "label": True}, "completion: empty"),
    "no row": (["a"], "the row is a list"),
}


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", WRONG)
def test_a_broken_row_is_one_line(recipe, tmp_path, name):
    row, told = WRONG[name]
    path = write_rows(tmp_path / "rows.jsonl", *judged_orders(4), row)
    with pytest.raises(DataError) as caught:
        kto(recipe, f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run", "--dry-run")
    assert str(caught.value).startswith(f"{path}:5: ")
    assert told in str(caught.value)


def test_rows_of_one_kind_and_batches_of_one_row_are_refused(recipe, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", *[row for row in judged_orders(20) if row["label"]])
    with pytest.raises(DataError, match="no answer is unwanted among 10 rows"):
        kto(recipe, f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run", "--dry-run")
    with pytest.raises(RecipeError, match=r"run.micro_batch is `1`; kto compares the rows of a micro-batch"):
        kto(recipe, "run.micro_batch=1", f"output_dir={tmp_path}/run", "--dry-run")
    with pytest.raises(RecipeError, match=r"trainer.train_sampling_strategy"):
        kto(recipe, "trainer.train_sampling_strategy=random", f"output_dir={tmp_path}/run", "--dry-run")
