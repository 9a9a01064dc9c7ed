"""Rows through the real launchers: signals to the launcher's own pid, and ranks that hang or die."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from lorasmith.reliability.checkpoints import newest_good
from scorecard.trial import BASIC, ROOT, chosen, counted, digest, place, run, undisturbed

LAUNCHERS = {
    "accelerate launch": ["-m", "accelerate.commands.launch", "--cpu"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "1"],
    "scripts/launch.py": ["scripts/launch.py", "--cpu"],
    "python": [],
}
TWO_RANKS = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
ENDLESS = ["trainer.max_steps=100000", "trainer.lr_scheduler_type=constant"]
PATIENCE = 120  # seconds for anything to end
HANG_SECONDS = 12


def launched(start: list[str], words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A script begun through a launcher, as a user would."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        command = [sys.executable, *start, "scripts/sft.py", *words]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)


def ranks_of(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The training processes by rank."""
    found = {}
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        if "scripts/sft.py" in one.cmdline() and not any(
            "launch" in word or "distributed" in word for word in one.cmdline()
        ):
            found[one.environ().get("RANK", "0")] = one
    return found


def wait_for_steps(folder: Path, steps: int) -> None:
    """Until a run has logged some steps."""
    path, end = folder / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (path.exists() and len(path.read_text().splitlines()) >= steps):
        assert time.monotonic() < end, "the run did not begin"
        time.sleep(0.05)


def ended(process: subprocess.Popen[bytes], ranks: dict[str, psutil.Process]) -> tuple[int, list[str]]:
    """The launcher's exit code, and the ranks that outlived it (which are ended then)."""
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = -99
    _, alive = psutil.wait_procs(list(ranks.values()), 60)
    for one in alive:
        one.kill()
    return code, [rank for rank, one in ranks.items() if one in alive]


def status(folder: Path) -> int | None:
    """The exit code in a run's status.json."""
    code: int | None = json.loads((folder / "status.json").read_text())["exit_code"]
    return code


def r5_launchers(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """TERM and INT to the launcher's own pid at a random step: no orphan, 75 in status.json, then the same adapter."""
    expected = undisturbed(script)
    rng = random.Random(seed)
    items = [(name, kind, rng.randrange(1, 7)) for name in LAUNCHERS for kind in (signal.SIGTERM, signal.SIGINT)]
    failures = []
    for name, number, steps in chosen(items, sample, seed):
        with place() as folder:
            words = [*BASIC, f"output_dir={folder}"]
            process = launched(LAUNCHERS[name], words, folder.parent / "log")
            wait_for_steps(folder, steps)
            below = ranks_of(process)
            process.send_signal(number)
            code, orphans = ended(process, below)
            found = status(folder)
            half_trained = found == 75 and (folder / "adapter_model.safetensors").exists()
            own = name in ("accelerate launch", "torchrun") or code == found  # those two give a code of their own
            again = run(script, words)
            good = not orphans and found in (0, 75) and not half_trained and own and again.code == 0
            if not good or digest(folder) != expected:
                log = (folder.parent / "log").read_text()[-300:]
                failures.append(
                    f"{name}, {number.name} behind step {steps}: {code} {found} {orphans} {again.text[-200:]} {log}"
                )
    return counted("safe", items[: sample or None], failures)


FAULTS = {
    "rank 1 hangs": ("1", "suspend"), "rank 0 hangs": ("0", "suspend"), "rank 1 is killed": ("1", "kill"),
    "rank 0 is killed": ("0", "kill"), "rank 1 is asked to stop": ("1", "terminate"),
}  # fmt: skip


def r18(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A rank of two that hangs or dies: the job ends by itself, exit code 5 in status.json, a checkpoint is whole."""
    names = chosen(list(FAULTS), sample, seed)
    failures, seconds = [], {}
    for name in names:
        rank, what = FAULTS[name]
        with place() as folder:
            words = [
                *BASIC,
                *ENDLESS,
                f"output_dir={folder}",
                "run.micro_batch=2",
                f"run.hang_minutes={HANG_SECONDS / 60}",
            ]
            process = launched(TWO_RANKS, words, folder.parent / "log")
            wait_for_steps(folder, 5)
            below = ranks_of(process)
            began = time.monotonic()
            getattr(below[rank], what)()
            code, alive = ended(process, below)
            seconds[name] = round(time.monotonic() - began, 1)
            wanted = 75 if what == "terminate" else 5
            stacks = what != "suspend" or any((folder / "private").glob("stacks-rank-*.txt"))
            whole, _ = newest_good(folder)
            # torchrun gives a hung rank 30 s before it kills it.
            if status(folder) != wanted or alive or not stacks or whole is None or seconds[name] > HANG_SECONDS + 45:
                log = (folder.parent / "log").read_text()[-500:]
                failures.append(f"{name}: {code}, {status(folder)}, {alive}, {seconds[name]} s: {log}")
            shutil.rmtree(folder)
    return counted("ended", names, failures, limit=HANG_SECONDS, seconds_of=seconds)
