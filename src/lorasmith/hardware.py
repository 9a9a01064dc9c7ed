"""Ask the machine what it is, and choose arithmetic and attention for it, with the reason."""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lorasmith.console import say
from lorasmith.errors import FitError, ModelError
from lorasmith.memory.machine import free_disk, total_memory
from lorasmith.memory.speed import keep_machine_facts
from lorasmith.network import choose_interface

BF16_GAIN = 1.2  # bf16 must beat float32 by this much on a CPU to be worth its rounding


@dataclass(frozen=True, slots=True)
class Hardware:
    """The device a run uses."""

    device: str  # "cuda" or "cpu"
    name: str
    memory_gib: float
    count: int

    @property
    def line(self) -> str:
        """One sentence."""
        if self.device == "cuda":
            return f"{self.count} x {self.name}, {self.memory_gib:.1f} GiB each"
        return f"CPU, {self.name}, {self.count} threads, {self.memory_gib:.1f} GiB"


def find_hardware(use_cpu: bool = False) -> Hardware:
    """The GPUs that torch can use, else the CPU; of several machines, also the network that joins them."""
    joined = choose_interface()
    if joined is not None:
        say("network: {}, through which the first machine ({}) is reached".format(*joined))
    if torch.cuda.is_available() and not use_cpu and os.environ.get("ACCELERATE_USE_CPU") != "true":
        properties = torch.cuda.get_device_properties(0)
        return Hardware("cuda", properties.name, properties.total_memory / 2**30, torch.cuda.device_count())
    return Hardware("cpu", _cpu_name(), total_memory() / 2**30, torch.get_num_threads())


def choose_dtype(wanted: str, hardware: Hardware) -> tuple[str, str]:
    """The dtype of weights and arithmetic, with the reason.

    On a CPU bf16 is fast only with the right instructions, so both are timed for about 0.2 s.

    Raises:
        ModelError: If the device cannot do what the recipe asks for.
    """
    if wanted != "auto":
        if wanted == "float16" and hardware.device == "cpu":
            raise ModelError("model.dtype is `float16`, which a CPU cannot train in. Use auto, float32 or bfloat16.")
        if wanted == "bfloat16" and hardware.device == "cuda" and torch.cuda.get_device_capability(0)[0] < 8:
            raise ModelError(f"model.dtype is `bfloat16`, which {hardware.name} lacks. Use auto or float16.")
        return wanted, "as the recipe says"
    if hardware.device == "cuda":
        major, minor = torch.cuda.get_device_capability(0)
        if major >= 8:
            return "bfloat16", f"compute capability {major}.{minor} has fast bfloat16"
        return "float16", f"compute capability {major}.{minor} has no bfloat16"
    rates = matmul_rates("cpu")
    gain = rates["bfloat16"] / rates["float32"]
    chosen = "bfloat16" if gain > BF16_GAIN else "float32"
    keep_machine_facts(cpu={"name": hardware.name, "dtype": chosen, "flops": rates[chosen]})
    return chosen, f"a bfloat16 matmul takes {1 / gain:.2f} of the time of a float32 one here"


def choose_attention(wanted: str, runs_on_sdpa: bool) -> tuple[str, str]:
    """The attention kernel by transformers' name, with the reason."""
    if wanted != "auto":
        return wanted, "as the recipe says"
    if not runs_on_sdpa:
        return "eager", "this architecture has no other in transformers"
    return "sdpa", "built into torch, on every device"


def peak_memory_gib(hardware: Hardware) -> float:
    """Most memory held so far: by torch on a GPU, by the process on a CPU."""
    if hardware.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return int(found[1]) / 2**20
    import resource  # whose figure counts the parent's memory too, where the parent was larger

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if platform.system() != "Darwin" else kib / 2**30


def memory_gib(hardware: Hardware) -> float:
    """Memory held now: by torch on a GPU, by the process on a CPU."""
    if hardware.device == "cuda":
        return torch.cuda.memory_allocated() / 2**30
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    return peak_memory_gib(hardware)


def held_gib(hardware: Hardware) -> float:
    """Memory that counts in a peak but is no tensor's: on a CPU the process itself, on a GPU nothing."""
    return 0.0 if hardware.device == "cuda" else memory_gib(hardware)


def free_gpu_bytes() -> int:
    """Free memory of this process's GPU."""
    free: int = torch.cuda.mem_get_info()[0]
    return free


def check_disk(folder: Path, needed_gib: float) -> None:
    """Refuse to start when the output folder's disk cannot hold the run.

    Raises:
        FitError: If less than `needed_gib` is free.
    """
    free = free_disk(folder) / 2**30
    if free < needed_gib:
        raise FitError(f"{folder}: {free:.2f} GiB free; the run needs about {needed_gib:.2f}. Free some space.")


def _cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def matmul_rates(device: str) -> dict[str, float]:
    """FLOP/s of products of square matrices in each dtype that the device has, the best of twelve.

    Taken in turn, so that a busy machine slows all alike. On a CPU it takes about 0.2 s.
    """
    size, dtypes = (512, ["float32", "bfloat16"]) if device == "cpu" else (4096, ["float32", "float16"])
    if device == "cuda" and torch.cuda.get_device_capability(0)[0] >= 8:
        dtypes.append("bfloat16")
    operands = {name: torch.randn(size, size, device=device).to(getattr(torch, name)) for name in dtypes}
    best = dict.fromkeys(dtypes, float("inf"))
    for _ in range(12):
        for name, operand in operands.items():
            start = time.perf_counter()
            operand @ operand
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: 2 * size**3 / seconds for name, seconds in best.items()}
