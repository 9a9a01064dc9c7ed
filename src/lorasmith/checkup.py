"""What this machine is and can do, what is wrong with it, and the one command that mends each."""

import importlib.metadata
import importlib.util
import os
import re
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from lorasmith import hardware
from lorasmith.memory import machine, speed
from lorasmith.memory.weights import GIB
from lorasmith.user_cache import user_cache

SMALLEST_DISK = 5  # GiB, below which a model of a billion parameters cannot be fetched
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the machine.

    Attributes:
        state: good; note (works, could be better); bad (must be mended).
        mend: The command that mends it.
    """

    state: Literal["good", "note", "bad"]
    what: str
    found: str
    mend: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """Every check in turn, each within seconds.

    Args:
        folder: Where runs will be written.
    """
    yield from versions()
    yield processor()
    yield memory()
    yield graphics()
    yield arithmetic()
    for kind in ("nf4", "int8"):
        yield quantized_layer(kind)
    yield from attention()
    yield disk(folder)
    yield hub()
    yield from caches()


def versions() -> Iterator[Finding]:
    """Installed packages against the ranges that this project declares."""
    for text in importlib.metadata.requires("lorasmith") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        mend = "pip install -c constraints.txt -e ."
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("bad", wanted.name, "not installed", mend)
            continue
        if wanted.specifier.contains(found, prereleases=True):
            yield Finding("good", wanted.name, found)
        else:
            yield Finding("bad", wanted.name, f"{found}; supported: {wanted.specifier}", mend)


def processor() -> Finding:
    """The CPU, its vector instructions, and whether training may use all of its cores."""
    info = Path("/proc/cpuinfo")
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    flags = [flag for flag in FLAGS if listed and flag in listed[1].split()]
    cores = machine.cores()
    threads = torch.get_num_threads()
    what = f"{hardware.find_hardware(use_cpu=True).name}, {threads} threads on {cores} cores, {' '.join(flags)}".strip(
        ", "
    )
    if threads < cores // 2:
        return Finding("note", "processor", what, f"export OMP_NUM_THREADS={cores}")
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 1.5 * cores:
        return Finding("note", "processor", f"{what}; busy (load {busy:.1f}), training will be slow", "top")
    return Finding("good", "processor", what)


def memory() -> Finding:
    """The computer's memory."""
    total, free = machine.total_memory() / GIB, machine.free_memory() / GIB
    return Finding(
        "good" if free > 2 else "note", "memory", f"{free:.1f} GiB free of {total:.1f}", "top -o %MEM" * (free <= 2)
    )


def graphics() -> Finding:
    """The GPUs: driver, memory, compute capability; or why torch does not see one."""
    shown = machine.gpus()
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(0)
        free, total = torch.cuda.mem_get_info()
        half = "bfloat16" if major >= 8 else "no bfloat16, float16 is used"
        what = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
        what += f", {free / GIB:.1f} GiB free of {total / GIB:.1f}"
        what += f", compute capability {major}.{minor}, {half}, CUDA {torch.version.cuda}"
        if free < 0.7 * total:
            return Finding("note", "GPU", f"{what}; other programs hold the rest", "nvidia-smi")
        return Finding("good", "GPU", what)
    if shown:
        names = ", ".join(name for name, _, _ in shown)
        why = "this torch has no CUDA" if torch.version.cuda is None else "torch cannot reach it"
        mend = "pip install --force-reinstall torch" if torch.version.cuda is None else "nvidia-smi"
        return Finding("bad", "GPU", f"{names}, but {why}", mend)
    return Finding("note", "GPU", "none; small models train on the CPU")


def arithmetic() -> Finding:
    """The speed of matrix products in each dtype, kept for plans."""
    found = hardware.find_hardware()
    rates = hardware.matmul_rates(found.device)
    dtype = hardware.choose_dtype("auto", found)[0]
    speed.keep_machine_facts(**{found.device: {"name": found.name, "dtype": dtype, "flops": rates[dtype]}})
    shown = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    return Finding("good", "arithmetic", f"{shown}; trains in {dtype}")


def quantized_layer(kind: str) -> Finding:
    """A bitsandbytes layer, run forward and backward and compared with the weights it stands for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 256, generator=generator) / 16
    x = torch.randn(8, 256, generator=generator)
    try:
        import bitsandbytes

        layer: torch.nn.Module
        if kind == "nf4":
            layer = bitsandbytes.nn.modules.Linear4bit(
                256, 256, bias=False, quant_type="nf4", compute_dtype=torch.float32
            )
        else:
            layer = bitsandbytes.nn.modules.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False)
        layer.load_state_dict({"weight": weight}, strict=False)
        layer, x = layer.to(device), x.to(device).requires_grad_()
        out = layer(x)
        out.float().sum().backward()
        expected = (x.detach() @ weight.to(device).T).float()
        assert x.grad is not None
        gradient = weight.to(device).sum(0)
        far = max(
            ((out.detach().float() - expected).norm() / expected.norm()).item(),
            ((x.grad[0].float() - gradient).norm() / gradient.norm()).item(),
        )
    except Exception as error:  # whatever a broken build raises is the finding
        text = " ".join(str(error).split())[:120]
        return Finding(
            "bad", kind, f"bitsandbytes fails ({text})", "pip install --force-reinstall --no-deps bitsandbytes"
        )
    limit = 0.15 if kind == "nf4" else 0.05
    if not far < limit:
        return Finding("bad", kind, f"wrong by {far:.1%} on this machine", "pip install --upgrade bitsandbytes")
    return Finding("good", kind, f"runs forward and backward on {device}, {far:.1%} from the full weights")


def attention() -> Iterator[Finding]:
    """Attention kernels, each actually run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.get_device_capability(0)[0] >= 8 else torch.float32
    query = torch.randn(1, 4, 64, 64, device=device, dtype=dtype, requires_grad=True)
    kernels: dict[str, Callable[[], torch.Tensor]] = {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    }
    if device == "cuda":
        kernels["varlen"] = lambda: _varlen(query)
        if importlib.util.find_spec("flash_attn"):
            kernels["flash-attention"] = lambda: _flash(query)
    for name, kernel in kernels.items():
        try:
            start = time.perf_counter()
            kernel().float().sum().backward()
            yield Finding(
                "good", f"{name} attention", f"runs on {device}, {time.perf_counter() - start:.2f} s with its start"
            )
        except Exception as error:  # as above
            state: Literal["note", "bad"] = "bad" if name == "sdpa" else "note"
            yield Finding(state, f"{name} attention", f"does not run ({' '.join(str(error).split())[:100]})")


def disk(folder: Path) -> Finding:
    """Room for runs."""
    free = machine.free_disk(folder.resolve()) / GIB
    state: Literal["good", "note"] = "good" if free >= SMALLEST_DISK else "note"
    return Finding(
        state, "disk", f"{free:.1f} GiB free at {folder}", "" if state == "good" else "du -sh ~/.cache/* | sort -h"
    )


def hub() -> Finding:
    """Whether models can be fetched."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return Finding("note", "hub", "HF_HUB_OFFLINE is set: only what is on this machine", "unset HF_HUB_OFFLINE")
    where = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((where.hostname or "", where.port or 443), timeout=3):
            return Finding("good", "hub", f"{where.hostname} answers")
    except OSError as error:
        return Finding("note", "hub", f"{where.hostname} is out of reach ({error})", "export HF_HUB_OFFLINE=1")


def caches() -> Iterator[Finding]:
    """Sizes of what is kept between runs."""
    from huggingface_hub import constants

    for name, path in (
        ("hub cache", Path(constants.HF_HUB_CACHE)),
        ("our cache", user_cache()),
    ):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        yield Finding("good", name, f"{size / GIB:.2f} GiB in {path}")


def _varlen(query: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    packed = query[0].transpose(0, 1)
    ends = torch.tensor([0, 32, 64], device=query.device, dtype=torch.int32)
    result = varlen_attn(packed, packed, packed, ends, ends, 32, 32)
    assert isinstance(result, torch.Tensor)
    return result


def _flash(query: torch.Tensor) -> torch.Tensor:
    from flash_attn import flash_attn_func

    one = query.transpose(1, 2)
    return flash_attn_func(one, one, one, causal=True)
