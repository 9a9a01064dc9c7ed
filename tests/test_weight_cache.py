"""Quantized weights from the cache are those of a fresh load, to the bit, and a bad copy costs only time."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from lorasmith import quantized_cache
from lorasmith.models import load_base_model
from lorasmith.recipe import Model

KINDS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gpt2": {},
    "gemma3_text": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, which small models on a full disk may use too."""
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized_cache, "SMALLEST", 1)
    monkeypatch.setattr(quantized_cache, "ROOM", 0)
    return tmp_path / "cache" / "weights"


def load(folder, quantization="nf4", dtype="float32", keep=True, **changes):
    section = Model(name=str(folder), quantization=quantization, **changes)
    return load_base_model(section, dtype, "sdpa", "cpu", keep)


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.detach().contiguous().flatten().view(torch.uint8).tolist()


def everything(model):
    """All that a model computes with, comparable: packed weights and their scales, tables, buffers, what is shared."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        "class": type(model),
        "state": {name: bits(tensor) for name, tensor in model.state_dict().items()},
        "buffers": {name: bits(buffer) for name, buffer in model.named_buffers()},
        "shared": {name: names[id(weight)] for name, weight in model.named_parameters(remove_duplicate=False)},
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "name": model.name_or_path,
        "training": model.training,
    }


def logits_and_gradients(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    ids = torch.arange(3, 67).view(2, 32)
    adapted.eval()
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits
    adapted.train()
    adapted(input_ids=ids, labels=ids).loss.backward()
    return [bits(logits)] + [bits(one.grad) for one in adapted.parameters() if one.grad is not None]


def copies(cache):
    return sorted(path for path in cache.iterdir() if path.suffix != ".part") if cache.is_dir() else []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_a_copy_is_the_fresh_model_to_the_bit(quantization, dtype, small_model, cache, capsys):
    folder = small_model("llama")
    fresh = load(folder, quantization, dtype, keep=False)
    assert not copies(cache)
    first = load(folder, quantization, dtype)
    second = load(folder, quantization, dtype)
    said = capsys.readouterr().out
    assert said.count("copy kept in the cache") == said.count("copy found in the cache") == 1
    assert everything(fresh) == everything(first) == everything(second)
    expected = logits_and_gradients(fresh)
    assert len(expected) == 29
    assert logits_and_gradients(first) == expected
    assert logits_and_gradients(second) == expected


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_the_same_from_its_copy(kind, quantization, small_model, cache, capsys):
    folder = small_model(kind, **KINDS[kind])
    fresh = load(folder, quantization, keep=False)
    first, second = load(folder, quantization), load(folder, quantization)
    assert "copy found in the cache" in capsys.readouterr().out
    assert everything(fresh) == everything(first) == everything(second)
    assert logits_and_gradients(second) == logits_and_gradients(fresh)


def test_a_copy_is_kept_from_repacking_too(small_model, monkeypatch, capsys):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    folder = small_model("llama")
    load(folder)
    layers = [m for m in load(folder).modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert "copy found" in capsys.readouterr().out
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def cut(copy):
    path = next(copy.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def flip(copy):
    path = next(copy.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def reconfigure(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        flip,
        reconfigure,
        lambda copy: next(copy.glob("*.safetensors")).unlink(),
        lambda copy: (copy / "record.json").write_text("{"),
        lambda copy: (copy / "record.json").unlink(),
    ],
    ids=["cut", "flipped bit", "other config", "no weights", "half a record", "no record"],
)
def test_a_broken_copy_is_thrown_away_and_made_anew(spoil, small_model, cache, capsys):
    folder = small_model("llama")
    expected = everything(load(folder))
    [copy] = copies(cache)
    spoil(copy)
    capsys.readouterr()
    assert everything(load(folder)) == expected
    said = capsys.readouterr().out
    assert "broken, and is thrown away" in said
    assert "copy kept" in said
    assert everything(load(folder)) == expected
    assert "copy found" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_costs_only_time(small_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "file" / "cache"))
    folder = small_model("llama")
    assert everything(load(folder)) == everything(load(folder, keep=False))
    assert capsys.readouterr().out == ""


def test_a_disk_that_fills_up_leaves_no_half_copy(small_model, cache, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # bytes of a file; more fails as on a full disk
    try:
        model = load(small_model("llama"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything(model) == everything(load(small_model("llama"), keep=False))
    assert list(cache.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_no_copy_is_written_where_the_disk_has_no_room(small_model, cache, monkeypatch):
    monkeypatch.setattr(quantized_cache, "ROOM", shutil.disk_usage(cache.parent.parent).free)
    load(small_model("llama"))
    assert copies(cache) == []


def test_the_copy_unused_for_longest_makes_room(small_model, cache, monkeypatch):
    folder = small_model("llama")
    kinds = ("nf4", "fp4", "int8")
    for kind in kinds[:2]:
        load(folder, kind)
    oldest = max(copies(cache), key=lambda path: path.stat().st_mtime)
    [other] = set(copies(cache)) - {oldest}
    for path, age in ((oldest, 2e9), (other, 1e9)):  # the order is turned around
        os.utime(path, (2e9 - age, 2e9 - age))
    held = sum(path.stat().st_size for one in copies(cache) for path in one.iterdir())
    free = shutil.disk_usage(cache).free
    monkeypatch.setattr(quantized_cache, "SHARE", held * 1.3 / (free + held))
    load(folder, "int8")
    assert oldest not in copies(cache)
    assert other in copies(cache)
    assert len(copies(cache)) == 2


def test_what_a_killed_process_left_is_removed_a_day_later(small_model, cache):
    for name, age in (("old.part", 2 * quantized_cache.ABANDONED), ("new.part", 0)):
        (cache / name).mkdir(parents=True)
        moment = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (moment, moment))
    load(small_model("llama"))
    assert [path.name for path in cache.glob("*.part")] == ["new.part"]


def test_whatever_changes_the_result_has_a_copy_of_its_own(small_model, tmp_path, cache):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_model("llama"), tmp_path / "model")
    load(folder)
    count = 1
    for kind, dtype in (("fp4", "float32"), ("int8", "float32"), ("nf4", "bfloat16")):
        load(folder, kind, dtype)
        count += 1
        assert len(copies(cache)) == count
    for name, key, value in (("config.json", "rms_norm_eps", 1e-3), ("generation_config.json", "top_k", 7)):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {key: value}))
        model = load(folder)
        count += 1
        assert len(copies(cache)) == count
    assert model.generation_config.top_k == load(folder).generation_config.top_k == 7
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder)
    count += 1
    assert len(copies(cache)) == count
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1  # one bit, which may lie between a fingerprint's samples
    (folder / "model.safetensors").write_bytes(data)
    load(folder)
    count += 1
    assert len(copies(cache)) == count
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # which changes the last bit of a sum over a layer's scales
    try:
        load(folder)
    finally:
        torch.set_num_threads(threads)
    assert len(copies(cache)) == count + 1
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load(moved).name_or_path == str(moved)
    assert len(copies(cache)) == count + 1


def test_generation_settings_that_contradict_each_other_are_kept_as_they_are(small_model, tmp_path, capsys):
    """As published with some models; save_pretrained refuses them."""
    folder = shutil.copytree(small_model("llama"), tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": False, "temperature": 0.9, "top_p": 0.6}))
    first, second = load(folder), load(folder)
    assert "copy found" in capsys.readouterr().out
    assert second.generation_config.temperature == 0.9
    assert everything(first) == everything(second)


def test_a_model_whose_copy_is_read_back_otherwise_is_not_kept_nor_tried_again(small_model, cache, capsys):
    source = small_model("llama")
    options = {"dtype": torch.float32, "device_map": {"": "cpu"}}
    model = load(source, keep=False)
    model.__class__ = type("Changed", (type(model),), {})
    for _ in range(2):
        quantized_cache.save_copy(cache / "key", model, str(source), source, options)
        assert [path.name for path in (cache / "key").iterdir()] == ["record.json"]
        assert json.loads((cache / "key/record.json").read_text())["unfit"] == "class"
        assert quantized_cache.load_copy(cache / "key", str(source), options) is None
    assert list(cache.iterdir()) == [cache / "key"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("case", ["small", "its own code", "quantized already", "not quantized", "another rank"])
def test_where_a_copy_does_not_pay_none_is_kept(case, small_model, cache, tmp_path, monkeypatch):
    folder, changes = small_model("llama"), {}
    if case == "small":
        monkeypatch.setattr(quantized_cache, "SMALLEST", 64 * 2**20)
    elif case == "its own code":
        changes = {"trust_remote_code": True}
    elif case == "quantized already":
        load(folder, keep=False).save_pretrained(tmp_path / "quantized")
        folder = tmp_path / "quantized"
    elif case == "not quantized":
        changes = {"quantization": "none"}
    else:
        monkeypatch.setenv("LOCAL_RANK", "1")
    load(folder, **changes)
    assert copies(cache) == []


def test_two_processes_that_write_at_once_leave_one_whole_copy(small_model, cache):
    folder = small_model("llama")
    program = (
        "import sys, torch; from lorasmith import quantized_cache as q; from lorasmith.models import load_base_model\n"
        "from lorasmith.recipe import Model\n"
        "q.SMALLEST, q.ROOM = 1, 0; torch.set_num_threads(int(sys.argv[2]))\n"
        "for _ in range(8):\n"
        "    load_base_model(Model(name=sys.argv[1], quantization='nf4'), 'float32', 'sdpa', 'cpu')\n"
        "    import shutil; shutil.rmtree(q.cache_folder(), ignore_errors=True)\n"
        "load_base_model(Model(name=sys.argv[1], quantization='nf4'), 'float32', 'sdpa', 'cpu')\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(torch.get_num_threads())]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        _, said = writer.communicate(timeout=300)
        assert writer.returncode == 0, said
    load(folder)
    assert len(copies(cache)) == 1
    assert everything(load(folder)) == everything(load(folder, keep=False))
