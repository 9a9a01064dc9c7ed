"""Nothing lost, no wreck shipped: the scorecard's sample, launchers and signals, contracts, and adapters read back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import NO_EVAL, ROOT, launch, losses, sft
from safetensors.torch import load_file, save_file

from lorasmith.errors import DivergedError, ModelError, RunError
from lorasmith.reliability import checkpoints, resume

SHORT = [
    "recipes/quickstart.yaml", *NO_EVAL, "model.quantization=none", "run.effective_batch=4", "run.micro_batch=4",
    "trainer.max_steps=40", "trainer.save_steps=10", "trainer.logging_steps=1",
]  # fmt: skip


def status(folder):
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def wait_until(true, seconds=400):
    end = time.time() + seconds
    while not true():
        assert time.time() < end, "it took too long"
        time.sleep(0.05)


def logged(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def scorecard(rows, sample):
    seed = str(int(time.time()) % 10_000)  # another sample each time; a failure names its seed
    done = launch("benchmarks/reliability.py", "--rows", rows, "--sample", sample, "--seed", seed)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"


@pytest.mark.slow
def test_a_sample_of_the_scorecard_is_clean():
    scorecard("R1,R2,R3,R5,R9,R12", 1)


@pytest.mark.slow
def test_a_larger_sample_of_the_scorecard_is_clean():
    scorecard("R1,R2,R3,R4,R5,R9,R12,R17,R18", 4)


# --- checkpoints and the contract ------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """Two committed checkpoints of made-up files."""
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in checkpoints.REQUIRED:
            (folder / name).write_text(f"{name} of step {step}")
        checkpoints.commit(folder)
    return tmp_path


def test_the_newest_checkpoint_is_by_number_and_must_be_whole(written):
    assert checkpoints.newest_good(written) == (written / "checkpoint-10", [])
    (written / "checkpoint-10/optimizer.pt").write_text("optimizer.pt of step 11")
    found, notes = checkpoints.newest_good(written)
    assert found == written / "checkpoint-2"
    assert notes == ["checkpoint-10: optimizer.pt is broken; set aside as broken-checkpoint-10"]
    assert (written / "broken-checkpoint-10/scheduler.pt").exists()


def test_a_checkpoint_without_a_file_that_resuming_needs_is_not_committed(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "optimizer.pt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json, .* was not written"):
        checkpoints.commit(folder)
    assert checkpoints.problem(folder) == "it was not finished"


def test_rotation_keeps_the_newest_and_the_best_and_counts_only_committed_ones(written):
    for step in (4, 6):
        shutil.copytree(written / "checkpoint-2", written / f"checkpoint-{step}")
    (written / "checkpoint-12").mkdir()  # being written
    checkpoints.rotate(written, 1, str(written / "checkpoint-4"))
    assert [one.name for one in checkpoints.checkpoints(written)] == ["checkpoint-12", "checkpoint-10", "checkpoint-4"]


def test_a_contract_names_every_difference_with_both_values():
    then = {"seed": 1, "rows": "a" * 64, "version of torch": "2.13.0"}
    now = {"seed": 2, "rows": "b" * 64, "version of torch": "2.13.0", "device": "cpu"}
    assert resume.differences(then, now, []) == [
        "seed was 1, is 2", "rows was aaaaaaaaaaaa..., is bbbbbbbbbbbb...", "device was nothing, is cpu",
    ]  # fmt: skip
    assert resume.differences(then, now, ["seed", "rows", "device"]) == []


def test_a_contract_holds_all_that_decides_what_is_learnt():
    from transformers import AutoTokenizer

    from lorasmith.recipe import load_recipe

    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", [])
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "quickstart/base")
    terms = resume.contract(recipe, "rows", tokenizer, "template", {"fingerprint": "f"}, {"torch": "2.13.0"}, "cpu")
    given = {"rows": "rows", "template": "template", "base weights": "f", "version of torch": "2.13.0", "device": "cpu"}
    assert given.items() <= terms.items()
    assert len(terms["tokenizer"]) == 64
    assert {
        "seed",
        "run.effective_batch",
        "adapter.rank",
        "model.quantization",
        "trainer.learning_rate",
    } <= terms.keys()
    assert not {"output_dir", "run.max_minutes", "trainer.save_steps", "trainer.logging_steps"} & terms.keys()


def test_other_trainable_parameters_are_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    layer, larger = torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)
    (checkpoint / checkpoints.CONTRACT).write_text(json.dumps({resume.TRAINABLE: resume.trainable(layer)}))
    going_on = resume.Resume(checkpoint)
    resume.check_trainable(going_on, resume.trainable(layer), [])
    with pytest.raises(RunError, match=r"trainable parameters was 6 \w+, is 9 \w+"):
        resume.check_trainable(going_on, resume.trainable(larger), [])
    layer.bias.requires_grad_(False)
    with pytest.raises(RunError, match=r"was 6 \w+, is 4"):
        resume.check_trainable(going_on, resume.trainable(layer), [])


def test_resuming_is_refused_where_there_is_nothing_and_for_fields_that_do_not_exist(tmp_path):
    with pytest.raises(RunError, match=r"holds no checkpoint. Start without --resume"):
        resume.find(tmp_path, {"seed": 1}, [], demanded=True)
    with pytest.raises(RunError, match=r"--allow-change sed: no such field. Fields: seed"):
        resume.find(tmp_path, {"seed": 1}, ["sed"], demanded=False)


def test_a_folder_whose_first_record_was_cut_off_is_begun_anew(tmp_path):
    from lorasmith.recipe import load_recipe
    from lorasmith.runs.folder import holds_this_run

    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", [])
    (tmp_path / "private").mkdir()
    (tmp_path / "status.part").write_text('{"exit')
    assert not holds_this_run(tmp_path, recipe, "", overwrite=False)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        holds_this_run(tmp_path, recipe, "", overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


# --- stops -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_time_limit_stops_with_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    words = [*SHORT, f"output_dir={tmp_path}/run"]
    first = launch("scripts/sft.py", *words, "run.max_minutes=0.0001")
    assert first.returncode == 75, first.stderr
    assert first.stderr.startswith(
        "stopped at step 1: the time limit of 0.0001 minutes is over; the checkpoint of step 1 is"
    )
    assert len(first.stderr.splitlines()) == 1
    assert status(tmp_path / "run")["exit_code"] == 75
    assert not (tmp_path / "run/adapter_model.safetensors").exists()
    refused = launch("scripts/sft.py", *words, "seed=1")
    assert refused.returncode == 2
    assert "seed was 42, is 1" in refused.stderr
    again = launch("scripts/sft.py", *words, "--resume")
    assert again.returncode == 0, again.stderr
    assert "goes on behind step 1" in again.stdout
    assert status(tmp_path / "run")["exit_code"] == 0
    events = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert events == sorted(events)
    assert len(set(events)) == 40


@pytest.mark.slow
def test_a_change_that_is_allowed_goes_on(tmp_path):
    words = [*SHORT, f"output_dir={tmp_path}/run"]
    assert launch("scripts/sft.py", *words, "run.max_minutes=0.0001").returncode == 75
    done = launch(
        "scripts/sft.py", *words, "trainer.weight_decay=0.1", "--allow-change", "trainer.weight_decay"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "goes on behind step 1" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_loses_nothing(tmp_path, number):
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "scripts/sft.py", *SHORT, f"output_dir={tmp_path}/run"], cwd=ROOT, stdout=out, stderr=out
        )
        wait_until(lambda: "machine:" in (tmp_path / "out").read_text())
        process.send_signal(number)
        assert process.wait(30) == 75
    text = (tmp_path / "out").read_text()
    assert "received before the first step. The same command starts again." in text
    assert "Traceback" not in text


IN_A_DESTRUCTOR = """
import os, signal, time
from lorasmith.listening import listener

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)  # what is raised in here, Python prints and drops
        time.sleep(0.1)

listener.listen()
dying = Dying()
try:
    del dying
    time.sleep(30)
except BaseException as error:
    print(type(error).__name__, error)
"""


def test_a_signal_that_falls_into_a_destructor_is_heard():
    done = subprocess.run([sys.executable, "-c", IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("StoppedNow stopped: SIGINT received before the first step.")
    assert done.stderr == ""


def children_of_a_launcher(pid):
    return [one for one in psutil.Process(pid).children(recursive=True) if "scripts/sft.py" in one.cmdline()]


@pytest.mark.parametrize(
    "launcher", ["launch.py", *(pytest.param(one, marks=pytest.mark.slow) for one in ("accelerate", "torchrun"))]
)
def test_term_to_a_launcher_orphans_nothing_and_ends_in_75(tmp_path, launcher):
    folder = tmp_path / "run"
    start = {
        "accelerate": ["-m", "accelerate.commands.launch", "--cpu"],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"],
        "launch.py": ["scripts/launch.py", "--cpu"],
    }[launcher]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    words = [*SHORT, f"output_dir={folder}", "trainer.max_steps=100000"]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *start, "scripts/sft.py", *words], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
        wait_until(lambda: logged(folder) > 5)
        below = children_of_a_launcher(process.pid)
        assert below
        process.terminate()
        code = process.wait(60)
        _, alive = psutil.wait_procs(below, 30)
    for one in alive:
        one.kill()
    assert not alive, (tmp_path / "out").read_text()
    assert status(folder)["exit_code"] == 75, (tmp_path / "out").read_text()
    found, notes = checkpoints.newest_good(folder)
    assert found is not None
    assert not notes
    assert not (folder / "adapter_model.safetensors").exists()
    if launcher == "launch.py":
        assert code == 75


def test_the_launcher_gives_the_scripts_own_code(tmp_path):
    done = launch("scripts/launch.py", "--cpu", "scripts/sft.py", "recipes/quickstart.yaml", "trainer.learning_rat=1")
    assert done.returncode == 2
    assert "Did you mean `learning_rate`" in done.stderr


# --- adapters read back, and on the right base -----------------------------------------------------------------------


@pytest.fixture
def opened(trained):
    from lorasmith import adapters, models
    from lorasmith.recipe import Model

    base = models.load_base_model(Model(name=str(ROOT / "quickstart/base")), "float32", "sdpa", "cpu")
    return adapters.load_adapter(base, trained)


@pytest.mark.scorecard(row="R11")
def test_a_written_adapter_is_read_back_and_compared(opened, trained, tmp_path):
    from lorasmith.reliability.reopened import check_saved

    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    check_saved(opened, folder)
    path = folder / "adapter_model.safetensors"
    good = load_file(path)
    key = next(name for name in good if "lora_B" in name)
    for change, said in (
        ({key: torch.full_like(good[key], float("nan"))}, f"{key} is not finite"),
        ({key: good[key][:-1].clone()}, "not the one trained"),
        ({name: torch.zeros_like(one) for name, one in good.items() if "lora_B" in name}, "is all zeros"),
        ({"stranger": torch.ones(1)}, "not the one trained"),
    ):
        save_file({**good, **change}, path)
        with pytest.raises(DivergedError, match=said):
            check_saved(opened, folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DivergedError, match="cannot be read back"):
        check_saved(opened, folder)


@pytest.mark.scorecard(row="R11")
def test_an_adapter_that_does_nothing_is_told(opened, trained):
    from lorasmith.reliability.reopened import check_effect

    with torch.no_grad():
        for name, weight in opened.named_parameters():
            if "lora_B" in name:
                weight.zero_()
    with pytest.raises(DivergedError, match="answers the same with the adapter and without"):
        check_effect(opened, trained)


def chat(folder, *words):
    return launch("scripts/chat.py", folder, "--prompt", "Hello", "--max-new-tokens", 2, *words)


@pytest.mark.scorecard(row="R11")
def test_other_weights_of_the_same_shapes_are_refused(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "quickstart/base", other)
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(1)
    save_file(
        {name: torch.randn_like(one) for name, one in weights.items()}, other / "model.safetensors", {"format": "pt"}
    )
    done = chat(trained, "--base", other)
    assert done.returncode == 2, done.stdout
    assert "was trained on other weights" in done.stderr
    copied = tmp_path / "copied"
    shutil.copytree(ROOT / "quickstart/base", copied)
    assert chat(trained, "--base", copied).returncode == 0


@pytest.mark.scorecard(row="R11")
@pytest.mark.parametrize(
    ("damage", "said"),
    [("missing", "lacks 1 tensors"), ("renamed", "tensors, such as"), ("zeroed", "has no effect on")],
)
def test_an_adapter_with_other_keys_or_without_effect_is_refused(trained, tmp_path, damage, said):
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    first = min(tensors)
    if damage == "missing":
        del tensors[first]
    elif damage == "renamed":
        tensors[first.replace("layers.0", "layers.9")] = tensors.pop(first)
    else:
        tensors = {name: torch.zeros_like(one) for name, one in tensors.items()}
    save_file(tensors, path)
    done = chat(folder)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.scorecard(row="R11")
def test_an_adapter_is_not_continued_without_its_tensors(trained, small_model):
    from lorasmith import adapters, models
    from lorasmith.recipe import Model

    other = models.load_base_model(Model(name=str(small_model("llama"))), "float32", "sdpa", "cpu")
    with pytest.raises(ModelError):
        adapters.load_adapter(other, trained, trainable=True)


# --- memory and hangs ------------------------------------------------------------------------------------------------


def test_the_longest_rows_are_rehearsed():
    from types import SimpleNamespace

    from datasets import Dataset

    from lorasmith.reliability.rehearsal import Rehearsal

    rehearsal = Rehearsal(str)
    rehearsal.trainer = SimpleNamespace(data_collator=list)
    rows = Dataset.from_dict({"input_ids": [[1], [1] * 9, [1] * 3, [1] * 7]})
    assert [len(row["input_ids"]) for row in rehearsal._batch(rows, 2)] == [9, 7]


OFF = ["speed.padding_free=false", "speed.chunked_loss=false", "speed.fused_lora=false"]


@pytest.mark.parametrize("levers", [[], OFF], ids=["flat", "padded"])
def test_a_batch_that_is_out_of_memory_is_done_in_halves(tmp_path, monkeypatch, capsys, levers):
    from trl.trainer import utils

    from lorasmith.speed import trainer

    words = [*SHORT, "trainer.max_steps=3", "model.dtype=float32", "adapter.dropout=0", *levers]
    expected = losses(sft(*words, f"output_dir={tmp_path}/one"))
    owner, name = (utils, "_ChunkedLogProbFunction") if levers else (trainer, "supervised_loss")
    whole, seen = getattr(owner, name), []

    def too_large(hidden):
        seen.append(hidden)
        return hidden.requires_grad and hidden.numel() // hidden.shape[-1] > 150 and len(seen) > 2

    def out_of_memory(hidden, *given):
        if too_large(hidden):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (whole.apply if levers else whole)(hidden, *given)

    monkeypatch.setattr(
        owner, name, type("Function", (), {"apply": staticmethod(out_of_memory)}) if levers else out_of_memory
    )
    found = losses(sft(*words, f"output_dir={tmp_path}/two"))
    assert found == pytest.approx(expected, abs=1e-5)
    assert capsys.readouterr().out.count("out of memory at 4 rows") == 1


def test_an_evaluation_keeps_no_logits(tmp_path, monkeypatch):
    from trl import SFTTrainer

    kept = []
    whole = SFTTrainer.evaluation_loop

    def evaluation_loop(self, *args, **kwargs):
        output = whole(self, *args, **kwargs)
        kept.append(output.predictions)
        return output

    monkeypatch.setattr(SFTTrainer, "evaluation_loop", evaluation_loop)
    sft(*(word for word in SHORT if word not in NO_EVAL), "trainer.max_steps=3", f"output_dir={tmp_path}/run")
    assert kept
    assert all(one is None for one in kept)


def test_a_process_that_does_not_move_is_ended_with_its_stacks(tmp_path):
    code = (
        "import time\nfrom pathlib import Path\nfrom transformers import TrainerState\n"
        "from lorasmith.reliability.watchdog import Watchdog\n"
        f"dog = Watchdog(Path({str(tmp_path)!r}), 0.4, lambda line, code: print(code, line, flush=True))\n"
        "state = TrainerState()\ndog.on_train_begin(None, state, None)\n"
        "for _ in range(8): time.sleep(0.1); dog.on_step_end(None, state, None)\n"
        "print('moved', flush=True)\ntime.sleep(30)"
    )
    done = launch("-c", code)
    assert done.returncode == 5, done.stderr
    assert done.stdout.startswith("moved\n5 error: rank 0 has not moved for")
    assert (
        "time.sleep" in (tmp_path / "private/stacks-rank-0.txt").read_text()
        or "<string>" in (tmp_path / "private/stacks-rank-0.txt").read_text()
    )


# --- rehearsal, secrets, offline -------------------------------------------------------------------------------------


def test_what_must_run_out_of_memory_does_so_before_the_first_step(tmp_path):
    code = (
        "import sys, torch, runpy\nfrom lorasmith.speed import trainer\n"
        "def loss(*a, **k): raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')\n"
        "trainer.supervised_loss = loss\nsys.argv = ['scripts/sft.py', *sys.argv[1:]]\n"
        "runpy.run_path('scripts/sft.py', run_name='__main__')"
    )
    done = launch("-c", code, *SHORT, f"output_dir={tmp_path}/run")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: the worst batch, rehearsed, is out of memory. Make it fit with: "
    )
    assert "Traceback" not in done.stderr
    assert "step 1/" not in done.stdout


@pytest.mark.slow
def test_a_rehearsal_changes_nothing(tmp_path):
    words = [*SHORT, "trainer.max_steps=3", "adapter.dropout=0.1"]
    code = (
        "import sys, runpy\nfrom lorasmith.reliability.rehearsal import Rehearsal\n"
        "Rehearsal.on_train_begin = lambda *a, **k: None\nsys.argv = ['scripts/sft.py', *sys.argv[1:]]\n"
        "runpy.run_path('scripts/sft.py', run_name='__main__')"
    )
    assert launch("-c", code, *words, f"output_dir={tmp_path}/without").returncode == 0
    assert launch("scripts/sft.py", *words, f"output_dir={tmp_path}/with").returncode == 0
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == two


def test_no_secret_is_in_any_byte_of_a_run(tmp_path):
    canary = "hf_CANARYcanaryCANARYcanaryCANARYcanary"
    words = [*SHORT, f"output_dir={tmp_path}/run", "run.max_minutes=0.0001", "run.keep_checkpoints=true"]
    done = launch("scripts/sft.py", *words, HF_TOKEN=canary, WANDB_API_KEY=canary)
    assert done.returncode == 75, done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("checkpoint" in str(path) for path in files)
    for path in files:
        assert canary.encode() not in path.read_bytes(), path
        assert path.name != "training_args.bin"


@pytest.mark.scorecard(row="R16")
def test_offline_opens_no_connection_and_says_at_once_what_is_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\ndef connect(*a): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = socket.socket.connect_ex = connect\nsocket.getaddrinfo = connect\n"
    )
    blocked = {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = launch("scripts/sft.py", *SHORT, f"output_dir={tmp_path}/run", "trainer.max_steps=2", "--offline", **blocked)
    assert done.returncode == 0, done.stderr
    start = time.time()
    missing = launch(
        "scripts/sft.py", *SHORT, "model.name=nobody/nothing", f"output_dir={tmp_path}/no", "--offline", **blocked
    )
    assert missing.returncode == 2
    assert missing.stderr == (
        "error: not on this machine, and the hub is out of reach: config.json, tokenizer.json, model.safetensors of "
        "nobody/nothing (main): hf download nobody/nothing. Fetch them where it is not.\n"
    )
    assert time.time() - start < 60, "two seconds where nothing else runs"
