"""Models packed by bitsandbytes, torchao and GPTQ: saved before a forward, opened again bit for bit."""

import filecmp
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BASE
from transformers import AutoModelForCausalLM

from lorasmith.errors import LorasmithError, ModelError, RunError
from lorasmith.export import gptq
from lorasmith.export.engines import TransformersEngine
from lorasmith.export.gptq import to_gptq
from lorasmith.export.packed import count_packed, quantization_settings, to_packed
from lorasmith.models import keep_4bit_layers_unpacked

IDS = [445, 309, 926, 9, 287, 223, 802, 1, 90, 201]
ROWS = [[1 + (i * 7 + j) % 1000 for j in range(32)] for i in range(16)]
MOST = {"bnb-nf4": 0.2, "bnb-int8": 0.03, "torchao-int8": 0.03}  # relative error of the logits


def live(kind: str, dtype: str) -> TransformersEngine:
    """The packed model as it is before it is saved: quantized from the plain one."""

    class Live(TransformersEngine):
        def __init__(self) -> None:
            settings = quantization_settings(kind, getattr(torch, dtype), "cpu")
            model = AutoModelForCausalLM.from_pretrained(
                BASE, dtype=getattr(torch, dtype), device_map={"": "cpu"}, quantization_config=settings
            )
            self.name = "live"
            self._take(model, keep_4bit_layers_unpacked)

    return Live()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MOST)
def test_what_is_opened_again_is_bit_for_bit_what_was_packed(tmp_path, kind, dtype):
    if kind == "torchao-int8":
        pytest.importorskip("torchao")
    out = to_packed(Path(BASE), tmp_path / "packed", kind, dtype, "cpu", keep_4bit_layers_unpacked)
    before, after = live(kind, dtype), TransformersEngine(out, dtype, prepare=keep_4bit_layers_unpacked)
    assert count_packed(after._model) == 5 * 7
    want, got = before.logits(IDS), after.logits(IDS)
    assert (want == got).all()
    assert before.greedy(IDS, 8) == after.greedy(IDS, 8)
    assert (after.logits(IDS) == got).all()
    whole = TransformersEngine(Path(BASE), dtype).logits(IDS)
    assert 0 < np.linalg.norm(got - whole) / np.linalg.norm(whole) < MOST[kind]


def test_a_packed_folder_has_the_tokenizer_byte_for_byte_and_is_smaller(tmp_path):
    out = to_packed(Path(BASE), tmp_path / "packed", "bnb-nf4", "bfloat16", "cpu", keep_4bit_layers_unpacked)
    same = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    assert filecmp.cmpfiles(BASE, out, same, shallow=False)[0] == same
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings["bnb_4bit_quant_type"] == "nf4"
    assert settings["bnb_4bit_use_double_quant"]
    assert settings["bnb_4bit_compute_dtype"] == "bfloat16"
    assert (out / "model.safetensors").stat().st_size < 0.5 * Path(BASE, "model.safetensors").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_the_guard_is_called_before_the_model_is_saved(tmp_path):
    seen = []

    def prepare(model: torch.nn.Module) -> None:
        seen.append((count_packed(model), list(tmp_path.glob("*/packed"))))

    to_packed(Path(BASE), tmp_path / "packed", "bnb-nf4", "float32", "cpu", prepare)
    assert seen == [(35, [])]


def test_a_model_that_is_packed_already_is_not_packed_again(tmp_path):
    out = to_packed(Path(BASE), tmp_path / "packed", "bnb-int8", "float32", "cpu")
    with pytest.raises(ModelError, match="already quantized with bitsandbytes"):
        to_packed(out, tmp_path / "again", "bnb-nf4", "float32", "cpu")
    with pytest.raises(RunError, match="there already"):
        to_packed(Path(BASE), out, "bnb-int8", "float32", "cpu")


def test_a_model_without_linear_layers_is_refused_and_nothing_is_left(small_model, tmp_path, monkeypatch):
    from transformers import BitsAndBytesConfig

    from lorasmith.export import packed

    nothing = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["model", "lm_head"])
    monkeypatch.setattr(packed, "quantization_settings", lambda *_: nothing)
    with pytest.raises(ModelError, match="no linear layer"):
        to_packed(Path(BASE), tmp_path / "packed", "bnb-int8", "float32", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_what_a_device_cannot_do_is_said_before_anything_is_read(tmp_path):
    for kind, line in (("torchao-int4", "GPUs only"), ("nf4", "expected one of")):
        with pytest.raises(ModelError, match=line):
            to_packed(Path(BASE), tmp_path / "packed", kind, "bfloat16", "cpu")
    with pytest.raises(ModelError, match="bfloat16 only"):
        quantization_settings("torchao-int4", torch.float16, "cuda")


def test_a_package_that_is_missing_is_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(LorasmithError, match=r"pip install 'lorasmith\[torchao\]'"):
        quantization_settings("torchao-int8", torch.float32, "cpu")
    with pytest.raises(LorasmithError, match=r"pip install 'lorasmith\[gptq\]'"):
        to_gptq(Path(BASE), tmp_path / "gptq", ROWS)


MALFORMED = {
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut": lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 100),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config cut": lambda folder: (folder / "config.json").write_text("{"),
}


@pytest.mark.parametrize("convert", [to_packed, to_gptq])
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_model_is_one_line(tmp_path, what, convert):
    model = Path(shutil.copytree(BASE, tmp_path / "model"))
    MALFORMED[what](model)
    words = ["bnb-int8", "float32", "cpu"] if convert is to_packed else [ROWS]
    with pytest.raises(ModelError) as caught:
        convert(model, tmp_path / "out", *words)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "options", "line"),
    [
        (ROWS[:3], {}, "got 3"),
        ([*ROWS, []], {}, "none of them empty"),
        ([*ROWS, [1024]], {}, "vocabulary of 1024"),
        ([*ROWS, [-1]], {}, "vocabulary of 1024"),
        (ROWS, {"bits": 5}, "5 bits"),
        (ROWS, {"group_size": 96}, "groups of 96"),
    ],
)
def test_rows_and_settings_that_gptq_cannot_use_are_refused(tmp_path, rows, options, line):
    with pytest.raises(ModelError, match=line):
        to_gptq(Path(BASE), tmp_path / "out", rows, **options)


def test_a_gptqmodel_for_another_torch_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: name)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "7.10.0")
    with pytest.raises(LorasmithError, match=r"gptqmodel 7\.10\.0 needs another torch"):
        gptq._check_package()


def test_gptq_packs_and_opens_again(tmp_path):
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    out = to_gptq(Path(BASE), tmp_path / "out", ROWS, group_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not Path("logs").exists()
    got, want = TransformersEngine(out).logits(IDS), TransformersEngine(Path(BASE)).logits(IDS)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.3


def test_greedy_is_greedy_whatever_the_models_own_settings_say(tmp_path):
    """Against the argmax of the logits, token by token, with a stop token that ends it and is the last."""
    model = Path(shutil.copytree(BASE, tmp_path / "model"))
    settings = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 5.0, "eos_token_id": [2, 5]}
    (model / "generation_config.json").write_text(json.dumps(settings))
    engine = TransformersEngine(model)
    ids = list(IDS)
    for _ in range(40):
        ids.append(int(engine.logits(ids)[-1].argmax()))
        if ids[-1] in (2, 5):
            break
    new = engine.greedy(IDS, 40)
    assert IDS + new == ids
    stop = new[3]
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": stop}))
    assert TransformersEngine(model).greedy(IDS, 40) == new[: new.index(stop) + 1]
    assert engine.tokens_per_second > 0
    engine.close()


def test_an_engine_that_cannot_open_a_folder_says_so_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="transformers cannot open it") as caught:
        TransformersEngine(tmp_path)
    assert "\n" not in str(caught.value)
