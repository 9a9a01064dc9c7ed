"""Every shipped recipe loads, is named for what it holds, and is dry-run as far as it goes offline."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, launch, losses, run_script, write_rows

from lorasmith.recipe import load_recipe
from lorasmith.recipe_checks import group_size
from lorasmith.recipe_method import method_of
from lorasmith.upstream import CONFIGS, TASKS

EVERY = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path for path in EVERY if path.parent.name != "prepare"]  # those are run by test_prepare.py
REAL = [path for path in RECIPES if path.parent.name in CONFIGS]
LABELS = {"sft": (), "cpo": ("simpo",), **dict.fromkeys(TASKS, ())}  # in a name, where not the method


SHORT = {"grpo": ["data.max_prompt_length=256", "trainer.max_completion_length=64"]}  # else a row's length


def loaded(path):
    """A recipe as its own script reads it."""
    return load_recipe(path, [], method_of(path))


def needs_its_script(path):
    """Skip where the script that a recipe is for is missing."""
    if not (ROOT / f"scripts/{method_of(path)}.py").exists():
        pytest.skip(f"scripts/{method_of(path)}.py is missing")


def rows_for(path, folder):
    """Rows of the kind that a recipe trains on: the quickstart's, or made of them."""
    from test_dpo import pairs_of_orders
    from test_kto import judged_orders

    method = method_of(path)
    if method == "sft":
        return ROOT / "quickstart/data/train.jsonl"
    if method == "text_classification":
        texts = ({"text": f"order {i}", "label": ["small", "large"][i // 48]} for i in range(96))
        return write_rows(folder / "rows.jsonl", *texts)
    if method == "token_classification":
        words = ({"tokens": ["order", str(i)], "ner_tags": ["O", "B-number"]} for i in range(96))
        return write_rows(folder / "rows.jsonl", *words)
    if method == "question_answering":
        asked = (
            {
                "id": str(i),
                "question": "What?",
                "context": f"Order {i}.",
                "answers": [{"text": "Order", "answer_start": 0}],
            }
            for i in range(96)
        )
        return write_rows(folder / "rows.jsonl", *asked)
    if method == "seq2seq":
        return write_rows(folder / "rows.jsonl", *({"prompt": f"order {i}", "completion": f"o {i}"} for i in range(96)))
    if method == "grpo":
        sums = ({"question": f"What is {i} and {i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(96))
        return write_rows(folder / "rows.jsonl", *sums)
    return write_rows(folder / "rows.jsonl", *(judged_orders if method == "kto" else pairs_of_orders)(96))


def base_for(path, folder):
    """A model that is here, of the kind that a recipe trains."""
    if method_of(path) != "seq2seq":
        return "quickstart/base"
    from test_seq2seq import new_model, words_tokenizer

    new_model("t5").save_pretrained(folder / "base")
    words_tokenizer(False).save_pretrained(folder / "base")
    return folder / "base"


def run(path, *words):
    return run_script(method_of(path), path, *SHORT.get(method_of(path), ["trainer.max_length=512"]), *words)


def test_there_are_recipes_for_four_families_and_every_method():
    names = " ".join(path.stem for path in REAL)
    assert all(family in names for family in ("qwen", "llama", "gemma", "smollm"))
    assert len(REAL) >= 6
    assert {path.parent.name for path in REAL} == set(CONFIGS)
    assert len({load_recipe(path, [], method_of(path)).output_dir for path in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_shipped_recipe_loads(path):
    recipe = loaded(path)
    assert Path(recipe.output_dir).name == path.stem
    assert f"scripts/{method_of(path)}.py {path}" in path.read_text()
    if path in REAL:
        assert method_of(path) == path.parent.name


@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_recipes_name_says_what_it_holds(path):
    recipe = loaded(path)
    parts = path.stem.split("-")
    assert parts[0] in recipe.model.name.lower()
    assert ("qlora" in parts) <= (recipe.model.quantization == "nf4")
    assert ("int8" in parts) == (recipe.model.quantization == "int8")
    assert ("dora" in parts) == (recipe.adapter.method == "dora")
    assert parts[-1].endswith("gb") or parts[-1] == "cpu"
    assert all(label in parts for label in LABELS.get(path.parent.name, (path.parent.name,)))
    assert "# Measured: not yet." in path.read_text()


@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_recipe_names_the_source_of_its_learning_rate(path):
    text = path.read_text()
    [(rate, source)] = re.findall(r"^# Learning rate (\S+): (.+)$", text, re.MULTILINE)
    recipe = loaded(path)
    assert float(rate) == recipe.trainer["learning_rate"]
    assert re.search(r"arXiv \d|a sweep of|whose sweeps|NVlabs/DoRA|princeton-nlp/SimPO|benchmarks/\w+\.py", source)
    assert recipe.adapter.alpha == 32
    together = group_size(recipe.trainer) if path.parent.name == "grpo" else 1
    assert recipe.run.effective_batch // together < 32


@pytest.mark.parametrize("path", [path for path in REAL if path.parent.name == "sft"][:1], ids=str)
def test_a_real_recipe_is_dry_run_as_far_as_it_goes_offline(path):
    done = launch("scripts/sft.py", path, "--dry-run", "data.train=quickstart/data/train.jsonl")
    assert done.returncode == 0, done.stderr
    assert "rows: 480 of quickstart/data/train.jsonl, recognised as messages" in done.stdout
    assert "not checked: " in done.stdout
    assert "the hub is out of reach" in done.stdout


@pytest.mark.parametrize("path", REAL, ids=str)
def test_a_real_recipe_is_whole_but_for_its_model(path, tmp_path):
    """The same recipe over a model that is here, through the whole dry run, trl's config included."""
    needs_its_script(path)
    held_out = ["data.eval=null", "data.eval_fraction=0.1"] if path.parent.name in TASKS else []
    run(path, "--dry-run", f"data.train={rows_for(path, tmp_path)}", f"model.name={base_for(path, tmp_path)}", *held_out,
        f"output_dir={tmp_path / 'run'}")  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in REAL if path.parent.name not in TASKS], ids=str)
def test_a_real_recipe_trains_its_architecture_in_small(path, tmp_path, small_model):
    needs_its_script(path)
    kind = {"qwen3": "qwen3", "llama": "llama", "gemma": "gemma3_text", "smollm2": "llama", "smollm3": "smollm3"}
    base = small_model(kind[path.stem.split("-")[0]])
    rows = 8 if path.parent.name == "grpo" else 4
    folder = run(path, f"data.train={rows_for(path, tmp_path)}", f"model.name={base}",
                 "trainer.max_steps=8", "trainer.logging_steps=1", "trainer.learning_rate=1e-2", "trainer.warmup_steps=0",
                 f"run.effective_batch={rows}", f"output_dir={tmp_path / 'run'}")  # fmt: skip
    if path.parent.name == "grpo":  # whose loss is near nothing whatever it learns
        assert (folder / "adapter_model.safetensors").exists()
        return
    assert losses(folder)[-1] < losses(folder)[0]
