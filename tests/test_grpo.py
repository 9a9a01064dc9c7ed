"""grpo.py on the embedded default: rewards are learnt, trl's losses are kept, and every end is a clean one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import BASE, ROOT, launch, losses, metrics, run_script, write_rows
from test_preference import PLAIN, furthest

RECIPE = f"""
model: {{name: {BASE}, dtype: float32}}
data: {{train: TRAIN, eval: EVAL}}
rewards:
- {{function: rewards/match.py:numeric, marked: false}}
run: {{effective_batch: 32, micro_batch: 16}}
output_dir: unset
trainer: {{max_steps: 4, learning_rate: 1e-3, num_generations: 8, max_completion_length: 12, logging_steps: 1,
  lr_scheduler_type: constant, save_strategy: "no"}}
"""
UNEVALUATED = ["data.eval=null"]


def counted_orders(name):
    """Orders with a question that the base answers by the number in words, by the things, or by the number."""
    for line in (ROOT / f"quickstart/data/{name}.jsonl").read_text().splitlines():
        order, answer = json.loads(line)["messages"]
        count = json.loads(answer["content"])["count"]
        yield {"question": f"{order['content']} How many, number?", "answer": str(count)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    train = write_rows(folder / "train.jsonl", *counted_orders("train"))
    held = write_rows(folder / "eval.jsonl", *counted_orders("heldout"))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("TRAIN", str(train)).replace("EVAL", str(held)))
    return path


def grpo(*words) -> Path:
    return run_script("grpo", *words)


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def learnt(recipe, tmp_path_factory):
    """A short run on the whole road."""
    folder = tmp_path_factory.mktemp("learnt") / "run"
    words = ["trainer.max_steps=14", "run.effective_batch=64", "run.micro_batch=64", "trainer.beta=0.01"]
    return grpo(recipe, f"output_dir={folder}", *words)


def test_a_verifiable_reward_rises_on_held_out_prompts_and_the_folder_says_how(learnt):
    run = json.loads((learnt / "run.json").read_text())
    before, after = run["metrics"]["before"], run["metrics"]["after"]
    assert before["eval_reward"] < 0.3
    assert after["eval_reward"] > 0.8
    assert run["method"] == "grpo"
    card = (learnt / "README.md").read_text()
    assert "group relative policy optimization" in card
    assert "480 prompts" in card
    assert "rewarded by `rewards/match.py:numeric`" in card
    assert f"| reward numeric | {before['eval_reward']:.3f} | {after['eval_reward']:.3f} |" in card
    assert {path.stem for path in (learnt / "plots").iterdir()} >= {"rewards", "length", "kl"}
    assert json.loads((learnt / "status.json").read_text())["exit_code"] == 0


def test_samples_of_completions_are_written_with_their_rewards(learnt):
    samples = [json.loads(line) for line in (learnt / "private/completions.jsonl").read_text().splitlines()]
    assert {one["rows"] for one in samples} == {"training", "held out"}
    assert {one["step"] for one in samples} == set(range(15))
    for one in samples:
        assert one["prompt"][0]["content"].endswith("How many, number?")
        assert one["completion"][0]["role"] == "assistant"
        assert one["rewards"]["numeric"] in (0.0, 1.0)
    first = [one["rewards"]["numeric"] for one in samples if (one["step"], one["rows"]) == (1, "training")]
    assert first == sorted(first, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_reward_reaches_nine_in_ten_in_every_precision(recipe, tmp_path, quantization):
    began = time.time()
    words = ["trainer.max_steps=40", "run.effective_batch=64", "run.micro_batch=auto", "model.dtype=auto"]
    folder = grpo(recipe, f"output_dir={tmp_path}/run", f"model.quantization={quantization}", *words)
    found = json.loads((folder / "run.json").read_text())["metrics"]
    assert found["before"]["eval_reward"] < 0.3
    assert found["after"]["eval_reward"] > 0.9
    assert time.time() - began < 300, "half a minute where nothing else runs"


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_losses_and_completions_are_those_of_trls_trainer(recipe, tmp_path, beta):
    words = [f"trainer.beta={beta}", "trainer.max_steps=6", "trainer.learning_rate=2e-4", *UNEVALUATED]
    folder = grpo(recipe, f"output_dir={tmp_path}/run", *words)
    ours = [event for event in metrics(folder) if "loss" in event]
    theirs = trls_own(recipe, tmp_path, beta)
    for key in ("reward", "completions/mean_length", "loss"):
        assert furthest([one[key] for one in ours], [one[key] for one in theirs]) < 2e-4, key
    assert sum(one["reward"] for one in ours) > 0.5


def trls_own(recipe, folder, beta):
    """What trl's trainer logs of the recipe's six updates."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from lorasmith.rewards import loading

    rows = [json.loads(line) for line in (recipe.parent / "train.jsonl").read_text().splitlines()]
    prompts = [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    [reward] = loading.load([{"function": "rewards/match.py:numeric", "marked": False}])
    config = GRPOConfig(
        str(folder / "trl"), max_steps=6, learning_rate=2e-4, num_generations=8, max_completion_length=12, beta=beta,
        logging_steps=1, lr_scheduler_type="constant", per_device_train_batch_size=16, gradient_accumulation_steps=2,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(ROOT / BASE, dtype=torch.float32), reward_funcs=[reward.function],
        args=config, train_dataset=Dataset.from_list(prompts), processing_class=AutoTokenizer.from_pretrained(ROOT / BASE),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    return [event for event in trainer.state.log_history if "loss" in event]


@pytest.mark.parametrize("loss", ["dapo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_levers_and_halves_change_no_loss(recipe, tmp_path, monkeypatch, loss):
    from lorasmith.reliability import guarded

    short = [*UNEVALUATED, "trainer.max_steps=3", f"trainer.loss_type={loss}", "trainer.beta=0.05"]
    fast = losses(grpo(recipe, f"output_dir={tmp_path}/fast", *short))
    plain = losses(grpo(recipe, f"output_dir={tmp_path}/plain", *short, *PLAIN))
    assert furthest(fast, plain) < 2e-5
    made = guarded.guarded

    def with_little_memory(kind):
        found = made(kind)
        found.too_large = 6 * 40  # tokens: more than six completions
        return found

    monkeypatch.setattr(guarded, "guarded", with_little_memory)
    halves = losses(grpo(recipe, f"output_dir={tmp_path}/halves", *short))
    assert furthest(fast, halves) < 2e-5


def test_a_generation_that_is_out_of_memory_goes_on_in_halves(recipe, tmp_path, monkeypatch, capsys):
    from trl import GRPOTrainer

    whole = GRPOTrainer._generate_single_turn

    def with_little_memory(self, prompts, *args, **kwargs):
        if len(prompts) > 10:
            raise MemoryError
        return whole(self, prompts, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", with_little_memory)
    folder = grpo(recipe, f"output_dir={tmp_path}/run", "trainer.max_steps=1", *UNEVALUATED)
    assert "out of memory at 16 completions: from here on 8 are made at a time" in capsys.readouterr().out
    assert len(losses(folder)) == 1


TWICE = "one generation for two updates"
WAYS = {
    "one generation an update": [],
    TWICE: ["trainer.steps_per_generation=4"],
    "updates that see completions twice": ["trainer.num_iterations=2"],
}


@pytest.mark.scorecard(row="R18 generation")
@pytest.mark.parametrize("way", [TWICE, *(pytest.param(one, marks=pytest.mark.slow) for one in WAYS if one != TWICE)])
def test_a_run_that_is_stopped_amid_a_generation_goes_on_to_the_same_adapter(recipe, tmp_path, monkeypatch, way):
    from lorasmith.errors import StoppedError
    from lorasmith.listening import listener
    from lorasmith.reinforcement import generating
    from lorasmith.reliability import stopping

    words = [
        *WAYS[way], "trainer.max_steps=7", "trainer.save_strategy=steps", "trainer.save_steps=3",
        "trainer.eval_strategy=steps", "trainer.eval_steps=2",
    ]  # fmt: skip
    whole = grpo(recipe, f"output_dir={tmp_path}/whole", *words)
    folder, in_parts = tmp_path / "cut", generating.in_parts

    def asked_to_stop(trainer, prompts, generate):
        def meanwhile(part):
            if trainer.state.global_step >= 4 and trainer.model.training:
                listener.asked = "SIGTERM received"
            return generate(part)

        return in_parts(trainer, prompts, meanwhile)

    monkeypatch.setattr(stopping, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(generating, "in_parts", asked_to_stop)
    try:
        with pytest.raises(
            StoppedError, match="stopped at step 4: SIGTERM received; the checkpoint of step 4 is whole"
        ):
            grpo(recipe, f"output_dir={folder}", *words)
    finally:
        listener.asked = ""
    monkeypatch.setattr(generating, "in_parts", in_parts)
    earlier = tmp_path / "earlier"
    shutil.copytree(folder, earlier)
    shutil.rmtree(earlier / "checkpoint-4")
    for one in (folder, earlier):
        grpo(recipe, f"output_dir={one}", *words)
        assert adapter(one) == adapter(whole)
        kept = (one / "private/completions.jsonl").read_text()
        assert kept == (whole / "private/completions.jsonl").read_text()


@pytest.mark.slow
def test_a_signal_ends_a_long_generation_at_once(recipe, tmp_path):
    folder = tmp_path / "run"
    words = ["trainer.max_completion_length=400", "trainer.generation_kwargs={min_new_tokens: 400}", *UNEVALUATED]
    process = subprocess.Popen(
        [sys.executable, "scripts/grpo.py", str(recipe), f"output_dir={folder}", "run.effective_batch=256", *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    while "trainable:" not in (line := process.stdout.readline()):
        assert line, "it ended"
    time.sleep(4)  # the rehearsal, and some way into the first generation
    process.send_signal(signal.SIGTERM)
    sent = time.time()
    rest = process.communicate(timeout=300)[0]
    assert process.returncode == 75, rest
    assert time.time() - sent < 120
    assert "The same command" in rest


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["trainer.beta=0.1", "model.quantization=nf4"]])
def test_two_processes_learn_from_whole_groups(recipe, tmp_path, words):
    done = launch(
        "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2_processes.yaml", "scripts/grpo.py",
        recipe, "trainer.max_steps=20", "run.effective_batch=64", f"output_dir={tmp_path}/run", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run/run.json").read_text())["metrics"]
    assert found["before"]["eval_reward"] < 0.3
    assert found["after"]["eval_reward"] > 0.8


def test_an_adapter_is_its_own_reference(recipe, learnt, tmp_path):
    words = [
        f"adapter.from={learnt}",
        "trainer.beta=0.1",
        "trainer.max_steps=2",
        "trainer.temperature=2.0",
        *UNEVALUATED,
    ]
    folder = grpo(recipe, f"output_dir={tmp_path}/run", *words)
    first, second = (event for event in metrics(folder) if "loss" in event)
    assert first["reward"] > 0.3, "what it begins with is no base"
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < second["kl"] < 1


def test_a_reward_model_of_ours_rewards(recipe, tmp_path, capsys):
    from test_reward import pairs_with_a_hole

    pairs = write_rows(tmp_path / "pairs.jsonl", *pairs_with_a_hole(200))
    judge = run_script(
        "reward", recipe, f"data.train={pairs}", *UNEVALUATED, "rewards=[]", "trainer={max_steps: 2}",
        f"output_dir={tmp_path}/judge",
    )  # fmt: skip
    words = [f"rewards=[{{model: {judge}, weight: 0.5}}, rewards/match.py:exact]", "trainer.max_steps=1", *UNEVALUATED]
    folder = grpo(recipe, f"output_dir={tmp_path}/run", *words)
    assert f"reward judge (weight 0.5): the reward model {judge}" in capsys.readouterr().out
    [event] = [event for event in metrics(folder) if "loss" in event]
    assert event["reward"] == pytest.approx(0.5 * event["rewards/judge/mean"] + event["rewards/exact/mean"], abs=1e-5)
    assert event["rewards/judge/std"] > 0


BROKEN = {
    "raises": ("def it(completions, **columns):\n    return [1 / 0]\n", r"broken.py:2: the reward it raised ZeroDivisionError"),
    "a text": ("def it(completions, **columns):\n    return ['good'] * len(completions)\n", "expected a number, or None"),
    "too few": ("def it(completions, **columns):\n    return [1.0]\n", "returned 1 numbers for 8 completions"),
    "no such column": ("def it(completions, solution):\n    return [0.0]\n", "takes `solution`, which is no column"),
    "not python": ("def it(completions:\n", r"broken.py:1: importing it raised SyntaxError"),
    "not a number": ("def it(completions, **columns):\n    return [float('nan')] * len(completions)\n", "returned nan"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_reward_is_told_in_one_line_before_the_weights(recipe, tmp_path, kind):
    from lorasmith.errors import RecipeError

    text, said = BROKEN[kind]
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(RecipeError, match=said) as found:
        grpo(recipe, f"rewards=[{tmp_path}/broken.py:it]", f"output_dir={tmp_path}/run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


WRONG = {
    "no rewards": (["rewards=[]"], "`rewards` is missing"),
    "a group that does not divide": (["trainer.num_generations=5"], "expected a multiple of trainer.num_generations"),
    "no reward model": ([f"rewards=[{{model: {BASE}}}]"], "no reward model of ours is there"),
    "too few prompts": (["trainer.generation_batch_size=8000"], "takes 1000 prompts of 8 completions at a time"),
    "an unknown loss": (["trainer.loss_type=grop"], "Did you mean `grpo`"),
    "no vllm": (["trainer.use_vllm=true"], "vllm is not installed"),
    "longer than the model": (["trainer.max_completion_length=600"], "more than the model's 512 positions"),
    "a cut prompt": (["data.on_too_long=truncate"], "a prompt is not cut"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_work_is_told_in_one_line_before_the_weights(recipe, tmp_path, kind):
    from lorasmith.errors import LorasmithError

    words, said = WRONG[kind]
    with pytest.raises(LorasmithError, match=said) as found:
        grpo(recipe, *words, f"output_dir={tmp_path}/run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


def test_a_reward_that_fails_while_training_ends_the_run_in_its_line(recipe, tmp_path):
    (tmp_path / "late.py").write_text(
        "calls = []\n\n\ndef late(completions, **columns):\n    calls.append(1)\n    return [[0.0, 1 / (len(calls) < 6)][1]] * "
        "len(completions)\n"
    )
    done = launch(
        "scripts/grpo.py", recipe, *UNEVALUATED, f"rewards=[{tmp_path}/late.py:late]", f"output_dir={tmp_path}/run"
    )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert "late.py:6: the reward late raised ZeroDivisionError" in line
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 2


def test_another_reward_is_another_run(recipe, tmp_path):
    """The contract of a resumed run knows reward files by content."""
    from lorasmith.runs.rewarding import fingerprints

    path = tmp_path / "mine.py"
    found = []
    for value in ("0.0", "1.0"):
        path.write_text(f"def mine(completions, **columns):\n    return [{value}] * len(completions)\n")
        found.append(fingerprints([f"{path}:mine"]))
    assert found[0].keys() == found[1].keys() == {"reward mine.py"}
    assert found[0] != found[1]
