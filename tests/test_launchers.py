"""The files of launchers/ and the commands of docs/launchers.md do what they say, as far as one machine can show it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import slurm_stubs
import yaml
from conftest import NO_EVAL, ROOT, metrics
from test_accelerate import commands_of

from lorasmith.reliability import checkpoints

PATIENCE = 300  # seconds
SHORT = [
    "recipes/quickstart.yaml", *NO_EVAL, "model.quantization=none", "model.dtype=float32", "run.effective_batch=4",
    "run.micro_batch=2", "trainer.max_steps=40", "trainer.save_steps=10", "trainer.logging_steps=1",
]  # fmt: skip


def wait_until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def edited(text: str, **values: str) -> str:
    """A launcher's file with some of its settings changed, as a user would."""
    for name, value in values.items():
        text, count = re.subn(rf"^( *{name}[=:] ?).*$", lambda found, to=value: found[1] + to, text, flags=re.MULTILINE)
        assert count == 1, name
    return text


# --- Slurm -----------------------------------------------------------------------------------------------------------


def submit(tmp_path: Path, **values: str) -> subprocess.Popen[bytes]:
    """`sbatch` of the edited script, in a folder from which the clone's files are seen."""
    programs = slurm_stubs.install(tmp_path / "programs")
    script = tmp_path / "slurm.sbatch"
    script.write_text(edited((ROOT / "launchers/slurm.sbatch").read_text(), **values))
    for name in ("scripts", "recipes", "quickstart", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(["sbatch", script], cwd=tmp_path, env=environment)


def log(tmp_path: Path) -> str:
    return (tmp_path / f"slurm-{slurm_stubs.JOB}.log").read_text()


def near_the_time_limit(job: subprocess.Popen[bytes]) -> None:
    """What Slurm does then: the signal of the script's own line to every process of the job's steps."""
    number = signal.Signals[f"SIG{re.findall('--signal=(USR1)@', (ROOT / 'launchers/slurm.sbatch').read_text())[0]}"]
    [step] = [one for one in psutil.Process(job.pid).children(recursive=True) if one.name() == "srun"]
    for one in step.children(recursive=True):
        one.send_signal(number)


@pytest.mark.slow
def test_a_slurm_job_near_its_time_limit_is_requeued_and_goes_on_to_the_end(tmp_path):
    folder = tmp_path / "run"
    words = " ".join(["scripts/sft.py", *SHORT, f"output_dir={folder}"])
    job = submit(
        tmp_path, PYTHON=sys.executable, CONFIG="accelerate_configs/cpu_two_nodes.yaml", PROCESSES="1", RUN=f"({words})"
    )
    wait_until(lambda: steps(folder) > 12 or job.poll() is not None)
    near_the_time_limit(job)
    assert job.wait(PATIENCE) == 0, log(tmp_path)
    stopped = re.findall(
        r"^stopped at step (\d+): .*; the checkpoint of step \1 is whole\.", log(tmp_path), re.MULTILINE
    )
    assert len(stopped) == 1, log(tmp_path)
    assert f"goes on behind step {stopped[0]}" in log(tmp_path)
    assert sorted({record["step"] for record in metrics(folder)}) == [*range(1, 41)]
    assert status(folder)["exit_code"] == 0


WORKER = """
import os, sys
from pathlib import Path

with Path("calls").open("a") as file:
    print(os.environ["SLURM_NODEID"], *sys.argv[1:], file=file)
sys.exit(int(Path("codes").read_text().split()[int(os.environ.get("SLURM_RESTART_COUNT", 0))]))
"""


@pytest.mark.parametrize(
    ("codes", "starts", "end"), [("0", 1, 0), ("5", 1, 5), ("75 75 0", 3, 0), ("75 4", 2, 4), ("75 75 75 75", 3, 75)]
)
def test_only_a_safe_stop_is_requeued_and_not_for_ever(tmp_path, codes, starts, end):
    (tmp_path / "codes").write_text(codes)
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{WORKER}")
    (tmp_path / "python").chmod(0o755)
    assert submit(tmp_path, PYTHON="./python", PROCESSES="4", REQUEUES="2").wait(PATIENCE) == end
    words = (
        "--config_file accelerate_configs/two_nodes.yaml --num_machines 2 --num_processes 8 --main_process_ip "
        "127.0.0.1 --main_process_port 14242 scripts/sft.py recipes/sft/llama-3.1-8b-qlora-16gb.yaml"
    )
    calls = sorted(f"{node} scripts/launch.py --machine_rank {node} {words}" for node in (0, 1) for _ in range(starts))
    assert sorted((tmp_path / "calls").read_text().splitlines()) == calls


# --- the other launchers ---------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/launchers.md").read_text()
LINES = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
ON_CPUS = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def test_the_commands_of_the_page_are_those_that_are_tested():
    accelerate = [line.replace("accelerate launch", "python scripts/launch.py") for line in commands_of("two_nodes")]
    assert LINES[:2] == accelerate  # run over two hosts: tests/test_two_hosts.py
    assert [line.split()[0] for line in LINES[2:4]] == ["torchrun", "torchrun"]  # run below
    assert LINES[4] == "sbatch launchers/slurm.sbatch"  # run above
    assert LINES[5].startswith("sky volumes apply --name lorasmith-outputs ")
    assert LINES[6:] == ["sky jobs launch launchers/skypilot.yaml"]


def two_machines(commands: list[list[str]], environments: list[dict[str, str]], outputs: list[Path]) -> list[Any]:
    """Begin a command for each of two machines, both of which are this one."""
    started = []
    for command, environment, output in zip(commands, environments, outputs, strict=True):
        with output.open("w") as out:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out))
    return started


def ended(started: list[Any]) -> list[int]:
    """The exit codes of both."""
    try:
        return [one.wait(PATIENCE) for one in started]
    finally:
        for one in started:
            one.kill()


def free_port() -> str:
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return str(asking.getsockname()[1])


def test_torchrun_knows_every_option_of_its_lines():
    from torch.distributed.run import get_args_parser

    for rank, line in enumerate(LINES[2:4]):
        given = get_args_parser().parse_args(line.split()[1:])
        assert (given.nnodes, given.node_rank, given.nproc_per_node) == ("2", rank, "1")
        assert (given.master_addr, given.master_port, given.max_restarts) == ("ADDRESS", 29500, 0)
        assert [given.training_script, *given.training_script_args] == ["scripts/sft.py", "RECIPE"]


@pytest.mark.slow
def test_the_pair_of_torchrun_lines_trains(tmp_path):
    here = {"ADDRESS": "127.0.0.1", "RECIPE": " ".join(SHORT), "29500": free_port()}
    commands = []
    for line in LINES[2:4]:
        words = re.sub("|".join(here), lambda found: here[found[0]], line).split()[1:]
        commands.append([sys.executable, "-m", "torch.distributed.run", *words, f"output_dir={tmp_path}/run"])
    outputs = [tmp_path / "0", tmp_path / "1"]
    codes = ended(two_machines(commands, [ON_CPUS] * 2, outputs))
    assert codes == [0, 0], [one.read_text() for one in outputs]
    assert "x 2 processes" in outputs[0].read_text()
    assert status(tmp_path / "run")["exit_code"] == 0


# --- SkyPilot --------------------------------------------------------------------------------------------------------

TASK = yaml.safe_load((ROOT / "launchers/skypilot.yaml").read_text())


def test_the_skypilot_task_has_its_documented_fields_and_runs_a_recipe_that_is_there():
    # docs.skypilot.co, YAML spec; the whole file was given to sky.Task.from_yaml of skypilot 0.14.1.
    assert TASK.keys() == {"name", "num_nodes", "resources", "workdir", "volumes", "envs", "setup", "run"}
    assert TASK["resources"].keys() == {"infra", "accelerators", "job_recovery"}
    assert TASK["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [5, 75]}
    [folder] = TASK["volumes"]
    script, recipe, output = TASK["envs"]["RUN"].split()
    assert (ROOT / script).exists()
    assert (ROOT / recipe).exists()
    assert output.startswith(f"output_dir={folder}/")
    given = {"SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"}
    assert set(re.findall(r"SKYPILOT_\w+", TASK["run"])) == given


@pytest.mark.slow
def test_the_skypilot_task_stops_on_a_signal_to_one_machine_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    text = TASK["run"].replace(".venv/bin/python", sys.executable).replace("/two_nodes", "/cpu_two_nodes")
    text = text.replace("--machine_rank", f"--main_process_port {free_port()} --machine_rank")
    environments = [
        {
            **ON_CPUS, "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "RUN": f"scripts/sft.py {' '.join(SHORT)} output_dir={folder}",
        }
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [tmp_path / "0", tmp_path / "1"]
    started = two_machines([["bash", "-c", f"exec {text}"]] * 2, environments, outputs)
    wait_until(lambda: steps(folder) > 3 or any(one.poll() is not None for one in started))
    started[1].terminate()
    assert ended(started) == [75, 75], [one.read_text() for one in outputs]
    newest, notes = checkpoints.newest_good(folder)
    assert newest is not None
    assert not notes
    assert ended(two_machines([["bash", "-c", text]] * 2, environments, outputs)) == [0, 0]
    assert f"goes on behind step {checkpoints.step_of(newest)}" in outputs[0].read_text()
    assert status(folder)["exit_code"] == 0
