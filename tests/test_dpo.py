"""dpo.py as people run it: it learns which answer is preferred, with trl's own losses, and loses nothing."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from conftest import BASE, ROOT, SHARED, launch, losses, needs_shared, run_script, write_rows

from lorasmith.errors import DataError, ModelError, RecipeError
from lorasmith.recipe import load_recipe

COLOURS = ("blue", "red", "green", "purple", "black", "brown")
RECIPE = """\
model: {name: quickstart/base, quantization: none, dtype: float32}
data: {train: TRAIN, eval: EVAL}
run: {effective_batch: 16, micro_batch: 8}
output_dir: unset
trainer: {learning_rate: 1e-3, logging_steps: 1, max_steps: 20, save_steps: 10, warmup_steps: 0}
"""


def pairs_of_orders(count):
    """Orders with the right confirmation as JSON preferred over one with another colour."""
    draw = random.Random(0)
    found = []
    for line in (ROOT / "quickstart/data/train.jsonl").read_text().splitlines()[:count]:
        asked, answered = json.loads(line)["messages"]
        order = json.loads(answered["content"])
        other = draw.choice([one for one in COLOURS if one != order["colour"]])
        wrong = {"role": "assistant", "content": json.dumps(order | {"colour": other})}
        found.append({"prompt": [asked], "chosen": [answered], "rejected": [wrong]})
    return found


def written_recipe(folder, rows):
    """A recipe over rows, the last eighty of which are held out."""
    train, held = write_rows(folder / "train.jsonl", *rows[:-80]), write_rows(folder / "eval.jsonl", *rows[-80:])
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("TRAIN", str(train)).replace("EVAL", str(held)))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return written_recipe(tmp_path_factory.mktemp("dpo"), pairs_of_orders(400))


def dpo(*words) -> Path:
    return run_script("dpo", *words)


def test_the_preferred_answer_is_learnt_and_the_folder_says_how(recipe, tmp_path, capsys):
    folder = dpo(recipe, f"output_dir={tmp_path}/run", "trainer.max_steps=24", "trainer.learning_rate=2e-3")
    run = json.loads((folder / "run.json").read_text())
    before, after = run["metrics"]["before"], run["metrics"]["after"]
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert after["eval_loss"] < 0.6
    assert after["eval_rewards/accuracies"] > 0.7
    assert run["method"] == "dpo"
    assert run["data"]["train_account"]["trained"] == 320
    assert "trained by direct preference optimization" in (folder / "README.md").read_text()
    told = capsys.readouterr().out
    assert "recognised as preference" in told
    assert "pairs: the preferred answer has 36 tokens on average" in told
    assert {path.name for path in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert not (folder / "ref").exists()


@pytest.mark.scorecard(row="R8")
@pytest.mark.parametrize("shape", ["messages", pytest.param("text", marks=pytest.mark.slow)])
def test_our_losses_are_trls_own_over_twenty_steps(recipe, tmp_path, shape):
    import trl

    rows = tmp_path / "rows"
    rows.mkdir()
    made = pairs_of_orders(320)
    if shape == "text":
        made = [
            {"prompt": row["prompt"][0]["content"], "chosen": "\n" + row["chosen"][0]["content"], "rejected": "\n" + row["rejected"][0]["content"]}
            for row in made
        ]  # fmt: skip
    path = write_rows(rows / "train.jsonl", *made)
    ours = losses(
        dpo(recipe, f"output_dir={tmp_path}/run", f"data.train={path}", "data.eval=null", "speed.fused_lora=false")
    )
    out = tmp_path / "trl"
    done = launch(
        Path(trl.__file__).parent / "scripts/dpo.py", "--model_name_or_path", BASE, "--dataset_name", rows, "--output_dir", out,
        "--dtype", "float32", "--bf16", "false", "--use_cpu", "true", "--use_peft", "--lora_r", "16", "--lora_alpha", "32",
        "--lora_dropout", "0.0", "--lora_target_modules", "all-linear", "--learning_rate", "1e-3", "--warmup_steps", "0",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "false",
        "--max_steps", "20", "--logging_steps", "1", "--max_length", "512", "--seed", "42", "--report_to", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = json.loads((out / "checkpoint-20/trainer_state.json").read_text())
    theirs = [event["loss"] for event in state["log_history"] if "loss" in event]
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert ours[-1] < ours[0] - 0.1


def test_fused_steps_give_the_same_losses(recipe, tmp_path):
    plain = losses(
        dpo(recipe, f"output_dir={tmp_path}/a", "data.eval=null", "trainer.max_steps=6", "speed.fused_lora=false")
    )
    fused = losses(dpo(recipe, f"output_dir={tmp_path}/b", "data.eval=null", "trainer.max_steps=6"))
    assert max(abs(a - b) for a, b in zip(plain, fused, strict=True)) < 1e-4


def test_a_micro_batch_in_halves_is_the_same_update():
    from lorasmith.preference.trainer import SHARE, paired

    class Counting:
        def batch_loss(self, inputs):
            return inputs["input_ids"][: len(inputs["input_ids"]) // 2].float().mean()

    trainer = paired(Counting).__new__(paired(Counting))
    inputs = {"input_ids": torch.arange(10)[:, None] * torch.ones(1, 3), "ref_chosen_logps": torch.arange(5.0)}
    parts = trainer.batch_halves(inputs)
    assert [part[SHARE] for part in parts] == [2 / 5, 3 / 5]
    assert parts[0]["input_ids"][:, 0].tolist() == [0, 1, 5, 6]
    assert parts[1]["input_ids"][:, 0].tolist() == [2, 3, 4, 7, 8, 9]
    assert parts[1]["ref_chosen_logps"].tolist() == [2, 3, 4]
    whole = trainer.batch_loss(inputs)
    assert sum(part[SHARE] * trainer.batch_loss(part) for part in parts) == pytest.approx(float(whole))
    quarters = [one for part in parts for one in trainer.batch_halves(part)]
    assert sum(one[SHARE] for one in quarters) == pytest.approx(1)
    assert len(trainer.batch_rows(inputs)) == 5


def test_a_continued_adapter_is_its_own_reference(recipe, trained, tmp_path):
    folder = dpo(
        recipe, f"output_dir={tmp_path}/run", f"adapter.from={trained}", "trainer.max_steps=4", "model.quantization=nf4"
    )
    run = json.loads((folder / "run.json").read_text())
    assert run["metrics"]["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"plots", "private"}, (
        "the reference is not saved"
    )


def test_a_policy_that_is_not_its_reference_is_refused():
    from lorasmith.preference.start import StartsAtReference

    class Trainer:
        loss_types, loss_weights, _metrics, _total_train_tokens = ["sigmoid"], [1.0], {"train": {}}, 0
        train_dataset, model_wrapped = [1, 2, 3], None
        loss = math.log(2)

        def data_collator(self, rows):
            return {"input_ids": rows}

        def _prepare_inputs(self, inputs):
            return inputs

        def compute_loss(self, model, inputs):
            self._metrics["train"]["rewards"] = 1
            return torch.tensor(self.loss)

    class State:
        global_step = 0

    start, trainer = StartsAtReference(), Trainer()
    start.trainer = trainer
    start.on_train_begin(None, State(), None)
    assert trainer._metrics == {"train": {}}, "nothing of the trial is left in the figures"
    trainer.loss = 0.7
    with pytest.raises(ModelError, match=r"before the first step the loss is 0.700000 where ln 2 = 0.693147 was due"):
        start.on_train_begin(None, State(), None)
    trainer.loss_types = ["ipo"]
    start.on_train_begin(None, State(), None)


@pytest.mark.slow
@needs_shared
def test_real_pairs_train_unedited(recipe, tmp_path):
    folder = dpo(
        recipe, f"data.train={SHARED}/data/pref_hh_harmless_dpo.jsonl", "data.eval=null", "data.eval_fraction=0.02",
        "data.on_too_long=truncate", "data.on_bad_row=drop", "trainer.max_length=256", "trainer.max_steps=1",
        f"output_dir={tmp_path}/run",
    )  # fmt: skip
    account = json.loads((folder / "run.json").read_text())["data"]["train_account"]
    assert account["read"] > 2200
    assert account["read"] == account["trained"] + sum(account["dropped"].values())


WRONG = {
    "the same answers": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "rejected"),
    "an empty answer": ({"prompt": "a", "chosen": "", "rejected": "b"}, "chosen: empty"),
    "a number": ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen: a number; expected text or messages"),
    "a user's answer": ({"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "chosen"),
    "no row": ([1], "the row is a list"),
}  # fmt: skip


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", WRONG)
def test_a_broken_pair_is_one_line(recipe, tmp_path, name):
    row, told = WRONG[name]
    path = write_rows(tmp_path / "pairs.jsonl", *pairs_of_orders(3), row)
    with pytest.raises(DataError) as caught:
        dpo(recipe, f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run", "--dry-run")
    assert str(caught.value).startswith(f"{path}:4: ")
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_loss_of_trl_is_known_by_name_and_no_other(recipe):
    import inspect
    import re

    from trl.trainer import dpo_trainer

    from lorasmith.recipe_checks import DPO_LOSSES

    known = re.findall(r'loss_type == "(\w+)"', inspect.getsource(dpo_trainer.DPOTrainer._compute_loss))
    assert set(known) == set(DPO_LOSSES), "trl's losses have changed: bring recipe_checks.DPO_LOSSES up to date"
    with pytest.raises(RecipeError, match=r"trainer.loss_type is `sigmod`; .* Did you mean `sigmoid`\?"):
        load_recipe(recipe, ["trainer.loss_type=[sigmod]"], "dpo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["hinge", "ipo", "robust", "apo_zero", "apo_down", "sppo_hard", "nca_pair", "bco_pair"]
)
def test_a_loss_by_name_trains(recipe, tmp_path, loss):
    extra = ["trainer.label_smoothing=0.1"] if loss == "robust" else []
    folder = dpo(recipe, f"output_dir={tmp_path}/run", f"trainer.loss_type=[{loss}]", "trainer.max_steps=10", *extra)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert metrics["after"]["eval_loss"] < metrics["before"]["eval_loss"]


def test_a_key_of_sft_alone_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"trainer: unknown key `packing`"):
        load_recipe(recipe, ["trainer.packing=true"], "dpo")
    with pytest.raises(DataError, match="are for sft"):
        dpo(recipe, "data.format=messages", "output_dir=x", "--dry-run")
