"""A plain model as one GGUF file, for llama.cpp, Ollama and LM Studio."""

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.errors import ModelError
from lorasmith.export.files import PlainModel, beside, needs, plain_model, read_json
from lorasmith.export.llama_cpp import MODEL_SCRIPT, is_installed, run_converter
from lorasmith.memory.machine import cores

# Bytes of a weight. Rows that do not divide into a k-quant's blocks are stored wider, so files can be larger.
CONVERTED = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625}
QUANTIZED = {"q6_k": 0.82, "q5_k_m": 0.71, "q4_k_m": 0.61, "q4_0": 0.57}
KINDS = (*CONVERTED, *QUANTIZED)
SPARE = 32 << 20  # bytes for the vocabulary and metadata
PROBE = (
    "I've 3 or 33, 333 and 3333333 don'T you're\n\n  \t\nwe'Ll \r\n x=1;  y\u00e9\u00e8 \u4f60\u597d\u4e16\u754c "
    "\u041f\u0440\u0438\u0432\u0435\u0442 \U0001f600\u200d!!! ...(a_b) #1.5e-3 \u0661\u0662 'tis   \n \n"
)


def to_gguf(
    model: Path,
    out: Path,
    kind: str,
    converter: Path,
    base: Path | None = None,
    pre_tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Convert a merged model to one GGUF file.

    f32, f16, bf16 and q8_0 come from the converter alone, which reads tensor by tensor. The kinds below 8 bit are made
    by llama.cpp from a 16 or 32 bit file that is removed again.

    Args:
        model: Folder of a plain model: config, safetensors, tokenizer, chat template.
        out: The file to write; it must not exist.
        kind: One of KINDS.
        converter: The folder that `llama_cpp.converter` gives.
        base: The base model's folder, whose tokenizer.model is used where the merged one has lost it.
        pre_tokenizer: llama.cpp's name for how the tokenizer splits text, written in place of what the converter finds.

    Returns:
        `out`.

    Raises:
        ModelError: If the model cannot be converted.
        LorasmithError: If a kind below 8 bit is asked for and llama.cpp is not installed.
        FitError: If the disk or the memory is too small.
    """
    if kind not in KINDS:
        raise ModelError(f"GGUF kind `{kind}` is unknown; expected one of: {', '.join(KINDS)}.")
    source = plain_model(model)
    check_code(source, trust_remote_code)
    if kind in QUANTIZED and not is_installed():
        raise needs(
            "llama-cpp-python", "llama-cpp", f", which compiles for 4 to 11 minutes, or take {', '.join(CONVERTED)}"
        )
    exact = {frozenset({"BF16"}): "bf16", frozenset({"F16"}): "f16"}.get(source.dtypes, "f32")
    wide = kind if kind in CONVERTED else exact
    needed = source.num_weights * (CONVERTED[wide] + QUANTIZED.get(kind, 0.0)) + SPARE
    with beside(out, needed) as place:
        first = place if kind in CONVERTED else place.with_name(f"{wide}.gguf")
        with readable(source, base, place.parent) as folder:
            words = [str(folder), "--outtype", wide, "--model-name", model.resolve().name]
            try:
                written = run_converter(converter, MODEL_SCRIPT, model, first, words, pre_tokenizer)
            except ModelError as error:
                raise _with_suggestion(error, model) from error
        if written["tokens"] != written["rows"]:
            raise ModelError(
                f"{model}: its embeddings have {written['rows']} rows and its vocabulary {written['tokens']} tokens, "
                "which llama.cpp refuses. Give the base model's folder if it has a tokenizer.model."
            )
        if first != place:
            _quantize(first, place, kind, model)
    return out


def check_code(source: PlainModel, trust_remote_code: bool) -> None:
    """Refuse a model that brings code of its own, which the converters would run.

    Raises:
        ModelError: If it does and is not trusted.
    """
    settings = source.folder / "tokenizer_config.json"
    has_code = "auto_map" in source.config or (settings.exists() and "auto_map" in read_json(settings))
    if not trust_remote_code and (has_code or any(source.folder.glob("*.py"))):
        raise ModelError(f"{source.folder} runs its own code. If you trust it, give --trust-remote-code.")


@contextlib.contextmanager
def readable(source: PlainModel, base: Path | None, work: Path) -> Iterator[Path]:
    """The model's folder as the converter reads it: links to its files, and a config with the names it asks for."""
    folder = work / source.folder.resolve().name
    folder.mkdir()
    for path in source.folder.resolve().iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    _rewrite(folder / "config.json", older_names(source.config))
    given = None if base is None else base / "tokenizer.model"
    if given is not None and given.is_file() and not (folder / "tokenizer.model").exists():
        shutil.copyfile(given, folder / "tokenizer.model")
        _rewrite(folder / "tokenizer_config.json", _with_added_tokens(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def older_names(config: dict[str, Any]) -> dict[str, Any]:
    """A config that says what transformers 5 renamed under its older name too.

    The converter asks GPT-2 for n_ctx, and an older checkout of llama.cpp asks for rope_theta and rope_scaling: without
    them it writes a model with the positions of another one.
    """
    old = dict(config)
    if old.get("model_type") == "gpt2" and "n_positions" in old:
        old.setdefault("n_ctx", old["n_positions"])
    rope = old.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:  # not one for each kind of layer
        if "rope_theta" in rope:
            old.setdefault("rope_theta", rope["rope_theta"])
        if rope["rope_type"] != "default":
            old.setdefault("rope_scaling", {key: value for key, value in rope.items() if key != "rope_theta"})
    return old


def _with_added_tokens(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with the tokens added to a SentencePiece model, which transformers 5 no longer lists."""
    settings = read_json(folder / "tokenizer_config.json")
    added = read_json(folder / "tokenizer.json").get("added_tokens", [])
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
    }
    return settings


def _rewrite(path: Path, content: dict[str, Any]) -> None:
    path.unlink(missing_ok=True)  # the link; its target stays as it is
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _with_suggestion(error: ModelError, model: Path) -> ModelError:
    """The converter's refusal of a tokenizer, with the name that fits it if one does."""
    name = pre_tokenizer_like(model) if "splits text" in str(error) else None
    if name is None:
        return error
    return ModelError(f"{error} A probe text is split exactly as {name} splits it: --pre-tokenizer {name}.")


def pre_tokenizer_like(model: Path) -> str | None:
    """The pre-tokenizer of llama.cpp that splits as this byte-level tokenizer does, if it is one of the common three.

    Compared by splitting a text of contractions, digits, spaces and scripts. llama-bpe takes whole words that are in
    the vocabulary without merging and the others do not, so that has to agree as well.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    content = read_json(model / "tokenizer.json")
    kind = content.get("model") or {}
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if kind.get("type") != "BPE" or content.get("normalizer") is not None or tokenizer.pre_tokenizer is None:
        return None
    cased = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

    def split(pattern: str) -> Any:
        parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        return pre_tokenizers.Sequence(parts)

    whole_words = bool(kind.get("ignore_merges"))
    known = (
        {"llama-bpe": split(cased + r"\p{N}{1,3}" + rest)}
        if whole_words
        else {
            "gpt-2": pre_tokenizers.ByteLevel(False, use_regex=True),
            "qwen2": split(cased + r"\p{N}" + rest),
        }
    )
    found = tokenizer.pre_tokenizer.pre_tokenize_str(PROBE)
    return next((name for name, one in known.items() if one.pre_tokenize_str(PROBE) == found), None)


def _quantize(source: Path, out: Path, kind: str, model: Path) -> None:
    """Let llama.cpp quantize a GGUF file; it answers with a number, and explains itself on stderr."""
    import ctypes

    import llama_cpp

    heard = _listening()
    heard.clear()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.nthread = cores()
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters))
    if failed or not out.exists():
        raise ModelError(f"{model}: llama.cpp could not quantize it to {kind}. Take q8_0 or f16.")
    wider = sum("falling back" in line for line in heard)
    if wider:
        say(f"{kind}: {wider} tensors are of a wider kind, since their rows are no multiples of 256")


@functools.cache
def _listening() -> list[str]:
    """Lines that llama.cpp logs from here on; it writes hundreds to stderr else."""
    import ctypes

    import llama_cpp

    heard: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, data: Any) -> None:
        heard.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    _kept.append(listen)  # llama.cpp calls it as long as the process lives
    return heard


_kept: list[Any] = []
