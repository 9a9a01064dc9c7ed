"""Merged models answer as the live adapter does: every shape, kills, planted faults, broken files."""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BASE, ROOT, launch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lorasmith import models
from lorasmith.errors import DivergedError, LorasmithError, ModelError
from lorasmith.export import layers, tensors
from lorasmith.export.merge import Merge, merge

IDS = torch.randint(5, 1000, (2, 24), generator=torch.Generator().manual_seed(5))
SHAPES = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "mistral": {}, "gpt2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}  # fmt: skip
NEW = ["<tool>", "<note>"]
METHODS = ("lora", "rslora", "dora", "modules_to_save", "new tokens")
PRECISIONS = ("float32", "bfloat16", "nf4", "int8")
# Relative error of the logits. int8's live product rounds the activations too, which no merged model does.
# A router that is rounded otherwise may take another expert for a token; the merged tensors are peft's own, see below.
ROUTED_BFLOAT16 = 0.15
BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2, "nf4": 1e-4, "int8": 3e-2}
EVERY = [
    (shape, method, tied, precision)
    for shape in SHAPES for method in METHODS for tied in (True, False) for precision in PRECISIONS
    if not (method == "dora" and shape in ("mixtral", "qwen3_moe"))  # peft refuses DoRA on fused experts
]  # fmt: skip
FEW = EVERY[::17]


def tokenizer_of(method):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    if method == "new tokens":
        tokenizer.add_tokens(NEW, special_tokens=True)
    return tokenizer


def live_adapter(base, method, precision, folder, **options):
    """A random adapter on a base in a precision, saved; its logits."""
    quantized = {
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }.get(precision)  # fmt: skip
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=quantized)
    if quantized is not None:
        models.keep_4bit_layers_unpacked(model)
    options = {"target_modules": "all-linear", **options}
    if method in ("rslora", "dora"):
        options[f"use_{method}"] = True
    if method == "modules_to_save":
        head = "wte" if "gpt2" in str(base) else "embed_tokens"
        options["modules_to_save"] = [head if model.config.tie_word_embeddings else "lm_head"]
    if method == "new tokens":
        tokenizer = tokenizer_of(method)
        models.grow_embeddings(model, tokenizer)
        ids = tokenizer.convert_tokens_to_ids(NEW)
        name = "wte" if "gpt2" in str(base) else "embed_tokens"
        options["trainable_token_indices"] = (
            {name: ids} if model.config.tie_word_embeddings else {name: ids, "lm_head": ids}
        )
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=4, **options))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "lora_" not in name:
            weight.data += 0.1 * torch.randn(weight.shape).to(weight)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    adapted.eval()
    ids = IDS.remainder(len(tokenizer_of("lora")))
    if method == "new tokens":
        ids[:, 3] = tokenizer_of(method).convert_tokens_to_ids(NEW[0])
    with torch.no_grad():
        return ids, adapted(ids).logits.float(), adapted


def what(base, *adapters, **options):
    return Merge(Path(base), tuple((Path(one), 1.0) for one in adapters), "fingerprint", **options)


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def check_matrix(cases, small_model, tmp_path):
    expected = {}
    for number, (shape, method, tied, precision) in enumerate(cases):
        grown = {"vocab_size": len(tokenizer_of("lora"))} if method == "new tokens" else {}
        base = small_model(shape, tie_word_embeddings=tied, **SHAPES[shape], **grown)
        adapter, out = tmp_path / f"adapter-{number}", tmp_path / f"out-{number}"
        ids, logits, _ = live_adapter(base, method, precision, adapter)
        quantization = precision if precision in ("nf4", "int8") else "none"
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        merge(what(base, adapter, quantization=quantization, dtype=dtype), tokenizer_of(method), out)
        expected[number] = logits.numpy()
        np.save(out / "ids.npy", ids.numpy())
    code = (
        "import sys, numpy, torch\nfrom transformers import AutoModelForCausalLM\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, dtype='auto').eval()\n"
        "    ids = torch.tensor(numpy.load(folder + '/ids.npy'))\n"
        "    with torch.no_grad(): logits = model(ids).logits.float()\n"
        "    numpy.save(folder + '/logits.npy', logits.numpy())\n"
    )
    folders = [str(tmp_path / f"out-{number}") for number in range(len(cases))]
    subprocess.run([sys.executable, "-c", code, *folders], check=True, capture_output=True)
    found = {
        case: relative(np.load(Path(folder) / "logits.npy"), expected[number])
        for number, (case, folder) in enumerate(zip(cases, folders, strict=True))
    }
    routed = {case for case in found if case[0] in ("mixtral", "qwen3_moe") and case[3] == "bfloat16"}
    assert not {
        case: error
        for case, error in found.items()
        if not error < (ROUTED_BFLOAT16 if case in routed else BOUNDS[case[3]])
    }


@pytest.mark.scorecard(row="R10")
def test_a_fresh_process_gets_the_live_adapters_logits(small_model, tmp_path):
    check_matrix(FEW, small_model, tmp_path)


@pytest.mark.slow
@pytest.mark.scorecard(row="R10")
def test_a_fresh_process_gets_the_live_adapters_logits_in_every_case(small_model, tmp_path):
    for start in range(0, len(EVERY), 40):
        folder = tmp_path / str(start)
        folder.mkdir()
        check_matrix(EVERY[start : start + 40], small_model, folder)
        shutil.rmtree(folder)


@pytest.mark.scorecard(row="R10")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True}),
        ("gpt2", {"use_rslora": True}),
        ("qwen2", {"bias": "lora_only"}),
        ("qwen2", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("mixtral", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_is_the_one_of_pefts_own_merge(shape, options, dtype, small_model, tmp_path):
    base = small_model(shape, tie_word_embeddings=False, **SHAPES[shape])
    _, _, adapted = live_adapter(base, "lora", dtype, tmp_path / "adapter", **options)
    adapted.merge_and_unload().save_pretrained(tmp_path / "peft")
    merge(what(base, tmp_path / "adapter", dtype=getattr(torch, dtype)), tokenizer_of("lora"), tmp_path / "ours")
    theirs, ours = load_file(tmp_path / "peft/model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert theirs.keys() == ours.keys()
    assert not [name for name in theirs if not torch.equal(theirs[name], ours[name])]


@pytest.mark.scorecard(row="R10")
@pytest.mark.parametrize("shape", ["llama", "mixtral"])
def test_lora_on_tied_embeddings_is_untied_where_peft_is_wrong(shape, small_model, tmp_path):
    base = small_model(shape, tie_word_embeddings=True, **SHAPES[shape])
    experts = {"target_parameters": ["mlp.experts.gate_up_proj"]} if shape == "mixtral" else {}  # merged in memory
    ids, logits, adapted = live_adapter(
        base, "lora", "float32", tmp_path / "a", target_modules=["embed_tokens", "q_proj"], **experts
    )
    merge(what(base, tmp_path / "a"), tokenizer_of("lora"), tmp_path / "ours")
    adapted.merge_and_unload().save_pretrained(tmp_path / "peft")
    errors = {}
    for name in ("ours", "peft"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").eval()
        with torch.no_grad():
            errors[name] = relative(model(ids).logits.numpy(), logits.numpy())
    assert errors["ours"] < 1e-5 < 1e-3 < errors["peft"]


def test_the_result_is_a_plain_folder_that_stops_where_training_said(small_model, tmp_path):
    base = small_model("llama")
    live_adapter(base, "lora", "float32", tmp_path / "a")
    merge(what(base, tmp_path / "a"), tokenizer_of("lora"), tmp_path / "out")
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert tokenizer_of("lora").eos_token_id in generation["eos_token_id"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer_of("lora").chat_template
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


# --- kills -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(small_model, tmp_path):
    """A base in several shards, with an adapter."""
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(small_model("llama", tie_word_embeddings=False))
    model.save_pretrained(base, max_shard_size="200KB")
    live_adapter(base, "lora", "float32", tmp_path / "adapter")
    assert len(list(base.glob("*.safetensors"))) > 3
    return base, tmp_path / "adapter"


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_merge_that_is_killed_goes_on_and_gives_the_same_bytes(sharded, tmp_path):
    plan = what(*sharded)
    merge(plan, tokenizer_of("lora"), tmp_path / "undisturbed")
    expected, total = digests(tmp_path / "undisturbed"), len(tensors.Weights(sharded[0]).entries)
    put = tensors.Writer.put_chunks
    resumed = 0
    for at in range(0, total, max(1, total // 10)):
        out = tmp_path / f"out-{at}"
        child = os.fork()
        if not child:
            count = iter(range(total + 1))

            def killing(self, name, chunks, count=count, at=at):
                put(self, name, chunks)
                if next(count) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            tensors.Writer.put_chunks = killing
            torch.set_num_threads(1)
            merge(plan, tokenizer_of("lora"), out)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        assert not out.exists()
        begun = len(list(out.with_name(f"{out.name}.part").glob("*.safetensors")))
        merge(plan, tokenizer_of("lora"), out)
        resumed += begun > 0
        assert digests(out) == expected
    assert resumed > 3  # whole shards are kept


def test_half_a_merge_of_something_else_is_begun_anew(sharded, tmp_path):
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "merge.json").write_text(json.dumps({"key": "another", "done": {"model-00001-of-00006.safetensors": 3}}))
    (part / "stranger.safetensors").write_bytes(b"old")
    merge(what(*sharded), tokenizer_of("lora"), tmp_path / "out")
    assert not (tmp_path / "out/stranger.safetensors").exists()
    assert not part.exists()


# --- several adapters ------------------------------------------------------------------------------------------------


@pytest.fixture
def two(small_model, tmp_path):
    base = small_model("llama", tie_word_embeddings=False)
    for number in (1, 2):
        live_adapter(base, "lora", "float32", tmp_path / f"a{number}")
        tensors_ = load_file(tmp_path / f"a{number}/adapter_model.safetensors")
        torch.manual_seed(number)
        save_file({k: torch.randn_like(t) / 8 for k, t in tensors_.items()}, tmp_path / f"a{number}/adapter_model.safetensors")  # fmt: skip
    return base, tmp_path / "a1", tmp_path / "a2"


@pytest.mark.parametrize("combination", layers.COMBINATIONS)
def test_adapters_are_combined_as_peft_does(combination, two, tmp_path):
    from peft import PeftModel

    base, one, other = two
    pairs = ((one, 0.7), (other, 0.4))
    torch.manual_seed(0)  # DARE draws
    plan = Merge(Path(base), pairs, "fingerprint", combination, 0.5)
    merge(plan, tokenizer_of("lora"), tmp_path / "out")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one, adapter_name="x")
    model.load_adapter(other, adapter_name="y")
    torch.manual_seed(0)
    options = {} if combination in ("linear", "cat", "svd") else {"density": 0.5}
    model.add_weighted_adapter(["x", "y"], [0.7, 0.4], "xy", combination_type=combination, **options)
    model.set_adapter("xy")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected, found = model.eval()(IDS).logits, merged(IDS).logits
    assert relative(found.numpy(), expected.numpy()) < 1e-4


def test_cat_is_the_sum_of_the_adapters(two, tmp_path):
    base, one, other = two
    merge(Merge(Path(base), ((one, 0.7), (other, -0.4)), "f", "cat"), tokenizer_of("lora"), tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    total = load_file(Path(base) / "model.safetensors")[name]
    for folder, weight in ((one, 0.7), (other, -0.4)):
        found = load_file(folder / "adapter_model.safetensors")
        key = f"base_model.model.{name.removesuffix('.weight')}"
        total = (
            total + weight * 2 * found[f"{key}.lora_B.weight"] @ found[f"{key}.lora_A.weight"]
        )  # alpha 8 over rank 4
    assert torch.allclose(load_file(tmp_path / "out/model.safetensors")[name], total, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "combination", "refusal"),
    [
        ({"use_dora": True}, "cat", "its magnitudes are lost"),
        ({"modules_to_save": ["lm_head"]}, "cat", "cannot be combined"),
        ({}, "dare_linear", "Use dare_linear_svd"),
        ({}, "magnitude_prune", "Use magnitude_prune_svd"),
        ({"r": 8}, "linear", "peft refuses these adapters"),
    ],
)
def test_what_cannot_be_combined_rightly_is_refused(options, combination, refusal, small_model, tmp_path):
    base = small_model("llama", tie_word_embeddings=False)
    live_adapter(base, "lora", "float32", tmp_path / "a1")
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(**({"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options))).save_pretrained(tmp_path / "a2")  # fmt: skip
    with pytest.raises(ModelError, match=refusal):
        merge(Merge(Path(base), ((tmp_path / "a1", 1.0), (tmp_path / "a2", 1.0)), "f", combination), tokenizer_of("lora"), tmp_path / "out")  # fmt: skip


# --- broken files ----------------------------------------------------------------------------------------------------


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def retyped(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"F32"', b'"Q99"', 1))


BROKEN = {
    "a shard is missing": (lambda b, a: sorted(b.glob("*.safetensors"))[1].unlink(), "is missing"),
    "a shard is cut off": (lambda b, a: cut(sorted(b.glob("*.safetensors"))[1]), "cut off"),
    "a shard is empty": (lambda b, a: cut(sorted(b.glob("*.safetensors"))[1], 0), "not a whole safetensors file"),
    "a shard's dtype is unknown": (lambda b, a: retyped(sorted(b.glob("*.safetensors"))[1]), "of an unknown kind"),
    "the index is no JSON": (lambda b, a: cut(b / "model.safetensors.index.json"), "not an index of shards"),
    "the index leads outside": (lambda b, a: (b / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../x.safetensors"}}'), "no shard of this folder"),
    "only pickles": (lambda b, a: ([p.unlink() for p in b.glob("*.safetensors*")], (b / "pytorch_model.bin").write_bytes(b"x")), "pickled"),
    "the adapter is cut off": (lambda b, a: cut(a / "adapter_model.safetensors"), "does not fit the base"),
    "the adapter is of another shape": (lambda b, a: save_file({k: t.repeat(2, 1) for k, t in load_file(a / "adapter_model.safetensors").items()}, a / "adapter_model.safetensors"), "does not fit the base"),
    "the base is quantized": (lambda b, a: (b / "config.json").write_text(json.dumps(json.loads((b / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})), "is quantized already"),
    "the adapter is not finite": (lambda b, a: save_file({k: t * float("nan") for k, t in load_file(a / "adapter_model.safetensors").items()}, a / "adapter_model.safetensors"), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_one_line_and_nothing_is_left(name, sharded, tmp_path):
    spoil, refusal = BROKEN[name]
    spoil(*sharded)
    with pytest.raises(LorasmithError, match=refusal) as caught:
        merge(what(*sharded), tokenizer_of("lora"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DivergedError) == (name == "the adapter is not finite")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(sharded, tmp_path, monkeypatch):
    monkeypatch.setattr("lorasmith.export.merge.free_disk", lambda path: 1000)
    with pytest.raises(LorasmithError, match="the merged model needs") as caught:
        merge(what(*sharded), tokenizer_of("lora"), tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "out.part").glob("*.safetensors*"))


# --- the script, and faults planted between training and deployment ---------------------------------------------------


def run_merge(*words):
    """scripts/merge.py in this process."""
    spec = importlib.util.spec_from_file_location("merge_script", ROOT / "scripts/merge.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before, sys.argv = sys.argv, ["scripts/merge.py", *map(str, words)]
    try:
        script.main()
    finally:
        sys.argv = before


@pytest.fixture
def copied(trained, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    return folder


@pytest.mark.scorecard(row="R10")
def test_the_script_measures_both_bases_and_proves_the_closer(trained, tmp_path):
    done = launch("scripts/merge.py", trained, "--out", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    proof = json.loads((tmp_path / "merged/proof.json").read_text())
    assert proof["proven"]
    assert proof["base_kind"] == "as trained"
    assert proof["candidates"]["as trained"]["kl_mean"] < proof["candidates"]["original"]["kl_mean"]
    assert proof["drift"]["rows"] == 32
    assert "base: as trained is closer to the live adapter" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.name != "merged"]
    assert "| same token first | " in (tmp_path / "merged/README.md").read_text()
    golden = (trained / "private/eval_rows.jsonl").read_text()
    answer = json.loads(golden.splitlines()[0])["messages"][-1]["content"]
    for path in (tmp_path / "merged").iterdir():
        assert answer.encode() not in path.read_bytes(), f"{path.name} holds a row"
    again = launch("scripts/merge.py", trained, "--out", tmp_path / "merged")
    assert again.returncode == 0
    assert "is reused" in again.stdout


def test_several_adapters_become_one_and_each_ones_rows_are_scored(trained, copied, tmp_path):
    words = [trained, copied, "--weights", "0.5", "0.5", "--merge-base", "as trained", "--eval"]
    run_merge(*words, "--out", tmp_path / "out")
    proof = json.loads((tmp_path / "out/proof.json").read_text())
    assert proof["proven"]
    assert [one["adapter"] for one in proof["fares"]] == ["run", "adapter"]
    # Twice half of the same adapter is the adapter.
    assert all(abs(one["merged"] - one["alone"]) < 0.02 for one in proof["fares"])


def test_rows_made_up_stand_in_where_the_run_kept_none(copied, tmp_path, capsys):
    shutil.rmtree(copied / "private")
    run_merge(copied, "--out", tmp_path / "out", "--merge-base", "as trained")
    assert "made-up rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/proof.json").read_text())["drift"]["rows"] == 8


def shift_a_tensor(monkeypatch):
    whole = layers.Layers.merged
    monkeypatch.setattr(layers.Layers, "merged", lambda self, name, *rest: whole(self, name, *rest).roll(7, 0) if "v_proj" in name else whole(self, name, *rest))  # fmt: skip


def scale_wrongly(monkeypatch):
    whole = layers.with_adapters

    def twice(*args):
        adapted = whole(*args)
        for module in adapted.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = {name: 40 * one for name, one in module.scaling.items()}
        return adapted

    monkeypatch.setattr("lorasmith.export.merge.with_adapters", twice)


def untie_the_head(monkeypatch):
    from lorasmith.export import merge as module

    whole = module._write_settings

    def untied(what, found, tokenizer, part):
        whole(what, found, tokenizer, part)
        config = json.loads((part / "config.json").read_text())
        (part / "config.json").write_text(
            json.dumps(config | {"tie_word_embeddings": not config["tie_word_embeddings"]})
        )

    monkeypatch.setattr(module, "_write_settings", untied)


def change_the_template(monkeypatch):
    from lorasmith.export import merge as module

    whole = module._write_settings

    def changed(what, found, tokenizer, part):
        whole(what, found, tokenizer, part)
        path = part / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|im_start|>", "<|im_end|>"))

    monkeypatch.setattr(module, "_write_settings", changed)


@pytest.mark.parametrize(
    "plant", [shift_a_tensor, scale_wrongly, untie_the_head, change_the_template], ids=lambda one: one.__name__
)
def test_a_fault_on_the_way_fails_the_proof(plant, trained, tmp_path, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(DivergedError, match="is not proven") as caught:
        run_merge(trained, "--out", tmp_path / "out", "--merge-base", "as trained")
    assert not (tmp_path / "out").exists()
    marked = tmp_path / "out.UNPROVEN"
    assert (marked / "UNPROVEN").exists()
    assert not json.loads((marked / "proof.json").read_text())["proven"]
    if plant is change_the_template:
        assert "chat template" in str(caught.value)


def spoil_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "model"))


def spoil_keys(folder):
    found = load_file(folder / "adapter_model.safetensors")
    save_file({k: t for n, (k, t) in enumerate(sorted(found.items())) if n % 2}, folder / "adapter_model.safetensors")


def spoil_scaling(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 320}))


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (spoil_template, "renders otherwise than in training"),
        (spoil_keys, "lacks"),
        (spoil_scaling, "lora_alpha was 32 in training, is 320"),
    ],
)
def test_an_adapter_that_was_changed_after_training_is_refused(spoil, refusal, copied, tmp_path):
    spoil(copied)
    with pytest.raises(LorasmithError, match=refusal):
        run_merge(copied, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_of_other_weights_is_refused(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / BASE, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: one + 0.01 for name, one in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="other weights"):
        run_merge(trained, "--base", other, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--weights", "1", "2"], "2 for 1 adapters"),
        (["--limit", "top2=1"], "expected NAME=NUMBER"),
        (["--limit", "top1=high"], "expected NAME=NUMBER"),
    ],
)
def test_a_wrong_word_is_told(words, refusal, trained, tmp_path):
    with pytest.raises(LorasmithError, match=refusal):
        run_merge(trained, "--out", tmp_path / "out", *words)


def test_a_folder_of_something_else_is_left_alone(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with pytest.raises(LorasmithError, match="is no export of ours"):
        run_merge(trained, "--out", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out/thesis.txt").exists()


def test_without_a_proof_the_model_says_so(trained, tmp_path):
    run_merge(trained, "--out", tmp_path / "out", "--no-proof", "--merge-base", "original")
    assert "not compared" in (tmp_path / "out/UNPROVEN").read_text()
    assert not json.loads((tmp_path / "out/proof.json").read_text())["proven"]
