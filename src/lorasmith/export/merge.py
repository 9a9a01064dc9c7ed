"""Merge adapters into a base model, tensor by tensor, in little memory; what was done before a kill is kept."""

import hashlib
import json
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from lorasmith.console import say
from lorasmith.errors import DivergedError, FitError
from lorasmith.export import tensors
from lorasmith.export.engines import listed
from lorasmith.export.layers import Layers, Skeleton, embedding_rows, has_head, kind_of, skeleton, with_adapters
from lorasmith.memory.machine import free_disk
from lorasmith.upstream import UNQUANTIZED

JOURNAL = "merge.json"
SHARD = "5GB"
SAY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Merge:
    """What is merged into what.

    Attributes:
        base: Folder of the unquantized base.
        adapters: Folders with their weights.
        fingerprint: Of the base's weights.
        combination: How several become one, by peft's names.
        density: Share of the values that ties, dare and magnitude_prune keep.
        quantization: none; or nf4, fp4 or int8: the base becomes what training saw, quantized and back.
        trained_dtype: In which it was quantized.
        dtype: Of the result; None: as the base is stored.
        task: What the adapter is for, a key of `upstream.TASKS`; "": a language model.
        settings: Of the configuration for that task, such as num_labels and id2label.
    """

    base: Path
    adapters: tuple[tuple[Path, float], ...]
    fingerprint: str
    combination: str = "linear"
    density: float = 0.5
    quantization: str = "none"
    trained_dtype: torch.dtype = torch.float32
    dtype: torch.dtype | None = None
    task: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of everything that decides the result, so that a merge is only gone on with as it was begun."""
        settings = (self.combination, self.density, self.quantization, self.trained_dtype, self.dtype)
        digest = hashlib.sha256(f"{torch.__version__} {self.fingerprint} {settings}".encode())
        digest.update(f"{self.task} {self.settings}".encode() if self.task else b"")
        for folder, weight in self.adapters:
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                digest.update((folder / name).read_bytes())
            digest.update(str(weight).encode())
        return digest.hexdigest()


def merge(what: Merge, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a plain transformers folder: weights, configs and tokenizer.

    It appears under its name when it is whole. Until then it is `<out>.part`, with which the same call goes on.

    Raises:
        FitError: If the disk is too small.
        ModelError: If the adapters do not fit the base or one another.
        DivergedError: If a merged weight is not finite.
    """
    if _is_whole(out, what.key):
        say(f"merge: {out} was written by an earlier call")
        return
    weights = tensors.Weights(what.base)
    part = out.with_name(f"{out.name}.part")
    done = _begin(part, what.key)
    with torch.no_grad():
        bare = skeleton(what.base, len(tokenizer), what.task, what.settings)
        quantized = _quantized_weights(bare, what)
        layers = Layers(with_adapters(bare.model, what.adapters, what.combination, what.density), bare)
        files = _plan(what, weights, layers)
        _check_disk(part, files, done)
        names = {one.name for plan in files.values() for one in plan}
        if layers.changes <= names | {name.rpartition(".")[0] for name in names}:
            _stream(_Base(what, weights, layers, quantized), files, part, done)
        else:
            say("merge: the model names its weights otherwise than its files do, so it is merged in memory")
            _in_memory(what, layers, quantized, len(tokenizer), part)
    _write_settings(what, layers, tokenizer, part)
    if out.exists():
        shutil.rmtree(out)
    os.replace(part, out)


# --- what is written -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor of the result.

    Attributes:
        key: Its name in the files; `name`: in the model; `source`: the base's tensor in the files, None for a head
            that it lacks.
    """

    key: str
    name: str
    source: tensors.Entry | None
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _plan(what: Merge, weights: tensors.Weights, layers: Layers) -> dict[str, list[_Planned]]:
    """The tensors of each file: those of the base, and a head of its own where the base's is tied and changes.

    A classifier's head takes the place of the one that gives tokens.
    """
    embedding, head = f"{layers.input}.weight", f"{layers.output}.weight"
    names = {layers.name_of(key) for key in weights.entries}
    files: dict[str, list[_Planned]] = {}
    for file, entries in weights.files.items():
        files[file] = []
        for entry in entries:
            name = layers.name_of(entry.name)
            if has_head(what.task) and name not in layers.names:
                continue
            dtype = what.dtype if what.dtype is not None and entry.dtype.is_floating_point else entry.dtype
            shape = entry.shape
            if name in (embedding, head):
                shape = (max(shape[0], layers.rows), *shape[1:])
            files[file].append(_Planned(layers.renamed(entry.name), name, entry, dtype, shape))
            if layers.unties and name == embedding and head not in names:
                files[file].append(_Planned(head, head, entry, dtype, shape))
    if has_head(what.task):
        files = {file: plan for file, plan in files.items() if plan}
        stored = [one.dtype for plan in files.values() for one in plan if one.dtype.is_floating_point]
        most, last = max(set(stored), key=stored.count), next(reversed(files))
        heads = {name: head for name, head in layers.whole_weights().items() if name not in names}
        files[last] += [_Planned(name, name, None, what.dtype or most, tuple(heads[name].shape)) for name in heads]
    return files


class _Base:
    """The base's tensors as the merge sees them."""

    def __init__(self, what: Merge, weights: tensors.Weights, layers: Layers, quantized: dict[str, bool]) -> None:
        self.what, self.weights, self.layers, self.quantized = what, weights, layers, quantized
        self.planned: dict[str, _Planned] = {}

    def __call__(self, name: str) -> torch.Tensor | None:
        """A tensor by the model's name: in the precision that training saw, grown by rows for new tokens."""
        one = self.planned.get(name)
        if one is None:
            return None
        if one.source is None:
            return torch.zeros(one.shape, dtype=one.dtype)  # the trained one takes its place
        tensor = self.weights.read(one.source.name)
        if name in self.quantized:
            tensor = as_trained(tensor, self.what.quantization, self.what.trained_dtype, self.quantized[name])
        if tuple(tensor.shape) != one.shape:
            tensor = torch.cat([tensor, tensor.new_zeros(one.shape[0] - tensor.shape[0], *one.shape[1:])])
        return tensor.to(one.dtype)

    def is_copied(self, one: _Planned) -> bool:
        """Whether the result's bytes are the base's own."""
        if one.source is None:
            return False
        same = (one.dtype, one.shape) == (one.source.dtype, one.source.shape)
        return same and one.name not in self.quantized and not self.layers.touches(one.name)


def _stream(base: _Base, files: dict[str, list[_Planned]], part: Path, done: dict[str, int]) -> None:
    base.planned = {one.name: one for plan in files.values() for one in plan}
    layers, progress = base.layers, _Progress(sum(one.size for plan in files.values() for one in plan))
    for file, plan in files.items():
        if file in done:
            progress.skip(sum(one.size for one in plan))
            continue
        writer = tensors.Writer(part / file, [(one.key, one.dtype, one.shape) for one in plan])
        try:
            for one in plan:
                if one.source is not None and base.is_copied(one):
                    writer.put_chunks(one.key, base.weights.chunks(one.source.name))
                else:
                    tensor = base(one.name)
                    assert tensor is not None
                    if layers.touches(one.name):
                        tensor = layers.merged(one.name, tensor, base)
                    writer.put(one.key, tensor)
                    del tensor
                progress.add(one.size)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        done[file] = (part / file).stat().st_size
        _note(part, base.what.key, done)
    written = {file: [one.key for one in plan] for file, plan in files.items()}
    tensors.write_index(part, written, sum(one.size for plan in files.values() for one in plan))


def _in_memory(what: Merge, layers: Layers, quantized: dict[str, bool], rows: int, part: Path) -> None:
    """The merge by peft's merge_and_unload, for models whose files must be converted to load (fused experts)."""
    dtype = what.dtype or "auto"
    options: dict[str, Any] = {**what.settings, "dtype": dtype, "use_safetensors": True}
    if what.task == "question_answering":
        options["key_mapping"] = layers.renamed_keys
    model: PreTrainedModel = kind_of(what.task).from_pretrained(what.base, **options)
    if rows > embedding_rows(model):
        model.resize_token_embeddings(rows)
    if layers.unties:  # peft would write the embeddings' update into the head as well
        head: Any = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    for name, is_transposed in quantized.items():
        weight = model.get_parameter(name)
        weight.data = as_trained(weight.data, what.quantization, what.trained_dtype, is_transposed).to(weight.dtype)
    adapted: Any = with_adapters(model, what.adapters, what.combination, what.density)
    merged = adapted.merge_and_unload()  # its safe_merge rounds before it adds
    broken = next((name for name, weight in merged.named_parameters() if not torch.isfinite(weight).all()), None)
    if broken:
        raise DivergedError(f"{broken}: the merged weight is not finite. The adapter is broken; train it anew.")
    merged.save_pretrained(part, max_shard_size=SHARD)


# --- the base that training saw --------------------------------------------------------------------------------------


def as_trained(tensor: torch.Tensor, quantization: str, dtype: torch.dtype, is_transposed: bool) -> torch.Tensor:
    """A weight as a quantized run saw it: quantized by bitsandbytes from `dtype`, and back.

    Args:
        is_transposed: Whether it is stored as (inputs, outputs); bitsandbytes quantizes (outputs, inputs).
    """
    import bitsandbytes.functional as functional

    weight = tensor.to(dtype)
    weight = weight.T.contiguous() if is_transposed else weight
    if quantization == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        back = functional.int8_vectorwise_dequant(codes, scales).to(dtype)
    else:
        packed, state = functional.quantize_4bit(weight, quant_type=quantization, compress_statistics=True)
        back = functional.dequantize_4bit(packed, state)
    return back.T if is_transposed else back


def _quantized_weights(bare: Skeleton, what: Merge) -> dict[str, bool]:
    """The weights that transformers would quantize, by name, and whether each is stored transposed."""
    if what.quantization == "none":
        return {}
    full = list(bare.model._keep_in_fp32_modules or ())
    heads = list(UNQUANTIZED) if has_head(what.task) else None
    kept = HfQuantizer.get_modules_to_not_convert(bare.model, heads, full)
    return {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in bare.model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is torch.nn.Linear) and should_convert_module(name, kept)
    }


# --- around it -------------------------------------------------------------------------------------------------------


def _is_whole(out: Path, key: str) -> bool:
    """Whether a folder holds this very merge; it has its name only when it is whole."""
    try:
        return bool(json.loads((out / JOURNAL).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _begin(part: Path, key: str) -> dict[str, int]:
    """The files that an earlier call of the same merge finished, with their sizes; else an empty folder."""
    try:
        journal = json.loads((part / JOURNAL).read_text(encoding="utf-8"))
        done = {name: size for name, size in journal["done"].items() if (part / name).stat().st_size == size}
        if journal["key"] == key:
            if done:
                say(f"merge: goes on behind {len(done)} files that an earlier call has written")
            return done
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _note(part, key, {})
    return {}


def _note(part: Path, key: str, done: dict[str, int]) -> None:
    beside = part / f".{JOURNAL}"
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"key": key, "done": done}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, part / JOURNAL)


def _check_disk(part: Path, files: dict[str, list[_Planned]], done: dict[str, int]) -> None:
    needed = sum(one.size for file, plan in files.items() if file not in done for one in plan)
    free = free_disk(part)
    if free < 1.01 * needed:
        raise FitError(
            f"{part}: {free / 2**30:.2f} GiB free; the merged model needs {1.01 * needed / 2**30:.2f}. Free some space."
        )


def _write_settings(what: Merge, layers: Layers, tokenizer: PreTrainedTokenizerBase, part: Path) -> None:
    """config.json, generation_config.json that stops where training said, and the tokenizer."""
    config = layers.config
    if layers.unties:
        config.get_text_config().tie_word_embeddings = False
        config.tie_word_embeddings = False
    stored = [entry.dtype for entry in tensors.Weights(part).entries.values() if entry.dtype.is_floating_point]
    config.dtype = max(set(stored), key=stored.count)
    if config.model_type == "gpt2":
        config.n_ctx = config.n_positions  # llama.cpp's converter asks for it; transformers 5 leaves it out
    if what.task:
        config.architectures = [type(layers.model).__name__]
        config.get_text_config().pad_token_id = tokenizer.pad_token_id  # the head is read at the last other token
    config.save_pretrained(part)
    if not has_head(what.task):
        _write_generation(what, config, tokenizer, part)
    tokenizer.save_pretrained(part)
    if (what.base / "tokenizer.model").is_file():
        shutil.copy(what.base / "tokenizer.model", part)  # llama.cpp reads this one where there is one


def _write_generation(what: Merge, config: Any, tokenizer: PreTrainedTokenizerBase, part: Path) -> None:
    try:
        generation = GenerationConfig.from_pretrained(what.base)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    generation.eos_token_id = sorted({tokenizer.eos_token_id, *listed(generation.eos_token_id)})
    generation.pad_token_id = tokenizer.pad_token_id
    generation.save_pretrained(part)


class _Progress:
    """Says now and then how much is written, how fast, and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, 0
        self.began = self.said = time.perf_counter()

    def skip(self, size: int) -> None:
        self.done += size
        self.start += size

    def add(self, size: int) -> None:
        self.done += size
        now = time.perf_counter()
        if now - self.said > SAY_SECONDS:
            self.said = now
            rate = (self.done - self.start) / (now - self.began)
            left = (self.total - self.done) / max(rate, 1.0)
            gib = f"{self.done / 2**30:.1f}/{self.total / 2**30:.1f} GiB"
            say(f"merge: {gib}, {rate / 2**20:.0f} MiB/s, {int(left // 60)}:{int(left % 60):02d} left")
