"""What docs/reinforcement.md says is what grpo.py does."""

import json
import re

import pytest
import yaml
from conftest import BASE, ROOT, load_benchmark, run_script

from lorasmith import hardware
from lorasmith.recipe import load_recipe
from lorasmith.recipe_checks import GRPO_CHOICES
from lorasmith.runs.settings import trainer_arguments

PAGE = (ROOT / "docs/reinforcement.md").read_text()


def test_the_recipe_of_the_page_loads_and_its_rewards_are_read(tmp_path):
    whole, rewards = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "r.yaml").write_text(whole)
    recipe = load_recipe(tmp_path / "r.yaml", [], "grpo")
    assert recipe.trainer["num_generations"] == 8
    assert recipe.run.effective_batch == 64
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(yaml.safe_load(whole) | yaml.safe_load(rewards)))
    assert len(load_recipe(tmp_path / "r.yaml", [], "grpo").rewards) == 3


def test_the_page_names_every_loss():
    assert set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)) == set(GRPO_CHOICES["loss_type"])


@pytest.mark.slow
def test_the_worked_example_learns_what_the_page_says(tmp_path):
    """The two heredocs of the page, then the command, all of it in another folder."""
    [rows, recipe] = re.findall(r"<<'END'(?: > \S+)?\n(.*?)END\n", PAGE, re.DOTALL)
    exec(rows.replace("adapters/", f"{tmp_path}/"), {})  # what the page has its reader run
    (tmp_path / "orders.yaml").write_text(recipe.replace("adapters/", f"{tmp_path}/"))
    folder = run_script("grpo", tmp_path / "orders.yaml", f"output_dir={tmp_path}/run")
    found = json.loads((folder / "run.json").read_text())["metrics"]
    assert found["before"]["eval_reward"] < 0.3
    assert found["after"]["eval_reward"] > 0.95
    assert {"rewards.png", "length.png"} <= {path.name for path in (folder / "plots").iterdir()}


def test_the_tables_of_speed_are_those_of_the_benchmark():
    path = ROOT / "benchmarks/grpo_speed.json"
    if not path.exists():
        pytest.skip("not measured")
    report = json.loads(path.read_text())
    benchmark = load_benchmark("grpo_speed")
    assert benchmark.with_tables(PAGE, report) == PAGE, "run: python benchmarks/grpo_speed.py"
    assert not benchmark.unequal(report)


def test_early_stopping_of_a_policy_looks_at_its_reward(tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"model: {{name: {BASE}, dtype: float32}}\ndata: {{train: a.jsonl, eval: b.jsonl}}\nrewards: [a.py:b]\n"
        "run: {effective_batch: 64, micro_batch: 64, early_stopping: 2, gradient_checkpointing: false}\n"
        "output_dir: out\ntrainer: {eval_strategy: steps, eval_steps: 4}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml", [], "grpo")
    machine = hardware.find_hardware(use_cpu=True)
    assert trainer_arguments(recipe, machine, "grpo")["metric_for_best_model"] == "eval_reward"
    assert trainer_arguments(recipe, machine, "sft")["metric_for_best_model"] == "eval_loss"
