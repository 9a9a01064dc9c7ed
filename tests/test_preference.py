"""What every training on preferences keeps: levers, halves, two processes, kill and resume, and what it refuses."""

import json
import math
import subprocess
import sys
import time

import pytest
from conftest import ROOT, launch, losses, run_script
from test_dpo import COLOURS, pairs_of_orders, written_recipe

METHODS = {
    "dpo": ("dpo", []),
    "orpo": ("orpo", []),
    "simpo": ("cpo", ["trainer.loss_type=simpo", "trainer.cpo_alpha=0.0", "trainer.beta=2.0"]),
    "cpo": ("cpo", []),
    "kto": ("kto", []),
}
PAIRED = [name for name in METHODS if name != "kto"]
PLAIN = ["speed.fused_lora=false", "speed.chunked_loss=false", "speed.padding_free=false"]


def routed(count):
    """Orders answered by how they are sent; by road is preferred for half of the colours, by air for the other half.

    So a base that likes one answer better prefers the right one in about half of the rows.
    """
    found = []
    for pair in pairs_of_orders(count):
        by_road = json.loads(pair["chosen"][0]["content"])["colour"] in COLOURS[:3]
        answers = [{"role": "assistant", "content": f"It goes by {way}."} for way in ("road", "air")]
        found.append(
            {"prompt": pair["prompt"], "chosen": answers[not by_road :][:1], "rejected": answers[by_road:][:1]}
        )
    return found


def judged(pairs):
    """One answer of each pair and whether it is wanted."""
    return [
        {"messages": [*pair["prompt"], *pair["rejected" if i % 2 else "chosen"]], "label": i % 2 == 0}
        for i, pair in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    pairs = written_recipe(tmp_path_factory.mktemp("pairs"), routed(880))
    single = written_recipe(tmp_path_factory.mktemp("judged"), judged(routed(880)))
    return {name: single if name == "kto" else pairs for name in METHODS}


def trained_with(recipes, name, folder, *words):
    method, own = METHODS[name]
    return run_script(method, recipes[name], f"output_dir={folder}", *own, *words)


def furthest(one, other):
    assert len(one) == len(other) > 0
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_the_levers_change_no_loss(recipes, tmp_path, name):
    short = ["data.eval=null", "trainer.max_steps=4"]
    fast = losses(trained_with(recipes, name, tmp_path / "fast", *short))
    plain = losses(trained_with(recipes, name, tmp_path / "plain", *short, *PLAIN))
    assert furthest(fast, plain) < 2e-5


@pytest.mark.parametrize("name", PAIRED)
def test_an_update_in_halves_is_the_same_update(recipes, tmp_path, monkeypatch, name):
    from lorasmith.reliability import guarded

    short = ["data.eval=null", "trainer.max_steps=3", "run.micro_batch=16"]
    whole = losses(trained_with(recipes, name, tmp_path / "whole", *short))
    made = guarded.guarded

    def with_little_memory(kind):
        found = made(kind)
        found.too_large = 6 * 40  # tokens: more than two pairs
        return found

    monkeypatch.setattr(guarded, "guarded", with_little_memory)
    halves = losses(trained_with(recipes, name, tmp_path / "halves", *short))
    assert furthest(whole, halves) < 1e-5


def test_reference_figures_that_are_computed_beforehand_give_the_same_losses(recipes, tmp_path):
    short = ["data.eval=null", "trainer.max_steps=3"]
    each = losses(trained_with(recipes, "dpo", tmp_path / "each", *short))
    before = losses(trained_with(recipes, "dpo", tmp_path / "before", *short, "trainer.precompute_ref_log_probs=true"))
    assert furthest(each, before) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("name", METHODS)
def test_held_out_pairs_reach_nine_in_ten(recipes, tmp_path, name, quantization):
    began = time.time()
    folder = trained_with(
        recipes, name, tmp_path / "run", "trainer.max_steps=120", "trainer.logging_steps=40", "trainer.learning_rate=3e-3",
        f"model.quantization={quantization}", "model.dtype=auto",
    )  # fmt: skip
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    if name == "dpo":
        assert metrics["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["after"]["eval_rewards/accuracies"] >= 0.9
    assert time.time() - began < 600, "a minute or two where nothing else runs"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_to_the_losses_of_one(recipes, tmp_path, name):
    method, words = METHODS[name]
    found = []
    for config in ("cpu", "cpu_2_processes"):
        done = launch(
            "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml", f"scripts/{method}.py",
            recipes[name], "trainer.max_steps=6", "run.micro_batch=4", f"output_dir={tmp_path / config}", *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(losses(tmp_path / config))
    assert furthest(*found) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name != "dpo"])
def test_a_killed_run_goes_on_to_the_same_adapter(recipes, tmp_path, name):
    method, own = METHODS[name]
    words = [sys.executable, f"scripts/{method}.py", str(recipes[name]), "trainer.max_steps=40", *own]
    whole = subprocess.run([*words, f"output_dir={tmp_path}/whole"], cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*words, f"output_dir={tmp_path}/cut"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end = time.time() + 120
    while not list((tmp_path / "cut").glob("checkpoint-*/manifest.json")):
        assert time.time() < end
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.05)
    process.kill()
    process.wait()
    again = subprocess.run([*words, f"output_dir={tmp_path}/cut"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resumed: the run goes on behind step" in again.stdout
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
