"""ONNX graphs against the model they were made from."""

import filecmp
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BASE
from transformers import AutoModelForCausalLM

from lorasmith.errors import LorasmithError, ModelError
from lorasmith.export.engines import OnnxEngine, TransformersEngine, stop_ids
from lorasmith.export.onnx import to_onnx

IDS = [445, 309, 926, 9, 287, 223, 802, 1, 90, 201]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnx")
    return to_onnx(Path(__file__).parent.parent / BASE, tmp_path_factory.mktemp("onnx") / "model")


def test_the_graph_answers_as_the_model_does_at_every_length(exported):
    pytest.importorskip("onnxruntime")
    ours, whole = OnnxEngine(exported), TransformersEngine(Path(BASE))
    for length in (1, 2, len(IDS), 90):
        ids = (IDS * 9)[:length]
        got, want = ours.logits(ids), whole.logits(ids)
        assert (got.shape, got.dtype) == ((length, 1024), np.float32)
        assert np.abs(got - want).max() < 1e-4
    assert ours.greedy(IDS, 20) == whole.greedy(IDS, 20)
    assert ours.tokens_per_second > 0
    ours.close()


def test_the_graph_takes_any_number_of_rows_with_padding(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [one.name for one in session.get_outputs()] == ["logits"]
    rows = torch.tensor([IDS, IDS[::-1], [*IDS[:4], *[0] * 6]])
    mask = torch.ones_like(rows)
    mask[2, 4:] = 0
    (got,) = session.run(None, {"input_ids": rows.numpy(), "attention_mask": mask.numpy()})
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    with torch.no_grad():
        want = model(input_ids=rows, attention_mask=mask).logits.numpy()
    real = mask.bool().numpy()
    assert np.abs(got - want)[real].max() < 1e-4


def test_the_folder_has_the_tokenizer_and_the_models_own_config(exported):
    same = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    assert filecmp.cmpfiles(BASE, exported, same, shallow=False)[0] == same
    config = json.loads((exported / "config.json").read_text())
    assert (config["use_cache"], config["dtype"]) == (True, "float32")
    assert [path.name for path in exported.parent.iterdir()] == ["model"]
    assert stop_ids(exported) == [2]


def test_what_torch_cannot_trace_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    from lorasmith.export import onnx

    def fail(*_: object) -> None:
        raise RuntimeError("data-dependent\n\nbranch")

    monkeypatch.setattr(onnx, "_export", fail)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM to ONNX \(data-dependent branch\)"):
        to_onnx(Path(BASE), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_one_line_with_the_command(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(LorasmithError, match=r"onnx is not installed.*pip install 'lorasmith\[onnx\]'"):
        to_onnx(Path(BASE), tmp_path / "out")
    with pytest.raises(LorasmithError, match="onnxruntime is not installed"):
        OnnxEngine(exported)


SPOIL = {
    "no graph": lambda folder: (folder / "model.onnx").unlink(),
    "a graph cut short": lambda folder: (folder / "model.onnx").write_bytes(b"\1" * 50),
    "no weights": lambda folder: (folder / "model.onnx.data").unlink(),
    "stop tokens cut": lambda folder: (folder / "generation_config.json").write_text("{"),
}


@pytest.mark.parametrize("what", SPOIL)
def test_a_spoilt_folder_is_one_line(exported, tmp_path, what):
    pytest.importorskip("onnxruntime")
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    SPOIL[what](folder)
    with pytest.raises(ModelError, match="onnxruntime cannot open it") as caught:
        OnnxEngine(folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_not_exported(tmp_path):
    pytest.importorskip("onnxscript")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="Merge it"):
        to_onnx(tmp_path, tmp_path / "out")
