"""A plain model as an ONNX graph, for onnxruntime and what builds on it."""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.export.files import beside, copy_tokenizer, needs, plain_model

SAMPLE = (2, 8)  # rows, tokens: with one row, the graph would take one only
SPARE = 64 << 20  # bytes for the graph and the tokenizer


def to_onnx(model: Path, out: Path) -> Path:
    """Export a merged model to a folder with model.onnx, model.onnx.data, its config and its tokenizer.

    The graph takes `input_ids` and `attention_mask`, int64, shape (rows, tokens), any number of each, and gives
    `logits`, float32, shape (rows, tokens, vocabulary). It keeps no cache between calls. The weights are float32 and
    stand in memory twice while they are written.

    Returns:
        `out`.

    Raises:
        ModelError: If the model is no plain one, or torch cannot trace it.
        LorasmithError: If onnx or onnxscript is not installed.
        FitError: If the disk is too small.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise needs(missing[0], "onnx")
    source = plain_model(model)
    with beside(out, source.num_weights * 4 + SPARE) as place:
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True).eval()
        whole.config.use_cache = False  # no keys and values among the outputs
        try:
            _export(whole, place)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # torch.export and its passes raise kinds of their own
            said = " ".join(str(error).split())[:160]
            raise ModelError(f"{model}: torch cannot export {type(whole).__name__} to ONNX ({said}).") from error
        config = source.config | {"dtype": "float32"}
        (place / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        copy_tokenizer(model, place)
    return out


def _export(model: PreTrainedModel, out: Path) -> None:
    """Trace and save the graph without torch's hundred lines about operators that it does not need."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            from transformers.exporters.configs import OnnxConfig
            from transformers.exporters.exporter_onnx import OnnxExporter

            vocabulary: int = model.config.get_text_config().vocab_size
            ids = torch.arange(SAMPLE[0] * SAMPLE[1]).remainder(vocabulary).reshape(SAMPLE)
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True)).save_pretrained(out)
    finally:
        logging.disable(level)
