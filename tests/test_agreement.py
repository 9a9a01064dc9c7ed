"""Ranks that would train apart are told before anything is written, and gloo is told its network."""

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT

from lorasmith import network

# A rank: each case is a folder, a contract and a step; what comes of it is printed as JSON.
RANK = """
import json, sys
from pathlib import Path

import torch

from lorasmith.errors import RunError
from lorasmith.reliability.agreement import check_ranks_agree
from lorasmith.reliability.resume import Resume

torch.distributed.init_process_group("gloo")
said = []
for folder, contract, step in json.loads(sys.argv[1]):
    try:
        check_ranks_agree(Path(folder), contract, Resume(Path(f"checkpoint-{step}") if step else None))
        said.append("")
    except RunError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def ranks(*cases) -> list[list[str]]:
    """What each of two ranks says to its own cases."""
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        port = asking.getsockname()[1]
    started = []
    for rank, mine in enumerate(cases):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", RANK, json.dumps(mine)]
        environment = {**os.environ, **place, "GLOO_SOCKET_IFNAME": "lo"}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    return [json.loads(one.communicate(timeout=300)[0]) for one in started]


def test_ranks_that_differ_are_all_told_which_and_in_what(tmp_path):
    terms, run, apart = {"seed": 1, "rows": "a" * 64}, str(tmp_path / "run"), str(tmp_path / "apart")
    (tmp_path / "held").mkdir()
    (tmp_path / "held/thesis.txt").write_text("years of work")
    same = [(run, terms, 0), (run, terms, 7)]
    first = [*same, (apart, terms, 0), (run, terms, 7), (run, terms, 0), (str(tmp_path / "held"), terms, 0)]
    second = [
        *same, (f"{apart}-2", terms, 0), (run, terms, 0), (run, {**terms, "rows": "b" * 64}, 0),
        (str(tmp_path / "held"), {"seed": 1}, 0),
    ]  # fmt: skip
    said = ranks(first, second)
    assert said[0][:2] == said[1][:2] == ["", ""]
    who, other = (f"rank {rank} on {socket.gethostname()}" for rank in (1, 0))
    ends = "Give all machines the same rows, model and packages, and set in the recipe what each would choose for"
    assert said[0][2] == (
        f"{who} does not see what {other} writes into {apart}. Put output_dir on a disk that all machines share, at the "
        "same path."
    )
    assert said[0][3] == f"{who} finds {run} at step 0, rank 0 at step 7. Give the same command again."
    assert said[0][4] == f"{who} would train something else: rows is {'b' * 40}, on rank 0 {'a' * 40}. {ends} itself."
    assert f"rows is nothing, on rank 0 {'a' * 40}. " in said[0][5]
    assert [one.replace(f"{apart}-2", apart) for one in said[1]] == said[0]
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["held", "thesis.txt"]


def test_gloo_is_told_the_network_that_joins_several_machines(monkeypatch):
    loopback = next(name for name, held in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in held))
    for name in ("MASTER_ADDR", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(network.GLOO, "gone with the test")
    monkeypatch.delenv(network.GLOO)
    assert network.choose_interface() is None
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert network.choose_interface() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert network.choose_interface() == (loopback, "127.0.0.1")
    assert os.environ[network.GLOO] == loopback
    monkeypatch.setenv(network.GLOO, "mine")
    assert network.choose_interface() is None
    assert os.environ[network.GLOO] == "mine"


@pytest.mark.parametrize("address", ["", "no.such.machine.invalid"])
def test_an_address_that_nobody_has_names_no_network(monkeypatch, address):
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(network.GLOO, raising=False)
    assert network.choose_interface() is None
    assert network.GLOO not in os.environ
