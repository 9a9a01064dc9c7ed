"""llama.cpp's own converters from transformers to GGUF: fetched once, checked by hash, run beside this process.

No package installs them: the wheel of llama-cpp-python has neither converter, its source archive has both. They need
the gguf-py beside them; the package gguf of the same version number is older and lacks what they import.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from lorasmith.console import plain
from lorasmith.errors import FitError, LorasmithError, ModelError, UnreachableError
from lorasmith.export.archives import write_member
from lorasmith.leaks import cleaned
from lorasmith.memory.machine import free_disk
from lorasmith.offline import is_offline
from lorasmith.user_cache import user_cache

VERSION = "0.3.36"  # of llama-cpp-python
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of its source archive
MODEL_SCRIPT, LORA_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
WANTED = (MODEL_SCRIPT, LORA_SCRIPT, "conversion", "gguf-py/gguf", "LICENSE")
DISK = 400_000_000  # bytes: the archive has 77 MB, and pip unpacks its 216 MB to read its name
FETCHING = 600  # seconds

# Runs a converter with the gguf-py beside it, and says what stands in the file it wrote.
PROGRAM = """
import json, runpy, sys
folder, script, pre_tokenizer, out, *words = sys.argv[1:]
sys.path[:0] = [folder + "/gguf-py", folder]
if pre_tokenizer:
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer
sys.argv = [script, *words]
runpy.run_path(folder + "/" + script, run_name="__main__")
from gguf import GGUFReader
reader = GGUFReader(out)
tokens = reader.get_field("tokenizer.ggml.tokens")
rows = [int(one.shape[-1]) for one in reader.tensors if one.name == "token_embd.weight"]
print("WRITTEN", json.dumps({"tokens": len(tokens.data) if tokens else None, "rows": rows[0] if rows else None}))
"""


def converter(llama_cpp_dir: Path | None = None, cache: Path | None = None) -> Path:
    """The folder with convert_hf_to_gguf.py, convert_lora_to_gguf.py, conversion/ and gguf-py/.

    Args:
        llama_cpp_dir: The user's own checkout of llama.cpp, used instead of the pinned one.
        cache: Where the pinned one is kept; None: the user's cache folder.

    Raises:
        LorasmithError: If the checkout lacks them, or pip cannot fetch or does not know the pinned archive.
        UnreachableError: If they must be fetched and no connection may be opened.
        FitError: If the disk is too small.
    """
    if llama_cpp_dir is not None:
        missing = [name for name in WANTED if name != "LICENSE" and not (llama_cpp_dir / name).exists()]
        if missing:
            raise LorasmithError(f"{llama_cpp_dir}: no {missing[0]}. Give a checkout of llama.cpp from 2026 or later.")
        return llama_cpp_dir.resolve()
    folder = (user_cache() if cache is None else cache) / f"llama.cpp-{VERSION}"
    if not (folder / MODEL_SCRIPT).exists():
        _fetch(folder)
    return folder.resolve()


def _fetch(folder: Path) -> None:
    """Download the pinned archive with the user's pip settings and keep the converters."""
    if is_offline():
        raise UnreachableError(
            "llama.cpp's converter is not on this machine and no connection may be opened. "
            "Run this once online, or name a checkout of llama.cpp: --llama-cpp-dir."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = free_disk(folder.parent)
    if free < DISK:
        raise FitError(f"{folder.parent}: {free / 1e9:.2f} GB free; fetching llama.cpp's converter needs {DISK / 1e9}.")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        _unpack(_download(Path(work)), Path(work) / "unpacked")
        try:
            os.rename(Path(work) / "unpacked", folder)
        except OSError:  # another process was faster
            if not (folder / MODEL_SCRIPT).exists():
                raise


def _download(work: Path) -> Path:
    """The archive. pip compares its hash before it runs any of the archive's code."""
    wanted = work / "wanted.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n")
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(wanted), "-d", str(work)]
    if importlib.util.find_spec("scikit_build_core") is not None:
        words.append("--no-build-isolation")  # pip asks the build for the name: 5 s, and 46 s where it must fetch one
    try:
        done = subprocess.run(
            words, env={**os.environ, "TMPDIR": str(work)}, capture_output=True, text=True, timeout=FETCHING
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            f"llama.cpp's converter did not come within {FETCHING} s. Name a checkout of llama.cpp: --llama-cpp-dir."
        ) from error
    archive = work / f"llama_cpp_python-{VERSION}.tar.gz"
    if done.returncode == 0 and archive.exists():
        return archive
    told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or [""]
    if "HASH" in done.stderr or "do not match" in done.stderr:
        told = [f"the archive is not the known one: its SHA-256 does not start with {SHA256[:16]}"]
    raise UnreachableError(
        f"llama.cpp's converter was not fetched with pip ({plain(cleaned(told[0]))[:200]}). "
        "Name a checkout of llama.cpp: --llama-cpp-dir."
    )


def _unpack(archive: Path, out: Path) -> None:
    """Take the converters out of the archive, and nothing else."""
    top = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(top)
            if member.name.startswith(top) and member.isfile() and any(f"{name}/".startswith(f"{w}/") for w in WANTED):
                write_member(tar, member, out / name)
    missing = [name for name in WANTED if not (out / name).exists()]
    if missing:
        raise LorasmithError(f"llama-cpp-python {VERSION} has no {missing[0]}. Name a checkout: --llama-cpp-dir.")


def run_converter(
    folder: Path, script: str, source: Path, out: Path, words: list[str], pre: str | None
) -> dict[str, Any]:
    """Run a converter in a process of its own, which opens no connection.

    Args:
        source: What is converted, as the user named it, for messages.
        words: The converter's arguments, but for --outfile.
        pre: The name of the pre-tokenizer that is written in place of the one that the converter finds.

    Returns:
        `tokens`: how many stand in the file's vocabulary; `rows`: how many its embeddings have; None where it has none.

    Raises:
        ModelError: If the converter refuses, with its reason.
        FitError: If it was killed for want of memory or the disk filled up.
    """
    environment = {name: value for name, value in os.environ.items() if name != "NO_LOCAL_GGUF"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    # -P: the working folder stays off the import path, where a torch.py would be run.
    called = [sys.executable, "-P", "-c", PROGRAM, str(folder), script, pre or "", str(out), "--outfile", str(out)]
    done = subprocess.run([*called, *words], env=environment, capture_output=True, text=True, errors="replace")
    said = re.findall(r"^WRITTEN (\{.*\})$", done.stdout, re.MULTILINE)
    if done.returncode or not said or not out.exists():
        raise _problem(done.stdout + done.stderr, done.returncode, source)
    return dict(json.loads(said[-1]))


def _problem(text: str, code: int, source: Path) -> LorasmithError:
    """One line for what a converter wrote when it failed."""
    if code in (-9, 137) or "MemoryError" in text:
        return FitError(f"{source}: the converter ran out of memory. Close other programs or use a larger machine.")
    if "No space left" in text:
        return FitError(f"{source}: the disk filled up while it was converted. Free some space.")
    if "pre-tokenizer was not recognized" in text:
        return ModelError(
            f"{source}: llama.cpp does not know how its tokenizer splits text. If it splits like one that llama.cpp "
            "knows, name that one as the pre-tokenizer (gpt-2, llama-bpe, qwen2, ...)."
        )
    for pattern, line in (
        (r"Model (\w+) is not supported|Architecture '(\w+)' not supported", "llama.cpp has no GGUF for {}."),
        (r"[Qq]uant method is not yet supported: '([\w-]+)'", "quantized with {}. Merge it to bfloat16 first."),
        (r"Can not map tensor '([^']+)'", "llama.cpp has no place for its weight {}."),
        (r"ModuleNotFoundError: No module named '([\w.]+)'", "the converter needs {}. Install it: pip install {}."),
    ):
        found = re.search(pattern, text)
        if found:
            name = next(group for group in found.groups() if group)
            return ModelError(f"{source}: {line.format(name, name)}")
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), f"exit code {code}")
    return ModelError(f"{source}: llama.cpp's converter failed ({plain(cleaned(last))[:200]}).")


def is_installed() -> bool:
    """Whether llama.cpp itself is here, as llama-cpp-python: to quantize below 8 bit, and to run a GGUF."""
    return importlib.util.find_spec("llama_cpp") is not None
