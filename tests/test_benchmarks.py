"""The benchmarks count and compare rightly; what they measure is no test's business."""

import json

import pytest
from conftest import ROOT, launch, load_benchmark

speed = load_benchmark("speed")
inputs = load_benchmark("speed_inputs")


@pytest.mark.parametrize("shape", inputs.SHAPES)
def test_a_steps_operations_are_those_of_the_models_own_layers(shape):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = inputs.SHAPES[shape]["config"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**facts))
    linears = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    frozen, head = sum(weight.numel() for weight in linears), model.lm_head.weight.numel()
    adapter = 16 * sum(sum(weight.shape) for weight in linears)
    seen, supervised = 300.0, 0.75
    attention = facts["num_hidden_layers"] * facts["hidden_size"]
    by_hand = 4 * frozen + 4 * supervised * head + 6 * adapter + 6 * seen * attention
    assert inputs.flops_per_token(facts, supervised, seen) == pytest.approx(by_hand, rel=1e-12)


def test_the_figures_of_a_logged_update_are_read():
    line = "\x1b[A 33%|###| 1/3 {'loss': '9.72', 'grad_norm': '0.2783', 'learning_rate': '0.0002', 'num_tokens': '1.035e+04'}"
    assert speed.event_of(line) == pytest.approx(
        {"loss": 9.72, "grad_norm": 0.2783, "learning_rate": 2e-4, "num_tokens": 10350, "tokens": 10350}
    )
    assert speed.event_of("{'loss': 9.7, 'num_input_tokens_seen': 1203}")["tokens"] == 1203


def test_other_tokens_and_other_losses_are_told():
    run = {"tokens": 1000, "losses": [9.7, 9.6]}

    def told(held_out=9.5, **other):
        contenders = {speed.OURS: speed.Contender(str, [run]), "trl": speed.Contender(str, [run | other])}
        return speed.unequal(contenders, {"base": 9.8, speed.OURS: 9.5, "trl": held_out})

    assert told() == told(losses=[9.701, 9.601]) == []
    assert "900 tokens" in told(tokens=900)[0]
    assert "a training loss is 1.0" in told(losses=[9.7, 9.7])[0]
    assert "the held-out loss" in told(held_out=9.6)[0]


def test_a_prompt_ends_where_every_tokenizer_cuts():
    rows, source = inputs.read_rows(ROOT / "no such folder")
    assert "made up" in source
    tokenizer = inputs.make_tokenizer(rows)
    for row in rows[:50]:
        apart = [tokenizer(row[key])["input_ids"] for key in ("prompt", "completion")]
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == apart[0] + apart[1]


def test_the_speed_part_of_the_gpu_check_trains_every_contender_on_toys(tmp_path):
    gpu = load_benchmark("speed_gpu")
    found = gpu.run("cpu", 60, tmp_path / "found.json")
    assert {one["contender"] for one in found} >= {gpu.OURS, gpu.TRL}
    assert len(found) == 2 + len(gpu.levers())
    assert {one["result"] for one in found} == {"trained"}
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert gpu.run("cpu", -1)[0]["result"] == "not measured: the time was over"
    assert gpu.table(found).count("\n") == 1 + len(found)
    assert gpu.table(None) == "not measured"


def test_the_gpu_check_asks_for_speed_on_the_shapes_and_lengths_of_its_table():
    gpu = load_benchmark("speed_gpu")
    asked = {(cell.model, cell.quantization, cell.length) for cell, name in gpu.cells("cuda") if name == gpu.TRL}
    wanted = {(m, q, n) for m in (gpu.LLAMA_1B, gpu.LLAMA_8B) for q in ("none", "nf4") for n in (2048, 8192)}
    assert asked == wanted
    labels = [(cell.label, name) for cell, name in gpu.cells("cuda")]
    assert len(labels) == len(set(labels))


def test_a_part_of_the_gpu_check_that_fails_costs_no_other(capsys):
    check = load_benchmark("gpu_check")
    failed = {}
    assert check.guarded(failed, "speed", lambda: 1 / 0) is None
    assert check.guarded(failed, "grid", lambda: 3) == 3
    report = {"machine": {"gpu": "a card", "memory_gib": 80.0}, "failed": failed, "tests": None, "capped": None}
    shown = check.table(report | {"speed": None, "grid": None})
    assert "speed failed: ZeroDivisionError: division by zero" in shown
    assert "Memory grid: not measured" in shown


@pytest.mark.slow
def test_the_gpu_check_collects_what_its_speed_part_found():
    import time

    found = load_benchmark("gpu_check").speed(time.perf_counter(), "cpu")
    assert {one["result"] for one in found} == {"trained"}
    gpu = load_benchmark("speed_gpu")
    assert gpu.measure_apart(gpu.cells("cpu")[0][0], gpu.TRL, "cpu")["tokens_per_second"] > 0


@pytest.mark.slow
def test_all_contenders_train_on_the_same_ids_to_the_same_losses(tmp_path):
    done = launch(
        "benchmarks/speed.py", "--shape", "tiny", "--repeats", "1", "--quick", "--rows", "none", "--out", tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "speed.json").read_text())
    one = report["shapes"]["tiny"]
    assert one["unequal"] == []
    assert set(one["median"]) == {speed.OURS, speed.TRL, speed.BEST}
    ours, best = (one["runs"][name][0] for name in (speed.OURS, speed.BEST))
    assert ours["losses"] == pytest.approx(best["losses"], rel=2e-4)
    assert ours["gradient_norms"] == pytest.approx(best["gradient_norms"], rel=1e-3)
    assert one["held_out_loss"]["base"] != one["held_out_loss"][speed.OURS]
    assert (tmp_path / "speed.png").stat().st_size < 100_000
    assert "| lorasmith |" in speed.region(report)


def test_a_target_that_was_not_reached_is_told():
    learns = load_benchmark("learns")
    assert learns.mean_and_range([None, None], 0) == "not reached"
    assert learns.mean_and_range([40, None], 0) == "40; 1 of 2 not reached"
    assert learns.mean_and_range([40, 48], 0) == "44 (40 to 48)"
    report = json.loads((ROOT / "benchmarks/learns.json").read_text())
    assert {group: set(names) for group, names in report["settings"].items()} == {
        group: set(names) for group, names in learns.SETTINGS.items()
    }
    for runs in (runs for names in report["settings"].values() for runs in names.values()):
        assert [one["seed"] for one in runs] == [42, 43]
