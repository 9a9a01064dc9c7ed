"""Every shipped recipe loads, is named for what it holds, and is dry-run as far as it goes offline."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, launch

from lorasmith.recipe import load_recipe

EVERY = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path for path in EVERY if path.parent.name != "prepare"]  # those are run by test_prepare.py
REAL = [path for path in RECIPES if path.parent.name == "sft"]


def test_there_are_recipes_for_four_families():
    names = " ".join(path.stem for path in REAL)
    assert all(family in names for family in ("qwen", "llama", "gemma", "smollm"))
    assert len(REAL) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_shipped_recipe_loads(path):
    recipe = load_recipe(path, [])
    assert Path(recipe.output_dir).name == path.stem
    assert f"scripts/sft.py {path}" in path.read_text()


@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_recipes_name_says_what_it_holds(path):
    recipe = load_recipe(path, [])
    parts = path.stem.split("-")
    assert parts[0] in recipe.model.name.lower()
    assert ("qlora" in parts) <= (recipe.model.quantization == "nf4")
    assert ("int8" in parts) == (recipe.model.quantization == "int8")
    assert ("dora" in parts) == (recipe.adapter.method == "dora")
    assert parts[-1].endswith("gb")
    assert "# Measured: not yet." in path.read_text()


@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_recipe_names_the_source_of_its_learning_rate(path):
    text = path.read_text()
    [(rate, source)] = re.findall(r"^# Learning rate (\S+): (.+)$", text, re.MULTILINE)
    assert float(rate) == load_recipe(path, []).trainer["learning_rate"]
    assert re.search(r"arXiv \d|a sweep of|whose sweeps|NVlabs/DoRA", source)
    assert load_recipe(path, []).adapter.alpha == 32
    assert load_recipe(path, []).run.effective_batch < 32


@pytest.mark.parametrize("path", REAL[:1], ids=str)
def test_a_real_recipe_is_dry_run_as_far_as_it_goes_offline(path):
    done = launch("scripts/sft.py", path, "--dry-run", "data.train=quickstart/data/train.jsonl")
    assert done.returncode == 0, done.stderr
    assert "rows: 480 of quickstart/data/train.jsonl, recognised as messages" in done.stdout
    assert "not checked: " in done.stdout
    assert "the hub is out of reach" in done.stdout


@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_real_recipe_is_whole_but_for_its_model(path, tmp_path):
    """The same recipe over a model that is here, through the whole dry run, trl's config included."""
    from conftest import sft

    sft(path, "--dry-run", "data.train=quickstart/data/train.jsonl", "model.name=quickstart/base", "trainer.max_length=512",
        f"output_dir={tmp_path / 'run'}")  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_real_recipe_trains_its_architecture_in_small(path, tmp_path, small_model):
    from conftest import losses, sft

    kind = {"qwen3": "qwen3", "llama": "llama", "gemma": "gemma3_text", "smollm2": "llama", "smollm3": "smollm3"}
    base = small_model(kind[path.stem.split("-")[0]])
    folder = sft(path, "data.train=quickstart/data/train.jsonl", f"model.name={base}", "trainer.max_length=512",
                 "trainer.max_steps=8", "trainer.logging_steps=1", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0",
                 "run.effective_batch=4", f"output_dir={tmp_path / 'run'}")  # fmt: skip
    assert losses(folder)[-1] < losses(folder)[0]
