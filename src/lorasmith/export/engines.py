"""Engines that answer with an exported model, all asked the same two things: what a proof compares."""

import contextlib
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.export.files import needs
from lorasmith.memory.machine import cores

Logits = np.ndarray[Any, np.dtype[np.float32]]


class Engine(Protocol):
    """What all engines have. Ids are fed as they are: no engine adds a token.

    Attributes:
        name: The engine and what it reads, for the report.
    """

    name: str

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all greedy calls by the time they took, prompts included; 0 before the first."""

    def logits(self, ids: list[int]) -> Logits:
        """The logits at every position of a row, float32, shape (tokens, vocabulary)."""

    def greedy(self, ids: list[int], most: int) -> list[int]:
        """The most likely next tokens, `most` at most; a stop token ends them and is the last."""

    def close(self) -> None:
        """Give back the memory; the engine answers no more."""


@dataclass
class Pace:
    """New tokens, and the seconds they took."""

    tokens: int = 0
    seconds: float = 0.0

    def time(self, answer: Callable[[], list[int]]) -> list[int]:
        """Call, count and pass on."""
        start = time.perf_counter()
        new = answer()
        self.seconds += time.perf_counter() - start
        self.tokens += len(new)
        return new

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


class TransformersEngine:
    """transformers on a folder: plain, or packed by bitsandbytes, torchao or GPTQ."""

    def __init__(
        self,
        folder: Path,
        dtype: str = "float32",
        device: str = "cpu",
        prepare: Callable[[PreTrainedModel], None] | None = None,
    ) -> None:
        """Load it.

        Args:
            dtype: Of the arithmetic and of what is not packed.
            prepare: Called with the model before its first forward.

        Raises:
            ModelError: If transformers cannot open it.
        """
        self.name = "transformers"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                device_map={"": 0 if device == "cuda" else "cpu"},
                use_safetensors=True,
            )
        except Exception as error:  # transformers and the packages that unpack raise many kinds here
            raise _unopened(folder, "transformers", error) from error
        self._take(model, prepare)

    def _take(
        self, model: PreTrainedModel, prepare: Callable[[PreTrainedModel], None] | None, stops: Iterable[int] = ()
    ) -> None:
        if prepare is not None:
            prepare(model)
        self._model: Any = model.eval()
        self._pace = Pace()
        own = model.generation_config
        own_stops = listed(own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id)
        self._stops = sorted(stops) or own_stops
        # A new one: the model's own may sample, or punish repetition.
        pad = self._stops[0] if self._stops else 0
        model.generation_config = GenerationConfig(do_sample=False, eos_token_id=self._stops or None, pad_token_id=pad)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Logits:
        with _quiet():
            rows = torch.tensor([ids], device=self._model.device)
            return self._model(input_ids=rows, use_cache=False).logits[0].float().cpu().numpy()

    def greedy(self, ids: list[int], most: int) -> list[int]:
        return self._pace.time(lambda: self._greedy(ids, most))

    def _greedy(self, ids: list[int], most: int) -> list[int]:
        rows = torch.tensor([ids], device=self._model.device)
        with _quiet():
            out = self._model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), max_new_tokens=most)
        return list(out[0, len(ids) :].tolist())

    @property
    def tokens_per_second(self) -> float:
        return self._pace.rate

    def close(self) -> None:
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class GgufFileEngine(TransformersEngine):
    """transformers on a GGUF file, unpacked to float32: the file's weights, not llama.cpp's arithmetic."""

    def __init__(self, file: Path) -> None:
        """Load it; no llama.cpp is needed, and float32 of every weight has to fit.

        Raises:
            LorasmithError: If the package gguf is not installed.
            ModelError: If transformers does not read GGUF of this architecture or the file is broken.
        """
        if importlib.util.find_spec("gguf") is None:
            raise needs("gguf", "gguf")
        _check_gguf(file)
        self.name = "transformers on the GGUF file, unpacked to float32"
        try:
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        except Exception as error:  # the reader raises many kinds, and transformers more
            raise _unopened(file, "transformers", error) from error
        self._take(model, None)


class GgufEngine:
    """llama.cpp on a GGUF file, and on an adapter's beside it."""

    def __init__(self, file: Path, context: int = 1024, adapter: Path | None = None, gpu_layers: int = 0) -> None:
        """Load it.

        Args:
            context: Tokens of the longest row with its answer; logits of that many are held, float32.
            adapter: A LoRA as GGUF.
            gpu_layers: Layers computed on a GPU; -1: all.

        Raises:
            LorasmithError: If llama-cpp-python is not installed.
            ModelError: If llama.cpp refuses the file.
        """
        if importlib.util.find_spec("llama_cpp") is None:
            raise needs("llama-cpp-python", "llama-cpp", ", which compiles for 4 to 11 minutes")
        import llama_cpp

        _check_gguf(file)
        self.name = "llama.cpp"
        self._library = llama_cpp
        self._pace = Pace()
        try:
            self._model = llama_cpp.Llama(
                str(file),
                n_ctx=context,
                n_threads=cores(),
                n_threads_batch=cores(),
                n_gpu_layers=gpu_layers,
                logits_all=True,
                lora_path=None if adapter is None else str(adapter),
                verbose=False,
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise _unopened(file, "llama.cpp", error) from error

    def logits(self, ids: list[int]) -> Logits:
        self._check_length(len(ids))
        self._model.reset()
        self._model.eval(ids)
        return self._model.scores[: len(ids)].copy()

    def greedy(self, ids: list[int], most: int) -> list[int]:
        self._check_length(len(ids) + most)
        return self._pace.time(lambda: self._greedy(ids, most))

    def _greedy(self, ids: list[int], most: int) -> list[int]:
        self._model.reset()
        self._model.eval(ids)
        new: list[int] = []
        while len(new) < most:
            new.append(int(self._model.scores[self._model.n_tokens - 1].argmax()))
            if self._library.llama_vocab_is_eog(self._model._model.vocab, new[-1]) or len(new) == most:
                break
            self._model.eval(new[-1:])
        return new

    def _check_length(self, tokens: int) -> None:
        if tokens > self._model.n_ctx():
            raise ModelError(
                f"a row of {tokens} tokens is longer than the {self._model.n_ctx()} this engine was opened for."
            )

    @property
    def tokens_per_second(self) -> float:
        return self._pace.rate

    def close(self) -> None:
        """Give back the memory; without it, llama-cpp-python complains when Python ends."""
        self._model.close()


class OnnxEngine:
    """onnxruntime on an exported folder, on the CPU. It keeps no cache, so every new token computes the whole row."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            LorasmithError: If onnxruntime is not installed.
            ModelError: If it refuses the graph.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise needs("onnxruntime", "onnx")
        import onnxruntime

        self.name = "onnxruntime"
        self._pace = Pace()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                folder / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            self._stops = stop_ids(folder)
        except Exception as error:  # onnxruntime has a dozen kinds of its own
            raise _unopened(folder, "onnxruntime", error) from error

    def logits(self, ids: list[int]) -> Logits:
        row = np.array([ids], dtype=np.int64)
        out: Logits = self._session.run(["logits"], {"input_ids": row, "attention_mask": np.ones_like(row)})[0][0]
        return out

    def greedy(self, ids: list[int], most: int) -> list[int]:
        return self._pace.time(lambda: self._greedy(ids, most))

    def _greedy(self, ids: list[int], most: int) -> list[int]:
        new: list[int] = []
        while len(new) < most and (not new or new[-1] not in self._stops):
            new.append(int(self.logits([*ids, *new])[-1].argmax()))
        return new

    @property
    def tokens_per_second(self) -> float:
        return self._pace.rate

    def close(self) -> None:
        self._session = None


def stop_ids(folder: Path) -> list[int]:
    """The tokens that end an answer, as generation_config.json says, else config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            found = listed(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
            if found:
                return found
    return []


def listed(ids: int | Iterable[int] | None) -> list[int]:
    """Token ids as configurations hold them: none, one, or several."""
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _check_gguf(file: Path) -> None:
    """Tell a missing or broken file before a library does."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file.")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file}: not a GGUF file.")


def _unopened(path: Path, engine: str, error: Exception) -> ModelError:
    return ModelError(f"{path}: {engine} cannot open it ({' '.join(str(error).split())[:160]}).")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bitsandbytes' line about its own casts at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="MatMul8bitLt")
        yield
