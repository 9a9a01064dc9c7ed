"""Ask the machine what it is, and choose arithmetic and attention for it, with the reason."""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lorasmith.errors import FitError, ModelError

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
    """The GPUs that torch can use, else the CPU."""
    if torch.cuda.is_available() and not use_cpu and os.environ.get("ACCELERATE_USE_CPU") != "true":
        properties = torch.cuda.get_device_properties(0)
        return Hardware("cuda", properties.name, properties.total_memory / 2**30, torch.cuda.device_count())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware("cpu", _cpu_name(), memory, torch.get_num_threads())


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
    full, half = _matmul_seconds()
    chosen = "bfloat16" if full / half > BF16_GAIN else "float32"
    return chosen, f"a bfloat16 matmul takes {half / full:.2f} of the time of a float32 one here"


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
    import resource

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


def check_disk(folder: Path, needed_gib: float) -> None:
    """Refuse to start when the output folder's disk cannot hold the run.

    Raises:
        FitError: If less than `needed_gib` is free.
    """
    while not folder.exists():
        folder = folder.parent
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize / 2**30
    if free < needed_gib:
        raise FitError(f"{folder}: {free:.2f} GiB free; the run needs about {needed_gib:.2f}. Free some space.")


def _cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def _matmul_seconds() -> tuple[float, float]:
    """Best of twelve 512-cubed products in float32 and in bfloat16, in seconds.

    Taken in turn, so that a busy machine slows both alike.
    """
    operands = [torch.randn(512, 512).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    best = [float("inf"), float("inf")]
    for _ in range(12):
        for i, operand in enumerate(operands):
            start = time.perf_counter()
            operand @ operand
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]
