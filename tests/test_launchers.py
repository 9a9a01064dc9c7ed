"""The files of launchers/ and the commands of docs/launchers.md do what they say, as far as one machine can show it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import slurm_stubs
from conftest import NO_EVAL, ROOT

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
    stopped = re.findall(r"^stopped at step (\d+): SIGUSR1 received; the checkpoint of step \1 is whole\. .*$", log(tmp_path), re.M)
    assert len(stopped) == 1, log(tmp_path)
    assert f"goes on behind step {stopped[0]}" in log(tmp_path)
    assert [record["step"] for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())][:-1] == [*range(1, 41)]
    assert status(folder)["exit_code"] == 0
    assert "Traceback" not in log(tmp_path)


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
