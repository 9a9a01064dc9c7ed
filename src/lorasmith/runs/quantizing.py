"""Each kind of quantized export: how it is written, and the engine that will run it and therefore proves it."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lorasmith import models
from lorasmith.console import say
from lorasmith.errors import LorasmithError, ModelError
from lorasmith.export import gguf, gguf_lora, gptq, llama_cpp, modelfile, onnx, packed, tensors
from lorasmith.export.engines import Engine, GgufEngine, GgufFileEngine, OnnxEngine, TransformersEngine, stop_ids
from lorasmith.export.proof import GREEDY_TOKENS, Drift, GoldenRow
from lorasmith.hardware import find_hardware
from lorasmith.limits import LIMITS

MODEL_FILE, LORA_FILE = "model.gguf", "adapter.gguf"
OWN_ENVIRONMENT = {
    "awq": "AWQ, by llm-compressor in an environment of its own: docs/export.md has the command.",
    "fp8": "fp8, by llm-compressor in an environment of its own: docs/export.md has the command.",
}
PACKAGES = {"torchao-int8": "torchao", "gptq": "gptqmodel", "onnx": "onnxscript"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for every kind of one call.

    Attributes:
        merged: Folder of the merged model.
        base: Folder of the base.
        adapter: Folder of the adapter, or None for a plain model.
        rows: The golden rows; GPTQ is calibrated on them.
        context: Tokens of the longest of them with its answer.
    """

    merged: Path
    base: Path
    adapter: Path | None
    rows: list[GoldenRow]
    llama_cpp_dir: Path | None
    pre_tokenizer: str | None
    trust_remote_code: bool

    @property
    def context(self) -> int:
        return max((len(row.ids) for row in self.rows), default=512) + GREEDY_TOKENS + 1


def kinds_asked(text: str) -> tuple[list[str], list[str]]:
    """The kinds that `--to` names, and, for `all`, a line for each that this machine cannot make.

    Raises:
        LorasmithError: If a name is none, or is made elsewhere.
    """
    if text != "all":
        asked = list(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in asked:
            if name in OWN_ENVIRONMENT:
                raise LorasmithError(f"--to {name}: {OWN_ENVIRONMENT[name]}")
            if name not in LIMITS or name == "merged":
                known = ", ".join(kind for kind in LIMITS if kind != "merged")
                raise LorasmithError(f"--to {name}: expected all, or some of {known}.")
        return asked, []
    chosen, left = [], []
    for kind in ("bnb-nf4", "bnb-int8", "torchao-int8", "torchao-int4", "gptq", "onnx", *_gguf_kinds()):
        why = ""
        if kind in PACKAGES and importlib.util.find_spec(PACKAGES[kind]) is None:
            why = f"needs pip install 'lorasmith[{kind.split('-')[0]}]'"
        elif kind == "torchao-int4" and find_hardware().device != "cuda":
            why = "needs a GPU"
        elif kind.startswith("gguf") and importlib.util.find_spec("gguf") is None:
            why = "needs pip install 'lorasmith[gguf]'"
        elif kind.partition(":")[2] in gguf.QUANTIZED and not llama_cpp.is_installed():
            why = "needs pip install 'lorasmith[llama-cpp]', which compiles for 4 to 11 minutes"
        if why:
            left.append(f"{kind}: left out, {why}")
        else:
            chosen.append(kind)
    return chosen, left


def _gguf_kinds() -> list[str]:
    return [f"gguf:{kind}" for kind in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")]


def write(kind: str, out: Path, settings: Settings) -> None:
    """Make one export in a folder that is not there yet.

    Raises:
        LorasmithError: If it cannot be made, with the reason.
    """
    device, trust = find_hardware().device, settings.trust_remote_code
    if kind.startswith("gguf"):
        converter = llama_cpp.converter(settings.llama_cpp_dir)
        out.mkdir(parents=True)
        try:
            _write_gguf(kind, out, settings, converter)
        except BaseException:
            shutil.rmtree(out)
            raise
    elif kind in packed.KINDS:
        dtype = "float16" if kind == "bnb-int8" else _stored_dtype(settings.merged)
        packed.to_packed(settings.merged, out, kind, dtype, device, _guard(device))
    elif kind == "onnx":
        onnx.to_onnx(settings.merged, out)
    elif kind == "gptq":
        gptq.to_gptq(settings.merged, out, [row.ids for row in settings.rows])
    else:
        raise LorasmithError(f"--to {kind}: not known.")
    if trust:
        say(f"{kind}: the model brings code of its own; whoever runs it must trust that too")


def _write_gguf(kind: str, out: Path, settings: Settings, converter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(settings.merged)
    if kind == "gguf-lora":
        if settings.adapter is None:
            raise ModelError("--to gguf-lora: needs an adapter; this is a whole model.")
        gguf_lora.to_gguf_lora(settings.adapter, settings.base, out / LORA_FILE, converter)
        gguf.to_gguf(
            settings.base, out / MODEL_FILE, "f16", converter, settings.base, settings.pre_tokenizer,
            settings.trust_remote_code,
        )  # fmt: skip
    else:
        gguf.to_gguf(
            settings.merged, out / MODEL_FILE, kind.partition(":")[2], converter, settings.base,
            settings.pre_tokenizer, settings.trust_remote_code,
        )  # fmt: skip
    try:
        text = modelfile.modelfile(tokenizer, MODEL_FILE, stop_ids(settings.merged))
    except ModelError as error:
        say(f"{kind}: no Modelfile. {error}")
        return
    adapter = f"ADAPTER ./{LORA_FILE}\n" if kind == "gguf-lora" else ""
    (out / "Modelfile").write_text(text + adapter, encoding="utf-8")


def engine_of(kind: str, out: Path, settings: Settings) -> Engine:
    """The engine that will run an export: llama.cpp for GGUF, or transformers where it is not installed.

    Raises:
        LorasmithError: If there is none here.
    """
    device = find_hardware().device
    if kind == "gguf-lora":
        return GgufEngine(out / MODEL_FILE, settings.context, out / LORA_FILE)
    if kind.startswith("gguf"):
        if llama_cpp.is_installed():
            return GgufEngine(out / MODEL_FILE, settings.context)
        return GgufFileEngine(out / MODEL_FILE)
    if kind == "onnx":
        return OnnxEngine(out)
    dtype = "float16" if kind == "bnb-int8" and device == "cuda" else _stored_dtype(settings.merged)
    return TransformersEngine(out, dtype, device, _guard(device))


def tokenizer_of(kind: str, out: Path, settings: Settings) -> PreTrainedTokenizerBase:
    """The tokenizer that an export carries: a GGUF has its own inside."""
    if kind.startswith("gguf"):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out, gguf_file=MODEL_FILE)
        return found
    plain: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(out)
    return plain


def size_of(out: Path) -> int:
    """Bytes of an export."""
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _guard(device: str) -> Callable[[Any], None] | None:
    return models.keep_4bit_layers_unpacked if device == "cpu" else None


def _stored_dtype(merged: Path) -> str:
    """The numbers that most of a model's tensors are stored in."""
    stored = [one.dtype for one in tensors.Weights(merged).entries.values() if one.dtype.is_floating_point]
    return str(max(set(stored), key=stored.count)).removeprefix("torch.")


# --- the table of a call ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One export in the table; without figures where it could not be made or proven."""

    kind: str
    size: int
    drift: Drift | None
    verdict: str


def table(lines: list[Line]) -> str:
    """The exports in Markdown."""
    rows = [
        "| kind | size | same token first | KL (nats) | loss | tokens/s | engine | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        figures = " | | | | |"
        if one.drift:
            found = one.drift
            speed = f"{found.tokens_per_second:,.0f}" if found.tokens_per_second else ""
            figures = f"{found.top1:.3f} | {found.kl_mean:.5f} | {found.loss:.4f} | {speed} | {found.engine} |"
        size = f"{one.size / 2**20:,.1f} MiB" if one.size else ""
        rows.append(f"| {one.kind} | {size} | {figures} {one.verdict} |")
    return "\n".join(rows)


def draw_tradeoff(lines: list[Line], path: Path) -> Path | None:
    """Size against loss, as a picture; nothing where fewer than two exports have figures."""
    measured = [one for one in lines if one.drift]
    if len(measured) < 2:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, label in zip(both, ("loss (nats a token)", "KL from the live adapter (nats a token)"), strict=True):
        for one in measured:
            assert one.drift is not None
            value = one.drift.loss if label.startswith("loss") else max(one.drift.kl_mean, 1e-9)
            axes.plot(one.size / 2**20, value, "bo" if one.verdict == "proven" else "rx")
            axes.annotate(one.kind, (one.size / 2**20, value), textcoords="offset points", xytext=(5, 4))
        axes.set(xlabel="size (MiB)", ylabel=label, title=path.parent.name)
        axes.grid(alpha=0.3)
    assert measured[0].drift is not None
    both[0].axhline(measured[0].drift.loss_live, linestyle="--", color="grey")  # the live adapter's
    both[1].set_yscale("log")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
