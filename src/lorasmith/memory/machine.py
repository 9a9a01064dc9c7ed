"""The machine's memory and disk, asked without torch: nvidia-smi, /proc, the container's limits."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lorasmith.memory.speed import Rate, card_rate, cpu_rate
from lorasmith.memory.weights import GIB

SPARED = 0.02  # of a card's memory, which its driver keeps
CPU_SPARED = 0.05  # of the free memory, for the rest of the system


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan is made for.

    Attributes:
        budget: Bytes that a process of the run may use on one device.
        count: Devices.
        base: Bytes that a process holds before the model is loaded and that stand in the budget too; 0 on CUDA.
        host: Bytes of the computer's memory that all processes may use together, beside that of its devices; 0: not
            known, so that no run is stopped for it.
    """

    device: str
    name: str
    count: int
    budget: int
    rate: Rate
    base: int = 0
    host: int = 0


def a_card(gib: float, count: int = 1, name: str = "", network: float = 0.0) -> Machine:
    """A GPU of this much memory, empty, or several.

    Args:
        network: Gbit/s to other machines of its like; 0: there are none.
    """
    label = name or f"{gib:g} GiB GPU"
    return Machine("cuda", label, count, int(gib * GIB * (1 - SPARED)), card_rate(gib, name, network))


def this_machine() -> Machine:
    """The GPU that nvidia-smi shows, with what is free on it, else the CPU."""
    found = gpus()
    if found:
        name, _, free = min(found, key=lambda one: one[2])
        rate, room = card_rate(found[0][1] / GIB, name), int(free * (1 - SPARED))
        return Machine("cuda", name, len(found), room, rate, host=free_memory())
    return this_cpu()


def this_cpu(base: int | None = None) -> Machine:
    """The CPU with the memory that is free now.

    Args:
        base: Bytes that this process holds already; None: what a training process holds once its libraries are in.
    """
    threads = cores()
    held = PROCESS if base is None else base
    budget = int(free_memory() * (1 - CPU_SPARED)) + (0 if base is None else held)
    return Machine("cpu", f"CPU with {threads} threads", 1, budget, cpu_rate(threads), held)


PROCESS = int(0.75 * GIB)  # Python with torch, transformers, peft and trl imported, on Linux
TRL = int(0.15 * GIB)  # of it, what importing trl adds


def gpus() -> list[tuple[str, int, int]]:
    """Name, bytes and free bytes of each GPU that nvidia-smi shows."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            found.append((parts[0], int(parts[1]) << 20, int(parts[2]) << 20))
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """The computer's memory, or what its container allows, in bytes."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for limit, _ in _container_limits())])


def free_memory() -> int:
    """What can be had without swapping, within the container's limit, in bytes."""
    free = total_memory()
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    return max(0, min([free, *(limit - used for limit, used in _container_limits())]))


def free_disk(folder: Path) -> int:
    """Free bytes on the disk that a folder lies on, or will."""
    while not folder.exists():
        folder = folder.parent
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def _container_limits() -> list[tuple[int, int]]:
    """(limit, used) of the control groups around this process, version 2 and 1; page cache is not counted as used."""
    found = []
    for root, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            allowed, taken = (root / limit).read_text().strip(), int((root / used).read_text())
            cached = [
                line.split()[1] for line in (root / "memory.stat").read_text().splitlines() if line[:5] == "file "
            ]
        except (OSError, ValueError):
            continue
        if allowed.isdigit():
            found.append((int(allowed), max(0, taken - sum(map(int, cached)))))
    return found
