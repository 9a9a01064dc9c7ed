"""What every training on preferences keeps: levers, halves, two processes, kill and resume, and what it refuses."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, launch, losses, run_script
from test_dpo import pairs_of_orders, written_recipe

METHODS = {
    "dpo": ("dpo", []),
    "orpo": ("orpo", []),
    "simpo": ("cpo", ["trainer.loss_type=simpo", "trainer.cpo_alpha=0.0", "trainer.beta=2.0"]),
    "cpo": ("cpo", []),
    "kto": ("kto", []),
    "reward": ("reward", []),
}
# What teaches a preference in a minute or two on a CPU.
TEACHING = {
    "dpo": ["trainer.max_steps=100", "trainer.learning_rate=3e-3"],
    "orpo": ["trainer.max_steps=150", "trainer.learning_rate=3e-3", "trainer.beta=1.0"],
    "simpo": ["trainer.max_steps=120", "trainer.learning_rate=3e-3"],
    "cpo": ["trainer.max_steps=150", "trainer.learning_rate=3e-3"],
    "kto": ["trainer.max_steps=200", "trainer.learning_rate=2e-3", "trainer.beta=0.5"],
}
QUICK = ["dpo", "orpo", "kto", "reward"]  # the others differ in their loss alone
PLAIN = ["speed.fused_lora=false", "speed.chunked_loss=false", "speed.padding_free=false"]


def routed(count):
    """Orders answered by how they are sent; by road is preferred for every second colour, by air for the others.

    So a base that likes one answer better prefers the right one in about half of the rows.
    """
    pairs = pairs_of_orders(count)
    colours = [json.loads(pair["chosen"][0]["content"])["colour"] for pair in pairs]
    by_road = sorted(set(colours))[::2]
    ways = [{"role": "assistant", "content": f"It goes by {way}."} for way in ("road", "air")]
    return [
        {"prompt": pair["prompt"], "chosen": [ways[colour not in by_road]], "rejected": [ways[colour in by_road]]}
        for pair, colour in zip(pairs, colours, strict=True)
    ]


def judged(pairs):
    """Both answers of each pair, each with whether it is wanted."""
    return [
        {"messages": [*pair["prompt"], *pair[kind]], "label": kind == "chosen"}
        for pair in pairs
        for kind in ("chosen", "rejected")
    ]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    pairs = written_recipe(tmp_path_factory.mktemp("pairs"), routed(480))
    single = written_recipe(tmp_path_factory.mktemp("judged"), judged(pairs_of_orders(480)))
    return {name: single if name == "kto" else pairs for name in METHODS}


def trained_with(recipes, name, folder, *words):
    method, own = METHODS[name]
    return run_script(method, recipes[name], f"output_dir={folder}", *own, *words)


def furthest(one, other):
    assert len(one) == len(other) > 0
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_the_levers_change_no_loss(recipes, tmp_path, name):
    short = ["data.eval=null", "trainer.max_steps=4"]
    fast = losses(trained_with(recipes, name, tmp_path / "fast", *short))
    plain = losses(trained_with(recipes, name, tmp_path / "plain", *short, *PLAIN))
    assert furthest(fast, plain) < 2e-5


@pytest.mark.scorecard(row="R17 preferences")
@pytest.mark.parametrize("name", ["dpo", *(pytest.param(one, marks=pytest.mark.slow) for one in ("orpo", "reward"))])
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
@pytest.mark.parametrize("name", TEACHING)
def test_held_out_pairs_reach_nine_in_ten(recipes, tmp_path, name, quantization):
    began = time.time()
    folder = trained_with(
        recipes, name, tmp_path / "run", *TEACHING[name], "trainer.logging_steps=40", f"model.quantization={quantization}",
        "model.dtype=auto",
    )  # fmt: skip
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    before, after = (metrics[when]["eval_rewards/accuracies"] for when in ("before", "after"))
    assert before < 0.8, "nothing gained yet, so that dpo's is 0; kto counts a tie half"
    assert after >= 0.9
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


@pytest.mark.scorecard(row="kill preferences")
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["dpo", *(pytest.param(one, marks=pytest.mark.slow) for one in METHODS if one != "dpo")]
)
def test_a_run_that_is_killed_or_stopped_goes_on_to_the_same_adapter(recipes, tmp_path, name, how):
    method, own = METHODS[name]
    words = [sys.executable, f"scripts/{method}.py", str(recipes[name]), "trainer.max_steps=40", *own]
    whole = subprocess.run([*words, f"output_dir={tmp_path}/whole"], cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*words, f"output_dir={tmp_path}/cut"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end = time.time() + 400
    while not list((tmp_path / "cut").glob("checkpoint-*/manifest.json")):
        assert time.time() < end
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.05)
    process.send_signal(how)
    process.wait()
    assert process.returncode == (75 if how == signal.SIGTERM else -signal.SIGKILL)
    again = subprocess.run([*words, f"output_dir={tmp_path}/cut"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "resumed: the run goes on behind step" in again.stdout
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_the_documented_chain_goes_from_rows_to_a_proven_merge(recipes, trained, tmp_path):
    """docs/preference.md: sft.py, dpo.py from its adapter, merge.py; here on the session's short sft run."""
    preferred, merged = tmp_path / "preferred", tmp_path / "merged"
    done = launch(
        "scripts/dpo.py", recipes["dpo"], f"adapter.from={trained}", "model.quantization=nf4", "trainer.max_steps=40",
        "trainer.learning_rate=3e-3", "trainer.logging_steps=20", f"output_dir={preferred}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads((preferred / "run.json").read_text())
    assert run["metrics"]["before"]["eval_loss"] == pytest.approx(math.log(2), abs=1e-4), "its reference is the sft run"
    assert run["metrics"]["after"]["eval_rewards/accuracies"] > 0.7
    done = launch("scripts/eval.py", preferred, "--data", ROOT / "quickstart/data/heldout.jsonl", "--limit", "4")
    assert done.returncode == 0, done.stderr
    done = launch("scripts/merge.py", preferred, "--out", merged)
    assert done.returncode == 0, done.stderr
    proof = json.loads((merged / "proof.json").read_text())
    assert proof["proven"]
    assert proof["drift"]["top1"] > 0.95
