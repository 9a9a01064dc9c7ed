"""Quantized base models on disk: quantizing reads four times the bytes and takes many times the time of its result."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import lorasmith
from lorasmith.console import say
from lorasmith.user_cache import user_cache

SMALLEST = 64 * 2**20  # bytes of weights; smaller models are quantized before they are looked up
SHARE = 0.25  # of what the disk has free for us, for all copies together
ROOM = 10 * 2**30  # bytes left free on the disk
SHARD = "256MB"  # serialized at a time: no second copy of a large model in memory
CHUNK = 16 * 2**20  # bytes; checksums are taken over these side by side
ABANDONED = 24 * 3600  # seconds after which the half-written copy of a killed process is removed
PACKAGES = ("torch", "transformers", "bitsandbytes")  # whose version may change a bit of the result
RECORD = "record.json"


def cache_folder() -> Path:
    """Where quantized models are kept."""
    return user_cache() / "weights"


def copy_folder(
    source: Path, fingerprint: Callable[[], str], quantization: dict[str, Any], dtype: str, device: str
) -> Path | None:
    """Where the quantized copy of a model stands or would stand, or None when it does not pay or cannot be kept.

    Args:
        source: The folder with the model's config.json and 16- or 32-bit weights.
        fingerprint: Gives that of those weights.
        quantization: The settings, as JSON.
        device: cpu or cuda, where it is quantized.
    """
    config = source / "config.json"
    if not config.is_file() or (source / "adapter_config.json").is_file():
        return None
    stats = [(path.name, path.stat()) for path in sorted(source.glob("*.safetensors"))]
    if sum(stat.st_size for _, stat in stats) < SMALLEST:
        return None
    texts = [path.read_text(encoding="utf-8") for path in (config, source / "generation_config.json") if path.is_file()]
    if "quantization_config" in texts[0]:
        return None  # is quantized as it stands
    versions = [lorasmith.__version__] + [importlib.metadata.version(name) for name in PACKAGES]
    times = [(name, stat.st_mtime_ns) for name, stat in stats]  # the fingerprint is of samples alone
    facts = [fingerprint(), times, *texts, quantization, dtype, device, _arithmetic(device), versions]
    return cache_folder() / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _arithmetic(device: str) -> list[Any]:
    """What decides the last bit of a block's scale: the kernels, and on a CPU how many threads share a sum."""
    if device == "cuda":
        return [torch.cuda.get_device_name(), torch.version.cuda]
    return [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]


def load_copy(folder: Path, name: str, options: dict[str, Any]) -> PreTrainedModel | None:
    """The kept copy, to the bit what quantizing anew gives, or None; a broken one is thrown away.

    Args:
        name: The base's own name, which the model carries.
        options: For `from_pretrained`, without quantization.

    Raises:
        torch.OutOfMemoryError: If the device cannot hold it.
    """
    if not folder.is_dir():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if "unfit" in record:
            return None
        if record["checksum"] != _checksum(folder):
            raise ValueError("the checksum is another")
        model = _read(folder, name, options)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever is wrong with the copy, the base itself is there
        say("weights: the quantized copy in the cache is broken, and is thrown away")
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)  # the copies unused for longest go first
    say(f"weights: quantized copy found in the cache ({_size(folder) / 2**30:.2f} GiB)")
    return model


def save_copy(folder: Path, model: PreTrainedModel, name: str, source: Path, options: dict[str, Any]) -> None:
    """Keep a freshly quantized model, if there is room and what is read back is the same to the bit.

    Written beside and renamed, so that a reader never meets half a copy; of several writers the first one wins. A full
    or read-only disk costs only the time saved. Where reading back gives another model, that is noted in the copy's
    place, and it is not tried again.

    Args: as `load_copy`, and `source`, the folder of the base.
    """
    if folder.exists() or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    start = time.perf_counter()
    size = sum(tensor.nbytes for _, tensor in _tensors(model))
    with contextlib.suppress(Exception):  # the disk's errors, and those of save_pretrained for odd models
        folder.parent.mkdir(parents=True, exist_ok=True)
        if size > sum(path.stat().st_size for path in source.glob("*.safetensors")) or not _make_room(size):
            return
        part = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
        try:
            _write(part, model, source)
            record = {"model": name, "checksum": _checksum(part)}
            unlike = _difference(model, _read(part, name, options | {"device_map": {"": "cpu"}}))
            if unlike is not None:
                record = {"model": name, "unfit": unlike}
                for path in part.iterdir():
                    path.unlink()
            (part / RECORD).write_text(json.dumps(record), encoding="utf-8")
            part.rename(folder)
            if unlike is None:
                took = time.perf_counter() - start
                say(f"weights: quantized copy kept in the cache ({size / 2**30:.2f} GiB, {took:.1f} s)")
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _write(folder: Path, model: PreTrainedModel, source: Path) -> None:
    """The model as transformers saves it, but with the base's own generation settings, whatever they are.

    save_pretrained refuses settings that contradict each other, which some published models have.
    """
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(folder, max_shard_size=SHARD)
    finally:
        model.generation_config = settings
    own = source / "generation_config.json"
    (folder / own.name).unlink(missing_ok=True)
    if own.is_file():
        shutil.copyfile(own, folder / own.name)


def _read(folder: Path, name: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model of a copy, under the base's name.

    Raises:
        ValueError: If the files lack tensors or have others.
    """
    options = options | {"trust_remote_code": False, "output_loading_info": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    model: PreTrainedModel = loaded[0]
    if any(loaded[1].values()):
        raise ValueError(f"not the model that was written: {loaded[1]}")
    model.name_or_path = model.config.name_or_path = name
    return model


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors by name, quantization states included, each shared one once."""
    seen = set()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and (tensor.data_ptr(), tensor.nbytes) not in seen:
            seen.add((tensor.data_ptr(), tensor.nbytes))
            yield name, tensor


def _difference(model: PreTrainedModel, other: PreTrainedModel) -> str | None:
    """What of a model is not the same in another, to the bit, or None."""
    if type(model) is not type(other):
        return "class"
    for name in ("config", "generation_config"):
        if getattr(model, name).to_dict() != getattr(other, name).to_dict():
            return name
    for one, two in zip_longest(_tensors(model), _tensors(other), fillvalue=("", torch.empty(0))):
        if one[0] != two[0] or one[1].dtype != two[1].dtype or one[1].shape != two[1].shape:
            return f"{one[0]} {two[0]}"
        # As bytes, since packed 4-bit weights read as floats hold NaN.
        left, right = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (one[1], two[1]))
        if not torch.equal(left, right):
            return one[0]
    return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _make_room(size: int) -> bool:
    """Drop the copies unused for longest until one of `size` bytes fits; False if it never would."""
    found = [(path.stat().st_mtime, path) for path in cache_folder().iterdir() if path.is_dir()]
    for changed, path in found:
        if path.suffix == ".part" and time.time() - changed > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)
    copies = [(path, _size(path)) for _, path in sorted(found) if path.suffix != ".part"]
    held = sum(size for _, size in copies)
    free = shutil.disk_usage(cache_folder()).free
    if size > min(SHARE * (free + held), free + held - ROOM):
        return False
    while held + size > SHARE * (free + held) or free - size < ROOM:
        path, freed = copies.pop(0)
        shutil.rmtree(path)
        held, free = held - freed, free + freed
    return True


def _checksum(folder: Path) -> str:
    """SHA-256 over the names, sizes and CRC-32s of all a copy's files but its record: no byte is left out."""
    paths = sorted(path for path in folder.iterdir() if path.name != RECORD)
    chunks = [(path, start) for path in paths for start in range(0, path.stat().st_size, CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sums = list(pool.map(_chunk_sum, chunks))
    facts = [[(path.name, path.stat().st_size) for path in paths], sums]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _chunk_sum(chunk: tuple[Path, int]) -> int:
    path, start = chunk
    with path.open("rb") as file:
        file.seek(start)
        return zlib.crc32(file.read(CHUNK))
