"""orpo.py and cpo.py: preferences without a reference, on trl's experimental trainers, with their own losses."""

import json

import pytest
import torch
from conftest import BASE, losses, run_script, write_rows
from test_dpo import pairs_of_orders, written_recipe

from lorasmith.errors import LorasmithError, RecipeError
from lorasmith.recipe import load_recipe

SIMPO = ["trainer.loss_type=simpo", "trainer.cpo_alpha=0.0", "trainer.beta=2.0"]
METHODS = {"orpo": ("orpo", []), "cpo": ("cpo", []), "simpo": ("cpo", SIMPO)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return written_recipe(tmp_path_factory.mktemp("orpo"), pairs_of_orders(400))


@pytest.mark.parametrize("name", ["orpo"])
def test_the_preferred_answer_becomes_the_likelier_one(recipe, tmp_path, capsys, name):
    method, words = METHODS[name]
    folder = run_script(
        method, recipe, f"output_dir={tmp_path}/run", "trainer.max_steps=40", "trainer.learning_rate=3e-3",
        "trainer.logging_steps=20", *words,
    )  # fmt: skip
    run = json.loads((folder / "run.json").read_text())
    before, after = run["metrics"]["before"], run["metrics"]["after"]
    assert after["eval_loss"] < before["eval_loss"] - 0.05
    assert after["eval_rewards/accuracies"] > 0.7
    assert run["method"] == method
    assert "an experimental trainer of trl's" in (folder / "README.md").read_text()
    assert f"trainer: trl.experimental.{method}, which trl may change" in capsys.readouterr().out


def text_pairs(count):
    """Pairs as plain text, which trl's trainers and ours turn into the same tokens."""
    return [
        {"prompt": row["prompt"][0]["content"], "chosen": "\n" + row["chosen"][0]["content"], "rejected": "\n" + row["rejected"][0]["content"]}
        for row in pairs_of_orders(count)
    ]  # fmt: skip


def plain_losses(method, rows, folder, **options):
    """The losses of trl's own trainer, used as its documentation says."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental import cpo, orpo

    kind, config = (orpo.ORPOTrainer, orpo.ORPOConfig) if method == "orpo" else (cpo.CPOTrainer, cpo.CPOConfig)
    args = config(
        output_dir=str(folder), use_cpu=True, bf16=False, learning_rate=1e-3, warmup_steps=0, seed=42, max_steps=20,
        per_device_train_batch_size=16, gradient_accumulation_steps=1, gradient_checkpointing=False, logging_steps=1,
        max_length=512, report_to="none", save_strategy="no", **options,
    )  # fmt: skip
    trainer = kind(
        AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(BASE),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    return [event["loss"] for event in trainer.state.log_history if "loss" in event]


@pytest.mark.scorecard(row="R8")
@pytest.mark.parametrize(
    "name", ["orpo", *(pytest.param(one, marks=pytest.mark.slow) for one in METHODS if one != "orpo")]
)
def test_our_losses_are_those_of_trls_trainer_over_twenty_steps(recipe, tmp_path, name):
    method, words = METHODS[name]
    rows = text_pairs(320)
    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0} if words else {}
    theirs = plain_losses(method, rows, tmp_path / "trl", **options)
    path = write_rows(tmp_path / "train.jsonl", *rows)
    ours = losses(
        run_script(
            method, recipe, f"output_dir={tmp_path}/run", f"data.train={path}", "data.eval=null", "run.micro_batch=16",
            "speed.fused_lora=false", *words,
        )
    )  # fmt: skip
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def test_a_config_that_trl_has_moved_is_one_line(monkeypatch, recipe):
    from lorasmith import upstream

    monkeypatch.setitem(upstream.CONFIGS, "orpo", ("trl.experimental.orpo.elsewhere", "ORPOConfig"))
    with pytest.raises(
        LorasmithError, match=r"^trl [\d.]+ has no ORPOConfig in trl.experimental.orpo.elsewhere: it has moved"
    ):
        load_recipe(recipe, [], "orpo")


def test_trls_experimental_trainers_have_the_seams_that_are_overridden():
    import inspect

    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    moved = "trl has changed its experimental trainer: bring preference.trainer.unreferenced up to date"
    for kind in (ORPOTrainer, CPOTrainer):
        source = inspect.getsource(kind)
        assert ".map(self.tokenize_row" in source, moved
        assert "self.concatenated_forward(model, batch)" in source, moved
        assert "get_batch_loss_metrics(model, inputs" in source, moved
        assert kind.loss_is_scaled_for_ga is False, moved


def test_a_loss_that_cpo_has_not_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"trainer.loss_type is `simp`; expected one of .* Did you mean `simpo`\?"):
        load_recipe(recipe, ["trainer.loss_type=simp"], "cpo")
