"""Two hosts on one machine: namespaces of their own, joined by a bridge from which a host can be taken away."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT

ADDRESSES = ("10.77.0.1", "10.77.0.2")  # known in these namespaces alone
INTERFACE = "eth0"
PATIENCE = 60  # seconds for a process that was told to end
# Whoever is not root becomes root in a user namespace of his own, where the system lets him.
AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
ENTER_AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]


class Hosts:
    """Two hosts and the bridge between them, each with its own network; a host with its own processes and mounts."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._bridge = self._space([], ["--net", *AS_ROOT])
        kinds = ["--net", "--uts", "--mount-proc", "--pid", "--fork", "--kill-child"]
        self._hosts = [self._space(self._enter(self._bridge), kinds) for _ in ADDRESSES]
        self._ip("link add bridge type bridge")
        self._ip("link set bridge up")
        for number, address in enumerate(ADDRESSES):
            self._ip(f"link add port{number} type veth peer name {INTERFACE} netns {self._hosts[number]}")
            self._ip(f"link set port{number} master bridge up")
            self.call(number, f"hostname host{number}")
            self.call(number, f"ip address add {address}/24 dev {INTERFACE}")
            self.call(number, f"ip link set {INTERFACE} up")
            self.call(number, "ip link set lo up")

    def cut(self) -> None:
        """Take the second host off the bridge: packets are lost, and neither side is told."""
        self._ip("link set port1 nomaster")

    def mend(self) -> None:
        """Put it back."""
        self._ip("link set port1 master bridge")

    def call(self, host: int, line: str) -> None:
        """Run a command on a host and wait for it."""
        _finished([*self._enter(self._hosts[host], "--uts", "--mount", "--pid"), *line.split()])

    def start(self, host: int, words: list[Any], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Begin a program of Python in the clone's root on a host, as somebody who is logged in there would."""
        given = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
        enter = [*self._enter(self._hosts[host], "--uts", "--mount", "--pid"), f"--wdns={ROOT}"]
        with log.open("wb") as out:
            command = [*enter, sys.executable, *map(str, words)]
            process = subprocess.Popen(command, env={**os.environ, **given}, stdout=out, stderr=out)
        self._stack.callback(process.wait, PATIENCE)
        self._stack.callback(process.kill)
        return process

    def processes(self, host: int) -> list[psutil.Process]:
        """What runs on a host, but for the process that holds it."""
        space = os.readlink(f"/proc/{self._hosts[host]}/ns/pid")
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(OSError):
                if one.pid != self._hosts[host] and os.readlink(f"/proc/{one.pid}/ns/pid") == space:
                    found.append(one)
        return found

    def _ip(self, line: str) -> None:
        _finished([*self._enter(self._bridge), "ip", *line.split()])

    def _enter(self, holder: int, *more: str) -> list[str]:
        return ["nsenter", f"--target={holder}", "--net", *more, *ENTER_AS_ROOT]

    def _space(self, inside: list[str], kinds: list[str]) -> int:
        """The process that holds new namespaces; it ends with its input, so with this process at the latest."""
        command = [*inside, "unshare", *kinds, "sh", "-c", "echo made; exec cat"]
        pipe = subprocess.PIPE
        process = self._stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stack.callback(process.stdin.close)
        if not process.stdout.readline():
            raise OSError(f"{' '.join(kinds)}: {process.stderr.read().strip()}")
        below = psutil.Process(process.pid).children()
        return below[0].pid if below else process.pid


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two hosts for a test, which is skipped where they cannot be made; all of their processes end with it."""
    with contextlib.ExitStack() as stack:
        try:
            hosts = Hosts(stack)
        except OSError as error:  # no such program, no such right, no such part of the kernel
            pytest.skip(f"two hosts cannot be made here: {error}")
        yield hosts


def _finished(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
