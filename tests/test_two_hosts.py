"""Two machines: the documented command, a link that is cut in mid-run, and a folder that is not shared."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from conftest import NO_EVAL, losses
from test_accelerate import commands_of
from two_hosts import ADDRESSES, INTERFACE, Hosts, two_hosts

from lorasmith.reliability import checkpoints

LIMIT = 12  # seconds without a step, after which the watchdog ends a rank; a busy machine needs some for one
SLACK = 60  # seconds more, for launchers and a busy machine
PATIENCE = 300  # seconds for a run that nobody disturbs
WORDS = [
    "recipes/quickstart.yaml", *NO_EVAL, "model.quantization=none", "model.dtype=float32", "run.effective_batch=4",
    "run.micro_batch=2", "trainer.max_steps=40", "trainer.save_steps=5", "trainer.logging_steps=1",
    f"run.hang_minutes={LIMIT / 60}",
]  # fmt: skip


def begin(hosts: Hosts, launcher: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """The command that the config's own header gives, on each host, as rank 0 or 1."""
    started = []
    for rank, command in enumerate(commands_of("cpu_two_nodes")):
        words = command.replace("ADDRESS", ADDRESSES[0]).replace("RECIPE", " ".join(WORDS)).split()
        assert words[:2] == ["accelerate", "launch"]
        assert words[words.index("--machine_rank") + 1] == str(rank)
        log = folder.with_name(f"{folder.name}.log{rank}")
        started.append(hosts.start(rank, [*launcher, *words[2:], f"output_dir={folder}"], log))
    return started


def codes(started: list[subprocess.Popen[bytes]], seconds: float) -> list[int]:
    """The exit codes of both hosts, each within so many seconds from now."""
    end = time.monotonic() + seconds
    return [one.wait(max(0.1, end - time.monotonic())) for one in started]


def texts(folder: Path) -> list[str]:
    """What both hosts have printed."""
    return [folder.with_name(f"{folder.name}.log{rank}").read_text() for rank in (0, 1)]


def steps(folder: Path) -> int:
    """How many steps a run has logged."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


ACCELERATE, LAUNCH = ["-m", "accelerate.commands.launch"], ["scripts/launch.py"]


def test_a_link_that_is_cut_ends_every_rank_and_the_same_command_goes_on_to_the_same_adapter(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with two_hosts() as hosts:
        assert codes(begin(hosts, ACCELERATE, whole), PATIENCE) == [0, 0], texts(whole)

        started = begin(hosts, LAUNCH, cut)
        end = time.monotonic() + PATIENCE
        while steps(cut) < 12:
            assert time.monotonic() < end, texts(cut)
            time.sleep(0.02)
        hosts.cut()
        assert codes(started, LIMIT + SLACK) == [5, 5], texts(cut)
        assert [hosts.processes(number) for number in (0, 1)] == [[], []]
        assert json.loads((cut / "status.json").read_text())["exit_code"] == 5
        assert {path.name for path in (cut / "private").glob("stacks-*")} == {
            "stacks-rank-0.txt", "stacks-rank-1.txt"
        }  # fmt: skip
        newest, notes = checkpoints.newest_good(cut)
        assert newest is not None
        assert checkpoints.step_of(newest) in (10, 15, 20, 25, 30, 35)
        assert not notes
        assert not (cut / "adapter_model.safetensors").exists()

        hosts.mend()
        assert codes(begin(hosts, LAUNCH, cut), PATIENCE) == [0, 0], texts(cut)
    assert f"network: {INTERFACE}, through which the first machine ({ADDRESSES[0]}) is reached" in texts(cut)[0]
    assert f"goes on behind step {checkpoints.step_of(newest)}" in texts(cut)[0]
    assert losses(cut) == losses(whole)
    assert (cut / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_folder_that_the_hosts_do_not_share_is_refused_on_both(tmp_path):
    folder = tmp_path / "out/run"
    folder.parent.mkdir()
    with two_hosts() as hosts:
        hosts.call(1, f"mount -t tmpfs none {folder.parent}")
        assert codes(begin(hosts, LAUNCH, folder), PATIENCE) == [2, 2]
    line = (
        f"error: rank 1 on host1 does not see what rank 0 on host0 writes into {folder}. Put output_dir on a disk that "
        "all machines share, at the same path."
    )
    assert line in texts(folder)[0].splitlines()
    assert f"rank 1: {line}" in texts(folder)[1].splitlines()
    assert not folder.exists()
