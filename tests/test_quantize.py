"""Quantized exports: each proven by its engine, refused past its limit, whole or not there."""

import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from conftest import ROOT, launch
from transformers import AutoModelForCausalLM

from lorasmith.errors import DivergedError, LorasmithError
from lorasmith.runs import quantizing


def load(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"scripts/{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def quantize(*words):
    """scripts/quantize.py in this process."""
    before, sys.argv = sys.argv, ["scripts/quantize.py", *map(str, words)]
    try:
        load("quantize").main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """The trained adapter, merged into the base that training saw."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    done = launch("scripts/merge.py", trained, "--out", folder, "--merge-base", "as trained")
    assert done.returncode == 0, done.stderr
    return folder


def test_an_adapter_is_merged_packed_proven_and_reused(trained, tmp_path):
    words = ["scripts/quantize.py", trained, "--to", "bnb-int8", "--out", tmp_path / "deploy"]
    done = launch(*words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "deploy/bnb-int8"
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["proven"]
    assert proof["kind"] == "bnb-int8"
    assert proof["drift"]["engine"] == "transformers"
    assert "quantization_config" in json.loads((folder / "config.json").read_text())
    assert not (folder / "UNPROVEN").exists()
    assert "| proven |" in (tmp_path / "deploy/table.md").read_text()
    assert {path.name for path in (tmp_path / "deploy").iterdir()} == {"bnb-int8", "table.md"}
    again = launch(*words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("it is reused") == 1


def test_an_adapter_of_few_steps_that_4_bit_rounds_away_is_refused(trained, tmp_path):
    """Six updates change weights by less than nf4's steps, so that packing the merge gives back the base."""
    with pytest.raises(DivergedError, match="not proven: bnb-nf4"):
        quantize(trained, "--to", "bnb-nf4,bnb-int8", "--out", tmp_path / "deploy", "--merge-base", "as trained")
    assert "rounded away" in json.loads((tmp_path / "deploy/bnb-nf4.UNPROVEN/proof.json").read_text())["likely_cause"]
    assert json.loads((tmp_path / "deploy/bnb-int8/proof.json").read_text())["proven"]
    assert (tmp_path / "deploy/tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_a_packed_model_opens_as_it_is(merged, tmp_path):
    quantize(merged, "--to", "bnb-nf4", "--out", tmp_path / "deploy", "--limit", "kl=9", "--limit", "loss=9")
    from bitsandbytes.nn import Linear4bit

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "deploy/bnb-nf4")
    assert any(isinstance(module, Linear4bit) for module in model.modules())


def test_past_its_limit_an_export_is_marked_and_the_others_are_made(merged, tmp_path, capsys):
    with pytest.raises(DivergedError, match="not proven: bnb-nf4"):
        quantize(merged, "--to", "bnb-nf4,bnb-int8", "--out", tmp_path / "deploy", "--limit", "kl=0.00001")
    out = capsys.readouterr()
    assert "mean KL" in out.err
    marked = tmp_path / "deploy/bnb-nf4.UNPROVEN"
    assert "mean KL" in (marked / "UNPROVEN").read_text()
    assert not (tmp_path / "deploy/bnb-nf4").exists()
    assert "refused: mean KL" in (tmp_path / "deploy/table.md").read_text()


def test_the_recipes_own_limits_count(trained, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    run = json.loads((folder / "run.json").read_text())
    run["recipe"]["proof"]["limits"] = {"bnb-nf4": {"kl": 1e-9}}
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(DivergedError):
        quantize(folder, "--to", "bnb-nf4", "--out", tmp_path / "deploy", "--merge-base", "as trained")


def test_weights_that_were_packed_wrongly_fail_the_proof(merged, tmp_path, monkeypatch):
    whole = quantizing.packed.to_packed

    def shifted(model, out, kind, dtype, device, prepare):
        def spoil(packed):
            prepare(packed)
            packed.model.norm.weight.data *= 0.2

        return whole(model, out, kind, dtype, device, spoil)

    monkeypatch.setattr(quantizing.packed, "to_packed", shifted)
    with pytest.raises(DivergedError, match="not proven: bnb-int8"):
        quantize(merged, "--to", "bnb-int8", "--out", tmp_path / "deploy")


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("nf4", "expected all, or some of bnb-nf4"),
        ("merged", "expected all, or some of"),
        ("awq", "llm-compressor"),
        ("fp8", "llm-compressor"),
        ("gguf:q3", "expected all, or some of"),
        ("", "expected all, or some of"),
    ],
)
def test_an_unknown_kind_is_told_before_anything_is_read(kind, refusal, merged, tmp_path):
    with pytest.raises(LorasmithError, match=refusal):
        quantize(merged, "--to", kind, "--out", tmp_path / "deploy")
    assert not (tmp_path / "deploy").exists()


def test_all_says_what_this_machine_cannot_make(monkeypatch):
    monkeypatch.setattr(quantizing.importlib.util, "find_spec", lambda name: None)
    kinds, left = quantizing.kinds_asked("all")
    assert kinds == ["bnb-nf4", "bnb-int8"]
    assert any("gguf:q8_0: left out, needs pip install" in line for line in left)


def test_a_folder_of_something_else_is_left_alone(merged, tmp_path):
    place = tmp_path / "deploy/bnb-int8"
    place.mkdir(parents=True)
    (place / "thesis.txt").write_text("precious")
    with pytest.raises(LorasmithError, match="is no export of ours"):
        quantize(merged, "--to", "bnb-int8", "--out", tmp_path / "deploy", "--overwrite")
    assert (place / "thesis.txt").exists()


def killed_after(seconds, words):
    """quantize.py in a forked process, killed; whether it was still running."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            quantize(*words)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


@pytest.mark.slow
@pytest.mark.parametrize("times", [10])
def test_killed_at_any_moment_the_next_call_completes(times, trained, tmp_path):
    torch.set_num_threads(1)
    rng = random.Random(times)
    for number in range(times):
        out = tmp_path / str(number)
        words = [trained, "--to", "bnb-int8", "--out", out, "--merge-base", "as trained"]
        killed_after(rng.uniform(0.2, 6), words)
        found = out / "bnb-int8"
        if found.exists():  # never half of it under its name
            assert json.loads((found / "proof.json").read_text())["proven"]
        quantize(*words)
        assert json.loads((found / "proof.json").read_text())["proven"]
        assert sorted(path.name for path in out.iterdir()) == ["bnb-int8", "table.md"]
